"""Build, save and load teachers of any family; layer-wise learning rates for their fine-tuning.

teacher = build_teacher(TeacherModelConfig(family="vit"), n_classes=10, n_mels=64, frames=51)
save_teacher(folder, teacher, extra); teacher, extra = load_teacher(folder, classes)
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from ascmodels.checkpoint import CheckpointError
from ascmodels.teachers.ast import AST
from ascmodels.teachers.base import Teacher, TeacherModelConfig
from ascmodels.teachers.timm import CNN, SpectrogramViT
from data.files import replace_folder

_CLASSES: dict[str, type[Teacher]] = {"ast": AST, "vit": SpectrogramViT, "cnn": CNN}


def build_teacher(config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> Teacher:
    """Return a teacher for features [B, 1, n_mels, frames]: pretrained if `config` names weights, else untrained."""
    return _CLASSES[config.family](config, n_classes, n_mels, frames)


def save_teacher(folder: Path, teacher: Teacher, extra: dict[str, Any]) -> None:
    """Replace `folder` by a checkpoint of `teacher`: its weights, and `teacher.json`.

    `teacher.json` holds `extra` (class names, front-end and measured values) and the network's description.
    """

    def write(temporary: Path) -> None:
        teacher.save(temporary)
        (temporary / "teacher.json").write_text(json.dumps(extra | {"model": teacher.describe()}, indent=1))

    replace_folder(folder, write)


def read_extra(folder: Path) -> dict[str, Any]:
    """Return the content of `teacher.json` in `folder`; its key `model` is the network's description."""
    try:
        return json.loads((folder / "teacher.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"no teacher checkpoint in {folder} ({error}): name a folder with teacher.json and the weights"
        ) from error


def load_teacher(folder: Path, classes: tuple[str, ...]) -> tuple[Teacher, dict[str, Any]]:
    """Return the teacher saved in `folder`, and the values that `save_teacher` received as `extra`.

    CheckpointError if the checkpoint is missing or damaged, or if its classes are not `classes`.
    """
    folder = Path(folder)
    extra = read_extra(folder)
    try:
        if tuple(extra["classes"]) != classes:
            raise CheckpointError(
                f"teacher {folder} was trained on the classes {tuple(extra['classes'])}; expected {classes}: "
                "use a teacher for these classes"
            )
        description = extra.pop("model", {"config": {"family": "ast"}})
        teacher = _CLASSES[description["config"]["family"]].load(folder, description)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"no teacher checkpoint in {folder} that can be loaded ({' '.join(str(error).split())}): use another one"
        ) from error
    return teacher.eval(), extra


def parameter_groups(teacher: Teacher, decay: float) -> list[dict[str, Any]]:
    """Return an optimiser's parameter groups with layer-wise learning-rate decay.

    The learning rate of a layer `k` layers below the classifier is `decay ** k` times the classifier's, so the first
    pretrained layers change least (Clark et al. 2020, Bao et al. 2022).
    """
    if decay == 1:
        return [{"params": list(teacher.parameters())}]
    depths, layers = teacher.depths(), dict[int, list[nn.Parameter]]()
    for name, parameter in teacher.named_parameters():
        layers.setdefault(depths[name], []).append(parameter)
    return [{"params": layers[d], "lr_scale": decay ** (max(layers) - d)} for d in sorted(layers)]
