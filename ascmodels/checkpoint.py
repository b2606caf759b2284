"""Save and load students: a checkpoint is a folder with `student.json` (architecture) and `weights.safetensors`.

The folder alone is enough to build the network again. No code from a checkpoint is ever executed, and a network is only
built if its declared sizes are those of the stored weights. A new checkpoint is written to a temporary folder, which
then replaces the old one by a rename, so a reader never sees a partial checkpoint.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ascmodels.students import Student, StudentConfig, Widths, build_student
from ascmodels.tensor_file import read_tensors
from data.files import read_json, replace_folder
from data.seals import SealError

FORMAT = 1
WEIGHTS = "weights.safetensors"
# errors that damaged content causes in the code that reads it
_DAMAGE = (SafetensorError, ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


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


def build(description: Mapping[str, Any], where: Path | str) -> Student:
    """Return a student with new random weights and the architecture in `description`, a dict from `describe`.

    `where` is the file from which `description` was read; error messages contain it. CheckpointError if `description`
    has another format version than FORMAT, a missing or unknown field, or an invalid value.
    """
    with reading(where, "the fields that asc-tune writes"):
        if description["format"] != FORMAT:
            raise CheckpointError(
                f"{where} has format {description['format']}: expected {FORMAT}, the only format that this version of "
                "asc-tune reads; use a checkpoint that this version wrote"
            )
        return build_student(
            StudentConfig(**description["config"]),
            description["n_classes"],
            Widths(**description["widths"]),
            description["fused"],
        )


def save_student(folder: Path, student: Student, extra: Mapping[str, Any]) -> None:
    """Write a checkpoint of `student` to `folder`, replacing its content. All files are synced to disk on return.

    `extra` holds further JSON values to store in student.json, e.g. the class names, the configuration of the front-end
    (log-mel features) and measured values.
    """

    def write(temporary: Path) -> None:
        weights = {k: v.contiguous() for k, v in student.state_dict().items()}
        safetensors.torch.save_file(weights, temporary / WEIGHTS)
        text = json.dumps(describe(student) | {"extra": dict(extra)}, indent=1)
        (temporary / "student.json").write_text(text)

    replace_folder(folder, write)


def load_student(folder: Path, expected: StudentConfig | None = None) -> tuple[Student, dict[str, Any]]:
    """Return the student of the checkpoint in `folder`, in evaluation mode, and the `extra` given to `save_student`.

    CheckpointError if the checkpoint is missing or damaged, or if `expected` is given and the student has another
    configuration.
    """
    folder = Path(folder)
    with reading(f"the checkpoint in {folder}", "student.json and weights.safetensors as asc-tune writes them"):
        source, weights = folder / "student.json", folder / WEIGHTS
        if missing := [path.name for path in (source, weights) if not path.is_file()]:
            raise CheckpointError(
                f"no student checkpoint in {folder}: {missing[0]} is missing; expected student.json and {WEIGHTS}: "
                "give the folder of a student's checkpoint, e.g. the folder step0 of a trial"
            )
        description = read_json(source)
        blocks, tensors = description["config"].get("n_blocks", ()), stored_shapes(weights)
        if sum(blocks) > len(tensors):
            raise ValueError(
                f"config.n_blocks={blocks} in student.json describes {sum(blocks)} blocks, but {WEIGHTS} has only "
                f"{len(tensors)} tensors; expected at least one for each block: use another checkpoint"
            )
        with torch.device("meta"):  # takes no memory, whatever sizes the description declares
            check_weights(build(description, source), weights)
        with torch.random.fork_rng(devices=[]):  # keep the caller's random state; load_state_dict sets all weights
            student = build(description, source)
        if expected is not None:
            check_same_architecture(student.config, expected, folder)
        student.load_state_dict(safetensors.torch.load_file(weights))
        return student.eval(), dict(description["extra"])


@contextmanager
def reading(where: Path | str, expected: str) -> Iterator[None]:
    """Turn each error that damaged content causes in the `with` block into CheckpointError.

    `where` names the file or folder that is read, and `expected` its content, for the message. The errors of a GPU,
    such as torch.OutOfMemoryError, say nothing about the content and stay as they are.
    """
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except _DAMAGE as error:
        raise CheckpointError(
            f"{where} is damaged ({type(error).__name__}: {_line(error)}); expected {expected}: use another checkpoint"
        ) from error


def stored_shapes(weights: Path) -> dict[str, list[int]]:
    """Return the name and shape of each tensor in the safetensors file `weights`, without loading the tensors.

    The library raises SafetensorError if the declared tensors do not fill the file exactly.
    """
    with safe_open(weights, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict


def check_weights(network: nn.Module, weights: Path) -> None:
    """Raise CheckpointError if the tensors in the file `weights` have other names or shapes than those of `network`.

    Build `network` on PyTorch's meta device, where it takes no memory, because a checkpoint of a few bytes can describe
    a network of gigabytes.
    """
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = stored_shapes(weights)
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{weights}: the tensor {name} has the shape {found.get(name, 'none (missing)')}, but the described "
                f"network expects {expected.get(name, 'no such tensor')}: use a checkpoint whose files belong together"
            )


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

    The dict may hold tensors and plain values (numbers, strings, lists, dicts). No code from the file is executed, and
    no pickle loader reads it (tensor_file.py). CheckpointError for a missing or damaged file, for one with other
    objects, and for one that would take much more memory than it has bytes.
    """
    try:
        return read_tensors(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing or no file; expected a file that torch.save wrote: use another checkpoint or weights "
            "file"
        ) from error
    except Exception as error:  # zipfile and torch raise many error types for a damaged file; all mean the same
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors and plain values ({_line(error)}): use another checkpoint "
            "or weights file"
        ) from error


def _line(error: Exception) -> str:
    """Return the text of `error` in one line: those of PyTorch have several."""
    return " ".join(str(error).split())[:300]
