"""Save and load students: a checkpoint is a folder with `student.json` (architecture) and `weights.safetensors`.

The folder alone is enough to build the network again. No code from a checkpoint is ever executed, and a network is only
built if its declared sizes are those of the stored weights. A new checkpoint is written to a temporary folder, which
then replaces the old one by a rename, so a reader never sees a partial checkpoint.
"""

import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ascmodels.students import Student, StudentConfig, Widths, build_student
from data.files import read_json, replace_folder
from data.seals import SealError

FORMAT = 1
WEIGHTS = "weights.safetensors"
# the only Python objects that a file of `torch.save` may refer to: those of tensors, parameters and ordered dicts
_NAMED = re.compile(
    r"collections OrderedDict|torch._utils _rebuild_(tensor_v2|parameter)|torch [A-Z][A-Za-z0-9]*Storage"
)


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
    try:
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
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where} lacks or misspells a field, or has an invalid value ({_line(error)}): expected the fields that "
            "asc-tune writes; use another checkpoint"
        ) from error


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
    try:
        source, weights = folder / "student.json", folder / WEIGHTS
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
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no student checkpoint in {folder}: {error.filename or error} is missing; expected student.json and "
            "weights.safetensors: give the folder of a student's checkpoint, e.g. the folder step0 of a trial"
        ) from error
    except (SafetensorError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint in {folder} is damaged: {_line(error)}; expected complete files as asc-tune writes them: "
            "use another checkpoint"
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

    The dict may hold tensors and plain values (numbers, strings, lists, dicts). No code from the file is executed. A
    file that could take much more memory than it has bytes is not loaded (`_check_archive`). CheckpointError for such a
    file, for a missing or damaged one, and for one with other objects.
    """
    try:
        _check_archive(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__} instead of a dict")
        if any(x.nbytes > x.untyped_storage().nbytes() for x in _tensors(found)):
            raise ValueError("it has a tensor that needs more bytes than are stored for it")
        return found
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: expected a file that torch.save wrote; use another checkpoint or weights file"
        ) from error
    except Exception as error:  # torch raises many error types for a damaged file; all mean that it is unusable
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors and plain values ({_line(error)}): use another checkpoint "
            "or weights file"
        ) from error


def _check_archive(path: Path) -> None:
    """Raise an error if loading `path`, a file of `torch.save`, could take much more memory than the file has bytes.

    The error is also raised if the file refers to Python objects other than those of `_NAMED`. PyTorch's loader for
    tensors (`weights_only`) does not prevent this: it decompresses the parts of the file, allocates storages of any
    declared size, and calls some constructors, such as `bytearray(10**10)`.
    """
    with zipfile.ZipFile(path) as archive:
        found = archive.infolist()
        entries = {entry.filename.partition("/")[2]: entry for entry in found}
        if len(entries) < len(found) or any(entry.compress_type != zipfile.ZIP_STORED for entry in found):
            raise ValueError("its zip archive has a compressed file, or two files of the same name")
        declared, size = sum(entry.file_size for entry in found), path.stat().st_size
        if declared > size:
            raise ValueError(f"its zip archive declares {declared:,} bytes of content, but has only {size:,} bytes")
        for operation, argument, _ in pickletools.genops(archive.read(entries["data.pkl"])):
            if operation.name == "GLOBAL" and not _NAMED.fullmatch(str(argument)):
                raise ValueError(f"it refers to the Python object {argument}, which no file of tensors needs")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Return all tensors in the nested dicts, lists and tuples of `value`."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _line(error: Exception) -> str:
    """Return the text of `error` in one line: those of PyTorch have several."""
    return " ".join(str(error).split())[:300]
