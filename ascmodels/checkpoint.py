"""Checkpoints that carry their architecture: `student.json` (the architecture) and `weights.safetensors` (the weights).

Pickled objects are never loaded. A folder is replaced by a rename (`data.files`), so a reader never sees a partial one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from ascmodels.students import Student, StudentConfig, Widths, build_student
from data.files import SealError, replace_folder

FORMAT = 1


class CheckpointError(SealError):
    """A checkpoint is missing or damaged, or has another architecture than expected."""


def describe(student: Student) -> dict[str, Any]:
    """Return the architecture of `student` as plain JSON values."""
    return {
        "format": FORMAT,
        "family": student.config.name,
        "config": json.loads(json.dumps(asdict(student.config))),
        "widths": json.loads(json.dumps(asdict(student.widths))),
        "n_classes": student.n_classes,
        "fused": student.fused,
    }


def build(description: Mapping[str, Any]) -> Student:
    """Return a student of the architecture in `description` (from student.json) with newly initialised weights."""
    try:
        if description["format"] != FORMAT:
            raise CheckpointError(
                f"the checkpoint's student.json has format {description['format']}: expected {FORMAT}, "
                "the format of this version; use a checkpoint that this version wrote"
            )
        return build_student(
            StudentConfig(**description["config"]),
            description["n_classes"],
            Widths(**description["widths"]),
            description["fused"],
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's student.json lacks or misspells a field, or its value is invalid ({error}): "
            "use another checkpoint"
        ) from error


def save_student(folder: Path, student: Student, extra: Mapping[str, Any]) -> None:
    """Replace `folder` by a checkpoint of `student`; it is on disk when this function returns.

    `extra` holds the class names, the front-end and the measured values.
    """

    def write(temporary: Path) -> None:
        weights = {k: v.contiguous() for k, v in student.state_dict().items()}
        safetensors.torch.save_file(weights, temporary / "weights.safetensors")
        text = json.dumps(describe(student) | {"extra": dict(extra)}, indent=1)
        (temporary / "student.json").write_text(text)

    replace_folder(folder, write)


def load_student(folder: Path, expected: StudentConfig | None = None) -> tuple[Student, dict[str, Any]]:
    """Return the student saved in `folder`, and the values that `save_student` received as `extra`.

    CheckpointError if the checkpoint is missing or damaged, or if `expected` is given and is not its configuration.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / "student.json").read_text())
        with torch.random.fork_rng(devices=[]):  # the new random weights are overwritten below
            student = build(description)
        if expected is not None:
            check_same_architecture(student.config, expected, folder)
        student.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
        return student.eval(), description["extra"]
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no student checkpoint in {folder}: {error.filename or error} is missing; name a folder with student.json "
            "and weights.safetensors"
        ) from error
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint in {folder} is damaged: {error}; use another checkpoint") from error


def check_same_architecture(found: StudentConfig, expected: StudentConfig, where: Path | str) -> None:
    """Raise CheckpointError if `found`, the configuration of the checkpoint `where`, differs from `expected`.

    The message names every field that differs.
    """
    old, new = asdict(found), asdict(expected)
    different = [f"{k}: {old[k]} in the checkpoint, {new[k]} expected" for k in old if old[k] != new[k]]
    if different:
        raise CheckpointError(
            f"{where} holds another architecture ({'; '.join(different)}): set these options to the checkpoint's "
            "values, or use another checkpoint"
        )


def load_tensors(path: Path) -> dict[str, Any]:
    """Return the content of a `torch.save` file of tensors and plain values; code in the file is never run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: name a file of tensors that torch.save wrote") from error
    except Exception as error:  # torch raises many error types for a damaged file; all mean the same
        raise CheckpointError(f"{path} is damaged or holds more than tensors ({error}): use another file") from error
