"""Files and folders with known content, for the tests of `data/files.py`."""

from collections.abc import Callable
from pathlib import Path

from ascmodels.students import StudentConfig, build_student
from ascmodels.teachers import TeacherModelConfig, build_teacher
from data.files import (
    replace_bytes,
    replace_text,
    replacing,
)

OLD, NEW = b"old" * 1000, b"new" * 1000


def by_library(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


FILE_WRITERS: dict[str, Callable[[Path, bytes], None]] = {
    "replace_bytes": replace_bytes,
    "replace_text": lambda path, data: replace_text(path, data.decode()),
    "replacing": by_library,
}


def fill(data: bytes) -> Callable[[Path], None]:
    """Return a function that writes a file, a file in a sub-folder, and an empty file to a folder."""

    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "a").write_bytes(data)
        (folder / "inner" / "b").write_bytes(data * 2)
        (folder / "empty").touch()

    return write


def content(data: bytes, folder: str = "folder") -> dict[str, bytes]:
    return {f"{folder}/a": data, f"{folder}/inner/b": data * 2, f"{folder}/empty": b""}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def student():
    return build_student(StudentConfig(base_channels=8, n_blocks=(1,), strides=()))


def teacher():
    return build_teacher(TeacherModelConfig(hidden_size=16, layers=1, heads=2), 10, 32, 65)


class Stop(BaseException):
    """An exception that is no Exception, like KeyboardInterrupt."""


def leave(folder: Path, name: str, text: str = "") -> None:
    (folder / name).mkdir()
    (folder / name / "a").write_text(text)
