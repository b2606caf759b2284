"""Dense parents that trials share, and the seals that tell a whole checkpoint from a damaged one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ascmodels.checkpoint import CheckpointError, check_seal, seal


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


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "trial.pt").write_bytes(bytes(range(199))),
            r"trial\.pt is damaged: 199 bytes, sealed with 200",
        ),
        (lambda f: flip(f / "trial.pt"), r"trial\.pt is damaged: its content"),
        (lambda f: flip(f / "student" / "student.json"), r"student/student\.json is damaged"),
        (lambda f: (f / "student" / "student.json").unlink(), r"student/student\.json is missing"),
        (lambda f: (f / "seal.json").unlink(), r"has no seal\.json: writing it was interrupted"),
        (lambda f: flip(f / "seal.json"), r"seal\.json is damaged"),
        (lambda f: (f / "seal.json").write_text(""), r"seal\.json is damaged"),
        (lambda f: (f / "seal.json").write_text((f / "seal.json").read_text().replace("t0001", "t0002")), "own hash"),
    ],
)
def test_a_seal_shows_any_damage(sealed: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(sealed)
    with pytest.raises(CheckpointError, match=message):
        check_seal(sealed)
