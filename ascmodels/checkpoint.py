"""Save and load students: a checkpoint is a folder with `student.json` (architecture) and `weights.safetensors`.

The folder alone is enough to build the network again. No code from a checkpoint is ever executed. A new checkpoint is
written to a temporary folder, which then replaces the old one by a rename, so a reader never sees a partial checkpoint.
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
    """A checkpoint of a student, teacher or trial is missing or damaged, or does not fit the configuration."""


def describe(student: Student) -> dict[str, Any]:
    """Return the architecture of `student` as a dict of JSON values, from which `build` builds it again."""
    return {
        "format": FORMAT,
        "family": student.config.name,
        "config": json.loads(json.dumps(asdict(student.config))),
        "widths": json.loads(json.dumps(asdict(student.widths))),
        "n_classes": student.n_classes,
        "fused": student.fused,
    }


def build(description: Mapping[str, Any]) -> Student:
    """Return a student with new random weights and the architecture in `description`, a dict from `describe`.

    CheckpointError if `description` has another format version than FORMAT, a missing or unknown field, or an invalid
    value.
    """
    try:
        if description["format"] != FORMAT:
            raise CheckpointError(
                f"the checkpoint's student.json has format {description['format']}: expected {FORMAT}, "
                "the only format that this version of asc-tune reads; use a checkpoint that this version wrote"
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
            f"the checkpoint's student.json lacks or misspells a field, or has an invalid value ({error}): expected "
            "the fields that asc-tune writes; use another checkpoint"
        ) from error


def save_student(folder: Path, student: Student, extra: Mapping[str, Any]) -> None:
    """Write a checkpoint of `student` to `folder`, replacing its content. All files are synced to disk on return.

    `extra` holds further JSON values to store in student.json, e.g. the class names, the configuration of the front-end
    (log-mel features) and measured values.
    """

    def write(temporary: Path) -> None:
        weights = {k: v.contiguous() for k, v in student.state_dict().items()}
        safetensors.torch.save_file(weights, temporary / "weights.safetensors")
        text = json.dumps(describe(student) | {"extra": dict(extra)}, indent=1)
        (temporary / "student.json").write_text(text)

    replace_folder(folder, write)


def load_student(folder: Path, expected: StudentConfig | None = None) -> tuple[Student, dict[str, Any]]:
    """Return the student of the checkpoint in `folder`, in evaluation mode, and the `extra` given to `save_student`.

    CheckpointError if the checkpoint is missing or damaged, or if `expected` is given and the student has another
    configuration.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / "student.json").read_text())
        with torch.random.fork_rng(devices=[]):  # keep the caller's random state; load_state_dict sets all weights
            student = build(description)
        if expected is not None:
            check_same_architecture(student.config, expected, folder)
        student.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
        return student.eval(), description["extra"]
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no student checkpoint in {folder}: {error.filename or error} is missing; expected student.json and "
            "weights.safetensors: give the folder of a student's checkpoint, e.g. the folder step0 of a trial"
        ) from error
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint in {folder} is damaged: {error}; expected complete files as asc-tune writes them: use "
            "another checkpoint"
        ) from error


def check_same_architecture(found: StudentConfig, expected: StudentConfig, where: Path | str) -> None:
    """Raise CheckpointError if the configuration `found` in a checkpoint differs from `expected`.

    The message starts with `where`, the folder or name of the checkpoint, and lists every field that differs.
    """
    old, new = asdict(found), asdict(expected)
    different = [f"student.{k}: {old[k]} in the checkpoint, {new[k]} expected" for k in old if old[k] != new[k]]
    if different:
        raise CheckpointError(
            f"{where} holds another architecture than expected ({'; '.join(different)}): set these keys to the "
            "checkpoint's values, or use another checkpoint"
        )


def load_tensors(path: Path) -> dict[str, Any]:
    """Return the dict that `torch.save` wrote to the file `path`, with all tensors on the CPU.

    The dict may hold tensors and plain values (numbers, strings, lists, dicts). No code from the file is executed.
    CheckpointError if the file is missing or damaged, or if it contains other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: expected a file that torch.save wrote; use another checkpoint or weights file"
        ) from error
    except Exception as error:  # torch raises many error types for a damaged file; all mean that it is unusable
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors and plain values ({error}): use another checkpoint or "
            "weights file"
        ) from error
