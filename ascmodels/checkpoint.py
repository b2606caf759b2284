"""Checkpoints that carry their architecture: `student.json` (what it is) beside `weights.safetensors` (what it learnt).

Nothing pickled is ever loaded. A folder is written beside and renamed, so a reader never sees half of one. A folder
that others fill or carry (Ray's checkpoints) is sealed: `seal` last, and `check_seal` finds what is missing or damaged.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from ascmodels.students import Student, StudentConfig, Widths, build_student

FORMAT = 1
SEAL = "seal.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another architecture."""


def describe(student: Student) -> dict[str, Any]:
    """The architecture as plain JSON values."""
    return {
        "format": FORMAT,
        "family": student.config.name,
        "config": json.loads(json.dumps(asdict(student.config))),
        "widths": json.loads(json.dumps(asdict(student.widths))),
        "n_classes": student.n_classes,
        "fused": student.fused,
    }


def build(description: Mapping[str, Any]) -> Student:
    """A student of the described architecture with fresh weights."""
    try:
        if description["format"] != FORMAT:
            raise CheckpointError(f"checkpoint format {description['format']}: this version reads format {FORMAT}")
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
    """Write `student` to `folder` (replaced whole). `extra` holds the class names, front-end and measured figures."""

    def write(beside: Path) -> None:
        weights = {k: v.contiguous() for k, v in student.state_dict().items()}
        safetensors.torch.save_file(weights, beside / "weights.safetensors")
        text = json.dumps(describe(student) | {"extra": dict(extra)}, indent=1)
        (beside / "student.json").write_text(text)

    replace_folder(folder, write)


def load_student(folder: Path, expected: StudentConfig | None = None) -> tuple[Student, dict[str, Any]]:
    """The student of `folder` and its `extra`. With `expected`, CheckpointError unless the topology is that one."""
    folder = Path(folder)
    try:
        description = json.loads((folder / "student.json").read_text())
        with torch.random.fork_rng(devices=[]):  # the fresh weights that are overwritten here
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
    """CheckpointError naming every field that differs."""
    old, new = asdict(found), asdict(expected)
    different = [f"{k}: {old[k]} in the checkpoint, {new[k]} expected" for k in old if old[k] != new[k]]
    if different:
        raise CheckpointError(f"{where} holds another architecture ({'; '.join(different)})")


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder`, then put it in its place. The old one leaves by a rename too:
    deleted where it is, it would show a half of itself."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    for stale in (beside, old):
        shutil.rmtree(stale, ignore_errors=True)
    beside.mkdir()
    try:
        write(beside)
        if folder.is_dir():
            folder.rename(old)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def mend_folder(folder: Path) -> None:
    """Put back what `replace_folder` had moved aside when it was killed between its two renames, and clear away what
    killed ones have left. For who holds the folder alone."""
    folder = Path(folder)
    aside = sorted(folder.parent.glob(f".{folder.name}.*.old"), key=lambda old: old.stat().st_mtime_ns)
    if aside and not folder.exists():
        aside.pop().rename(folder)
    for stale in (*aside, *folder.parent.glob(f".{folder.name}.*[0-9]")):
        shutil.rmtree(stale)


def replace_text(path: Path, text: str) -> None:
    """Write a text file beside, then rename it."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def seal(folder: Path, **facts: Any) -> None:
    """Close `folder`: the hash and size of each file in it, and `facts` (JSON values), written after all of them."""
    folder = Path(folder)
    files = {p.relative_to(folder).as_posix(): [p.stat().st_size, _sha256(p)] for p in _sealed_files(folder)}
    content = {"format": FORMAT, "files": files, "facts": facts}
    replace_text(folder / SEAL, json.dumps({"content": content, "sha256": _content_hash(content)}, indent=1))


def check_seal(folder: Path) -> dict[str, Any]:
    """The facts of a sealed folder; CheckpointError names what is missing or damaged. More files may have come."""
    folder = Path(folder)
    try:
        sealed = json.loads((folder / SEAL).read_bytes())
        content = sealed["content"]
        if sealed["sha256"] != _content_hash(content) or content["format"] != FORMAT:
            raise ValueError("its own hash or format is another")
        files: dict[str, list[Any]] = content["files"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {SEAL}: writing it was interrupted") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / SEAL} is damaged: {error}") from error
    for name, (size, digest) in files.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                raise CheckpointError(f"{path} is damaged: {found} bytes, sealed with {size}")
            if _sha256(path) != digest:
                raise CheckpointError(f"{path} is damaged: its content is not what was sealed")
        except OSError as error:
            raise CheckpointError(f"{path} is missing or cannot be read: {error}") from error
    return content["facts"]


def _sealed_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SEAL)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _content_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_tensors(path: Path) -> dict[str, Any]:
    """A `torch.save` file of tensors and plain values, never of code (`weights_only=True`)."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except Exception as error:  # torch raises many kinds for a damaged file; each means the same here
        raise CheckpointError(f"{path} is damaged or holds more than tensors: {error}") from error
