"""Errors of a disk: each message says what to do."""

import errno
import os
from pathlib import Path

import pytest

from trainables import run_training
from trainables.outputs.disk import disk_message


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for action in ((tmp_path / "file").mkdir, (tmp_path / "file" / "x").mkdir):
        with pytest.raises(OSError) as error:
            action()
        message = disk_message(error.value)
        assert message.startswith(f"{error.value}; ") and "remove the file" in message


def test_a_full_disk(small_disk: Path) -> None:
    with pytest.raises(OSError) as error:
        (small_disk / "x").write_bytes(bytes(1_000_000))
    assert error.value.errno == errno.ENOSPC
    assert "free space" in disk_message(error.value)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        OSError("x"),
        OSError(errno.ENOSPC, "a text with its own remedy"),
        OSError(errno.EALREADY, os.strerror(errno.EALREADY)),
    ],
)
def test_other_messages_are_unchanged(error: Exception) -> None:
    assert disk_message(error) == str(error)


def test_a_store_that_does_not_answer() -> None:
    message = disk_message(OSError("When listing objects: AWS Error NETWORK_CONNECTION during ListObjectsV2 operation"))
    assert "credentials" in message


def test_a_storage_that_is_a_file(tmp_path: Path, tiny_tau: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run_training.main([f"--dataset_dir={tiny_tau}", "--storage", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "file") in line and "remove the file" in line
