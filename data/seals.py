"""Seals: a file `seal.json` with the checksums of all files in a folder, such as a checkpoint or a saved state.

    seal(folder, epochs=3)                  # write seal.json: checksums of all files, and facts such as epochs=3
    check_seal(folder)["epochs"]            # compare the checksums, return the facts; the folder may have been moved

A seal shows whether a file was damaged, removed or added later. It is no signature: whoever may write to the folder can
write a valid seal, so the files of a sealed folder are still read by loaders that execute no code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.files import fsync_tree, read_json, replace_text

SEAL = "seal.json"
FORMAT = 1
_REMEDY = "restore the folder from a copy, or use another checkpoint"  # end of the messages of check_seal


class SealError(ValueError):
    """A folder has no valid `seal.json` (checksums of its files), or its files are not those that it lists."""


def seal(folder: Path, **facts: Any) -> None:
    """Write `seal.json` into `folder`: size and SHA-256 of each file below `folder`, and the JSON values `facts`.

    `check_seal` returns `facts`, e.g. the number of trained epochs. All files are fsynced before `seal.json` is
    written, so a folder with a valid `seal.json` is complete.
    """
    folder = Path(folder)
    fsync_tree(folder)
    files = {name: [(folder / name).stat().st_size, _sha256(folder / name)] for name in sorted(_names(folder))}
    content = {"format": FORMAT, "files": files, "facts": facts}
    replace_text(folder / SEAL, json.dumps({"content": content, "sha256": _content_hash(content)}, indent=1))


def check_seal(folder: Path) -> dict[str, Any]:
    """Compare the files of `folder` with its `seal.json`, and return the facts that were passed to `seal`.

    Raise SealError if `seal.json` or a file that it lists is missing or damaged, or if the folder has a file or a
    symbolic link that it does not list. No file but `seal.json` is opened before the names and sizes are checked.
    """
    folder = Path(folder)
    if not (folder / SEAL).is_file():  # also if it is a pipe, which would never be read to its end
        raise SealError(f"{folder} has no {SEAL}, so it is incomplete: {_REMEDY}")
    try:
        files, facts = sealed_content(read_json(folder / SEAL))
        found = _names(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise SealError(f"{folder / SEAL} is damaged ({error}): {_REMEDY}") from error
    if strange := sorted(found - set(files)):
        raise SealError(
            f"{folder / strange[0]} is not listed in {SEAL}, so asc-tune did not write it; expected only the listed "
            f"files: if you know where this one comes from, move it to another folder; otherwise {_REMEDY}"
        )
    for name, (size, digest) in files.items():
        path = folder / name
        try:
            if name not in found or not path.is_file():
                raise SealError(f"{path} is missing or not a file; expected the file that {SEAL} lists: {_REMEDY}")
            if path.stat().st_size != size:
                raise SealError(f"{path} has {path.stat().st_size} bytes; expected {size}, as in {SEAL}: {_REMEDY}")
            if _sha256(path) != digest:
                raise SealError(f"{path} is damaged (its SHA-256 is not the one in {SEAL}): {_REMEDY}")
        except OSError as error:
            raise SealError(f"{path} is missing or cannot be read ({error}): {_REMEDY}") from error
    return facts


def sealed_content(sealed: Mapping[str, Any]) -> tuple[dict[str, tuple[int, str]], dict[str, Any]]:
    """Return {file: (size in bytes, SHA-256)} and the facts (the values passed to `seal`) of a `seal.json`.

    `sealed` is the content of this file. ValueError if it has another format, or does not match the hash that it
    contains.
    """
    content = sealed.get("content")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{SEAL} has another format than {FORMAT}")
    if sealed.get("sha256") != _content_hash(content):
        raise ValueError(f"{SEAL} does not match the hash that it contains")
    files, facts = content.get("files"), content.get("facts")
    if not isinstance(files, dict) or not isinstance(facts, dict):
        raise ValueError(f"{SEAL}: expected a JSON object for each of the keys 'files' and 'facts'")
    try:
        return {name: (int(size), str(digest)) for name, (size, digest) in files.items()}, facts
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{SEAL} has a file without size and hash ({error})") from error


def _names(folder: Path) -> set[str]:
    """Return the relative names of all files and symbolic links below `folder`, except `seal.json`."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths} - {SEAL}


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _content_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
