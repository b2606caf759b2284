"""Seals: facts that come back, damage that is found, the order of writing (`data/files.py`)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascmodels.checkpoint import CheckpointError
from data.files import (
    SEAL,
    SealError,
    check_seal,
    seal,
)
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
    (sealed / ".metadata").write_text("of whoever carries it")
    seal(sealed, epochs=4)
    assert check_seal(sealed) == {"epochs": 4}
    assert ".metadata" in json.loads((sealed / SEAL).read_text())["content"]["files"]


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
        (lambda f: (f / SEAL).unlink(), SEAL),
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
