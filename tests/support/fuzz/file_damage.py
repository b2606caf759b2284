"""How study_targets.py damages files by their format, replaces them by links, and renews the seal of their folder."""

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import torch

from ascmodels.checkpoint import load_tensors
from data.files import replace_text
from data.seals import SEAL, _content_hash, seal
from tests.support.ascmodels import pickles
from tests.support.fuzz.damage import VALUES, damaged_bytes, damaged_json

STRANGE = (
    "a\nb",
    "\x1b[2J",
    "é\u202e",
    ".hidden",
    "a" * 200,
    "a\\b",
    "seal.json",
    "lease",
    "999999-x.json",
    "²-x.json",
    "٣-x.json",
)
TUPLES, LISTS = pickles.doubled(b"t", 60), pickles.doubled(b"l", 60)
FUNCTION = pickles.named("torch._utils", "_rebuild_parameter")
CRAFTED = (
    pickles.mapping(config=pickles.tensor(pickles.storage(10**9), 0, [10**9], [1])),
    pickles.mapping(config=pickles.call(pickles.named("builtins", "bytearray"), pickles.integer(2**40))),
    pickles.mapping(a=TUPLES, config=b"}h\x3cNs"),
    pickles.mapping(a=LISTS, config=b"h\x3c", optimizer=b"h\x3c"),
    pickles.mapping(config=FUNCTION, optimizer=FUNCTION, position=FUNCTION, points=FUNCTION),
)


def changed(content: Any, rng: random.Random) -> Any:
    """Return a copy of the nested dicts and lists of `content` in which one value has another type or size."""
    content = copy.deepcopy(content)
    part = content
    while True:
        keys = list(part) if isinstance(part, dict) else range(len(part))
        key = rng.choice(list(keys))
        if isinstance(part[key], dict | list) and part[key] and rng.random() < 0.8:
            part = part[key]
            continue
        if isinstance(part[key], torch.Tensor):
            odd = (
                torch.zeros(rng.choice((0, 1, 3))),
                torch.zeros(1, 1),
                torch.full_like(part[key], 3).bool(),
                part[key] * torch.nan,
            )
            part[key] = rng.choice((*odd, *VALUES))
        else:
            part[key] = copy.deepcopy(rng.choice(VALUES))
        return content


def damaged_state(path: Path, rng: random.Random) -> None:
    """Change the file of `torch.save` at `path`: its values, its pickle or its bytes."""
    way = rng.random()
    if way < 0.55:
        content = changed(load_tensors(path), rng)
        for key in ("config", "points", "widths"):  # texts of JSON
            if isinstance(content.get(key), str) and content[key][:1] in ("{", "[") and rng.random() < 0.3:
                content[key] = damaged_json(json.loads(content[key]), rng).decode(errors="replace")
        torch.save(content, path)
    elif way < 0.9:
        entries = pickles.records(load_tensors(path))
        pickled = entries["data.pkl"]
        entries["data.pkl"] = pickles.pickle_of(rng.choice(CRAFTED)) if way < 0.65 else damaged_bytes(pickled, rng)
        if way > 0.85:
            entries |= {"byteorder": b"big", ".data/serialization_id": b"9" * 100, "../outside": b"x"}
        pickles.write(path, entries)
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))


def damaged_tensors(data: bytes, rng: random.Random) -> bytes:
    """Return the safetensors file `data` with a changed header or changed bytes."""
    length = int.from_bytes(data[:8], "little")
    header, content = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = rng.random()
    if way < 0.3:
        return damaged_bytes(data, rng)
    if way < 0.5:
        noise = bytes(rng.choice((content, b"\x00\x7e" * (len(content) // 2), b"\xff" * len(content))))
        return data[: 8 + length] + noise
    if way < 0.7:
        header["logits"]["dtype"] = rng.choice(("F16", "I16", "BF16", "U16", "F32", "F64", "BOOL", "F8_E4M3", "C64"))
    text = damaged_json(header, rng) if way > 0.6 else json.dumps(header).encode()
    if way > 0.95:
        text = text[:-1] + b"," + text[1:]  # each key twice
    return len(text).to_bytes(8, "little") + text + content


def reseal(folder: Path) -> None:
    """Write a valid seal for the changed files of `folder`, with its former facts, as somebody else could.

    Nothing is written if a pipe or a link is among them, which `seal` would read.
    """
    if any(not path.is_dir() and (path.is_symlink() or not path.is_file()) for path in folder.rglob("*")):
        return
    try:
        facts = json.loads((folder / SEAL).read_bytes())["content"]["facts"]
        (folder / SEAL).unlink()
        seal(folder, **facts)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return


def sealed_json(folder: Path, rng: random.Random) -> None:
    """Change the content of the seal of `folder`, with a valid hash over it."""
    content = json.loads((folder / SEAL).read_bytes())["content"]
    try:
        content = json.loads(damaged_json(content, rng))
        replace_text(folder / SEAL, json.dumps({"content": content, "sha256": _content_hash(content)}), durable=False)
    except (ValueError, RecursionError):
        return


def restructured(place: Path, rng: random.Random) -> None:
    """Replace a random file below `place` by a link, a folder, a pipe or nothing, or give it another name.

    Links lead at most to the folder `outside`, which tests/bench/fuzz.py makes beside the folder of each input.
    """
    path = rng.choice(_files(place))
    new = path.with_name(rng.choice(STRANGE))
    if rng.random() < 0.3:
        if not new.exists():
            path.rename(new)
        return
    outside = next(parent for parent in path.parents if (parent / "outside").is_dir()) / "outside"
    path.unlink()
    targets = ("/dev/zero", outside, outside / "file", outside / "new", path.name, place)
    rng.choice(
        (
            *(lambda target=target: path.symlink_to(target) for target in targets),
            *(lambda: path.mkdir(), lambda: os.mkfifo(path), lambda: None),
        )
    )()


def damage(place: Path, rng: random.Random) -> None:
    """Damage a random file below the folder `place`, by its format."""
    if rng.random() < 0.25:
        return restructured(place, rng)
    path = rng.choice(_files(place))
    if path.suffix == ".pt":
        damaged_state(path, rng)
    elif path.suffix == ".json" and rng.random() < 0.8:
        path.write_bytes(damaged_json(_content(path), rng))
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    return None


def _files(place: Path) -> list[Path]:
    """Return the files below `place`; not the links of an earlier `restructured`, whose targets must not be changed."""
    return sorted(p for p in place.rglob("*") if p.is_file() and not p.is_symlink())


def _content(path: Path) -> Any:
    """Return the content of a file of JSON; its text, if it was damaged before."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return path.read_text(errors="replace")
