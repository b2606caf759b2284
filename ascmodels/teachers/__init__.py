"""Build, save and load teachers of any family, and set layer-wise learning rates for their fine-tuning.

teacher = build_teacher(TeacherModelConfig(family="vit"), n_classes=10, n_mels=64, frames=51)
save_teacher(folder, teacher, {"classes": classes})      # classes: the class names in the order of the logits
teacher, extra = load_teacher(folder, classes)           # extra: {"classes": classes}
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from ascmodels.checkpoint import CheckpointError
from ascmodels.teachers.ast import AST
from ascmodels.teachers.base import Teacher, TeacherModelConfig
from ascmodels.teachers.beats import BEATs
from ascmodels.teachers.timm import CNN, SpectrogramViT
from data.files import read_json, replace_folder

_CLASSES: dict[str, type[Teacher]] = {"ast": AST, "beats": BEATs, "vit": SpectrogramViT, "cnn": CNN}


def build_teacher(config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> Teacher:
    """Return a teacher for features `[B, 1, n_mels, frames]`.

    If `config.pretrained` is set, all layers below the classifier have pretrained weights, else all weights are random.
    """
    return _CLASSES[config.family](config, n_classes, n_mels, frames)


def save_teacher(folder: Path, teacher: Teacher, extra: dict[str, Any]) -> None:
    """Write a checkpoint of `teacher` to `folder`, replacing its content: the weights, and `teacher.json`.

    `teacher.json` holds the JSON values in `extra`, and under the key `model` the description from which the network is
    built again. `extra` must have the key `classes`: the class names in the order of the logits.
    """

    def write(temporary: Path) -> None:
        teacher.save(temporary)
        (temporary / "teacher.json").write_text(json.dumps(extra | {"model": teacher.describe()}, indent=1))

    replace_folder(folder, write)


def read_extra(folder: Path) -> dict[str, Any]:
    """Return the content of `teacher.json` in the teacher checkpoint `folder`: the keys of `extra`, and `model`.

    `extra` is the dict that was passed to `save_teacher`; `model` describes the network. CheckpointError if the file is
    missing or damaged.
    """
    try:
        return read_json(folder / "teacher.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"no teacher checkpoint in {folder} ({error}): expected teacher.json and the weights; give a folder that "
            "trainables/finetune_teacher.py wrote"
        ) from error


def load_teacher(folder: Path, classes: tuple[str, ...]) -> tuple[Teacher, dict[str, Any]]:
    """Return the teacher of the checkpoint in `folder`, in evaluation mode, and the `extra` given to `save_teacher`.

    CheckpointError if the checkpoint is missing or damaged, or if its class names are not `classes` in this order.
    """
    folder = Path(folder)
    extra = read_extra(folder)
    try:
        if tuple(extra["classes"]) != classes:
            raise CheckpointError(
                f"teacher {folder} was trained on the classes {tuple(extra['classes'])}; expected {classes}: "
                "use a teacher that was trained on the expected classes"
            )
        description = extra.pop("model", {"config": {"family": "ast"}})
        teacher = _CLASSES[description["config"]["family"]].load(folder, description)
    except CheckpointError:
        raise
    except Exception as error:  # transformers and timm raise many error types for a damaged folder
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"no teacher checkpoint in {folder} that can be loaded ({reason}): expected a folder that "
            "trainables/finetune_teacher.py wrote; use another folder, or delete this one and fine-tune again"
        ) from error
    return teacher.eval(), extra


def parameter_groups(teacher: Teacher, decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser, with layer-wise learning-rate decay.

    There is one group for each layer. A layer that lies k layers below the classifier has `lr_scale` = `decay ** k`.
    The training loop multiplies the learning rate by `lr_scale`, so the layers near the input change least (Clark et
    al. 2020, Bao et al. 2022). With `decay` 1 there is a single group without `lr_scale`.
    """
    if decay == 1:
        return [{"params": list(teacher.parameters())}]
    depths, layers = teacher.depths(), dict[int, list[nn.Parameter]]()
    for name, parameter in teacher.named_parameters():
        layers.setdefault(depths[name], []).append(parameter)
    return [{"params": layers[d], "lr_scale": decay ** (max(layers) - d)} for d in sorted(layers)]
