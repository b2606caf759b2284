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
    """Return a student of the described architecture with newly initialised weights."""
    try:
        if description["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint format {description['format']}: expected {FORMAT}, the one of this version"
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
        raise CheckpointError(f"the checkpoint's description lacks or misspells a field: {error}") from error


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
    """Return the student in `folder` and its `extra`; CheckpointError if its topology differs from `expected`."""
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
        raise CheckpointError(f"no student checkpoint in {folder}: {error.filename or error} is missing") from error
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint in {folder} is damaged: {error}") from error


def check_same_architecture(found: StudentConfig, expected: StudentConfig, where: Path | str) -> None:
    """Raise CheckpointError, which names every field that differs, if the two topologies are not equal."""
    old, new = asdict(found), asdict(expected)
    different = [f"{k}: {old[k]} in the checkpoint, {new[k]} expected" for k in old if old[k] != new[k]]
    if different:
        raise CheckpointError(
            f"{where} holds another architecture ({'; '.join(different)}): set these options to the checkpoint's "
            "values, or use another checkpoint"
        )


def load_tensors(path: Path) -> dict[str, Any]:
    """Return the content of a `torch.save` file of tensors and plain values; code is never loaded."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except Exception as error:  # torch raises many error types for a damaged file; all mean the same
        raise CheckpointError(f"{path} is damaged or holds more than tensors: {error}") from error
