"""Which configurations a checkpoint and the trial that loads it may have: paths of a study that was moved."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from trainables.config.differences import differences
from trainables.config.schema import TrialConfig


def compared(key: str, old: Any, new: Any) -> list[str]:
    """Return the differing keys of two configurations, in which `key` has the values `old` and `new`."""
    flat = TrialConfig().flat()
    return list(differences(flat | {key: old}, flat | {key: new}))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "teacher"
    (folder / "weights").mkdir(parents=True)
    (folder / "teacher.json").write_text("{}")
    (folder / "weights" / "model.bin").write_bytes(b"abc")
    return folder


@pytest.mark.parametrize("key", ["distill.teacher_ckpts", "augment.dir_dir"])
def test_a_path_that_has_moved_is_the_same(teacher: Path, tmp_path: Path, key: str) -> None:
    def value(path: Path) -> Any:
        return [str(path)] if key == "distill.teacher_ckpts" else str(path)

    assert compared(key, value(Path("/elsewhere/teacher")), value(teacher)) == []
    assert compared(key, value(teacher), value(Path("/elsewhere/teacher"))) == []
    assert compared(key, value(Path("/elsewhere/other")), value(teacher)) == [key]
    copy = shutil.copytree(teacher, tmp_path / "there" / "teacher")
    assert compared(key, value(copy), value(teacher)) == []
    assert compared(key, value(teacher), type(value(teacher))()) == [key]


@pytest.mark.parametrize("changed", [b"abd", b"abcd", None])
def test_two_teachers_of_the_same_name_differ(teacher: Path, tmp_path: Path, changed: bytes | None) -> None:
    key, other = "distill.teacher_ckpts", shutil.copytree(teacher, tmp_path / "there" / "teacher")
    if changed is None:
        (other / "weights" / "model.bin").unlink()
    else:
        (other / "weights" / "model.bin").write_bytes(changed)
    assert compared(key, [str(other)], [str(teacher)]) == [key]
    assert compared(key, [str(teacher), str(other)], [str(teacher), str(other)]) == []
    assert compared(key, [str(teacher), str(other)], [str(other), str(teacher)]) == [key]


def test_files_of_logits_are_compared(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "logits.safetensors").write_bytes(content)
    a, b, c = ([str(tmp_path / name / "logits.safetensors")] for name in "abc")
    assert compared("distill.teacher_ckpts", a, b) == []
    assert compared("distill.teacher_ckpts", a, c) == ["distill.teacher_ckpts"]
