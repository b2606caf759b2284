"""Damage that is found: in folders with a seal (`data/seals.py`) and in waveform caches (`data/cache.py`)."""

import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ascmodels.checkpoint import CheckpointError
from data import cache
from data.cache import open_cache
from data.seals import SEAL, SealError, check_seal, seal
from data.tau import DatasetError
from tests.support.data.contents import NEW, content, fill
from tests.support.power_loss import TORN, Disk


def test_a_seal_is_never_on_disk_before_what_it_names(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    fill(NEW)(tmp_path)
    seal(tmp_path, epochs=3)
    assert disk.surely() == disk.now()
    sealed = [state for state in disk.states if SEAL in state]
    assert sealed
    expected = {path.removeprefix("folder/"): data for path, data in content(NEW).items()}
    assert all(expected.items() <= state.items() and state[SEAL] != TORN for state in sealed)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "student").mkdir(parents=True)
    (folder / "trial.pt").write_bytes(bytes(range(200)))
    (folder / "student" / "student.json").write_text("{}")
    seal(folder, epochs=3, name="t0001")
    return folder


def test_a_sealed_folder_gives_its_facts_back(sealed: Path) -> None:
    assert check_seal(sealed) == {"epochs": 3, "name": "t0001"}
    (sealed / ".metadata").write_text("sealed from now on")
    seal(sealed, epochs=4)
    assert check_seal(sealed) == {"epochs": 4}
    assert ".metadata" in json.loads((sealed / SEAL).read_text())["content"]["files"]


def reseal(folder: Path, **parts: Any) -> None:
    """Replace parts of a seal, and the hash that it contains."""
    content = json.loads((folder / SEAL).read_text())["content"]
    content |= {k: content[k] | v if k == "files" and isinstance(v, dict) else v for k, v in parts.items()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / SEAL).write_text(json.dumps({"content": content, "sha256": digest}))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: (f / "trial.pt").write_bytes(bytes(range(199))), "trial.pt"),
        (lambda f: flip(f / "trial.pt"), "trial.pt"),
        (lambda f: flip(f / "student" / "student.json"), "student/student.json"),
        (lambda f: (f / "student" / "student.json").unlink(), "student/student.json"),
        (lambda f: (f / "student" / "_dict_checkpoint.pkl").write_text(""), "student/_dict_checkpoint.pkl"),
        (lambda f: (f / ".hidden").write_text(""), ".hidden"),
        (lambda f: (f / "elsewhere").symlink_to(f / "nowhere"), "elsewhere"),
        (lambda f: (f / "folder").symlink_to(f / "student"), "folder"),
        (lambda f: os.mkfifo(f / "pipe"), "pipe"),
        (lambda f: reseal(f, files={"../outside": [2, "0"]}), "../outside"),
        (lambda f: reseal(f, files={"trial.pt": 3}), SEAL),
        (lambda f: reseal(f, files={"trial.pt": [float("inf"), "0"]}), SEAL),
        (lambda f: reseal(f, files={"trial.pt": [float("nan"), "0"]}), SEAL),
        (lambda f: reseal(f, files=["trial.pt"]), SEAL),
        (lambda f: reseal(f, facts=[]), SEAL),
        (lambda f: (f / SEAL).unlink(), SEAL),
        (lambda f: [(f / SEAL).unlink(), os.mkfifo(f / SEAL)], SEAL),
        (lambda f: [(f / SEAL).unlink(), (f / SEAL).symlink_to("/dev/zero")], SEAL),
        (lambda f: flip(f / SEAL), SEAL),
        (lambda f: (f / SEAL).write_text(""), SEAL),
        (lambda f: (f / SEAL).write_text("[" * 100_000), SEAL),
        (lambda f: (f / SEAL).write_text((f / SEAL).read_text().replace("t0001", "t0002")), SEAL),
    ],
)
def test_a_seal_shows_any_damage(sealed: Path, damage: Callable[[Path], Any], named: str) -> None:
    damage(sealed)
    with pytest.raises(SealError) as error:
        check_seal(sealed)
    assert type(error.value) is SealError
    assert named in str(error.value)
    assert issubclass(CheckpointError, SealError)


def damage(file: str, content: bytes | None) -> Callable[[Path], None]:
    """Return a function that replaces `file` of a cache by `content` (None: by its first half)."""

    def apply(folder: Path) -> None:
        old = (folder / file).read_bytes()
        (folder / file).unlink()  # another file: a process that has the old one open keeps it
        (folder / file).write_bytes(old[: len(old) // 2] if content is None else content)

    return apply


def declaring(shape: tuple[int, ...]) -> bytes:
    """Return the bytes of a .npy file whose header declares `shape`, with few data."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(8)


@pytest.mark.parametrize(
    "broken",
    [
        damage("manifest.json", None),
        damage("manifest.json", b"[" * 100_000),
        damage("manifest.json", b'{"sample_rate": 8000}'),
        damage("manifest.json", b'{"sample_rate": 1e400, "filenames": [], "skipped": {}, "key": ""}'),
        damage("manifest.json", b'{"sample_rate": 8000, "filenames": [[]], "skipped": {}, "key": ""}'),
        damage("manifest.json", b'{"sample_rate": 8000, "filenames": [1, 2, 3, 4, 5, "a"], "skipped": {}, "key": ""}'),
        damage(
            "manifest.json", b'{"sample_rate": 8000, "filenames": ["a","a","a","b","c","d"], "skipped": {}, "key": ""}'
        ),
        damage("scales.npy", None),
        damage("scales.npy", b""),
        damage("scales.npy", declaring((10**12,))),
        damage("scales.npy", pickle.dumps(print)),
        damage("waveforms.npy", None),
        damage("waveforms.npy", b"PK\x03\x04"),
        damage("waveforms.npy", declaring((6, 10**12))),
        lambda folder: np.save(folder / "scales.npy", np.array([print] * 9), allow_pickle=True),
        lambda folder: np.save(folder / "scales.npy", np.array([1, 1, np.nan, 1, 1, 1], np.float32)),
        lambda folder: np.save(folder / "scales.npy", np.array([1, 1, 0, 1, 1, 1], np.float32)),
        lambda folder: np.save(folder / "scales.npy", np.array([1, 1, 1e38, 1, 1, 1], np.float32)),
        damage("scales.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4' (\n"),
        lambda folder: [(folder / "scales.npy").unlink(), os.mkfifo(folder / "scales.npy")],
        lambda folder: [(folder / "manifest.json").unlink(), (folder / "manifest.json").symlink_to("/dev/zero")],
        lambda folder: (folder / "waveforms.npy").unlink(),
    ],
)
def test_a_damaged_cache_is_named_and_made_again(few, tmp_path, caplog, broken):
    root, chosen = few
    first = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    expected = first.batch(first.rows(chosen))
    for known in (None, first.content):
        caplog.clear()
        broken(first.folder)
        with pytest.raises(DatasetError, match=re.escape(str(first.folder))) as error:
            cache.WaveformCache(first.folder, first.content)
        assert "\n" not in str(error.value)
        again = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False, content=known)
        assert torch.equal(again.batch(again.rows(chosen)), expected)
        assert str(first.folder) in caplog.text
    assert torch.equal(first.batch(first.rows(chosen)), expected)  # a process that has it open keeps its files
