"""`data/files.py`: what an error, a kill or a second process can leave."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from data import files
from data.files import (
    locked,
    mend_folder,
    remove_temporary,
    replace_bytes,
    replace_folder,
    replace_text,
    replacing,
)
from tests.support import file_workers
from tests.support.data.contents import FILE_WRITERS, NEW, OLD, Stop, content, fill, leave, names
from trainables.outputs.storage import Store


@pytest.mark.parametrize("error", [OSError, Stop])
def test_an_error_leaves_the_old_file_and_no_temporary_one(error, tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(error), replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(NEW)
        raise error
    with pytest.raises(error), replacing(tmp_path / "file"):
        raise error
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        pass  # nothing was written
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == OLD
    with pytest.raises(UnicodeEncodeError):
        replace_text(tmp_path / "file", "\ud800")
    with pytest.raises(FileNotFoundError):
        replace_bytes(tmp_path / "gone" / "file", NEW)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failing_system_call_leaves_the_old_file(call, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(OLD)

    def fail(*_):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, call, fail)
    for write in FILE_WRITERS.values():
        with pytest.raises(OSError):
            write(tmp_path / "file", NEW)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == OLD


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_error_at_either_rename_leaves_the_old_folder(fails_at, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    fill(OLD)(tmp_path / "folder")
    rename, count = os.rename, iter(range(1, 100))

    def fail(*arguments) -> None:
        if next(count) == fails_at:
            raise Stop
        rename(*arguments)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(Stop):
        replace_folder(tmp_path / "folder", fill(NEW))
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "a").read_bytes() == OLD

    def write(folder: Path) -> None:
        fill(NEW)(folder)
        raise Stop

    with pytest.raises(Stop):
        replace_folder(tmp_path / "folder", write)
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "a").read_bytes() == OLD


def test_text_is_utf8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    replace_text(tmp_path / "file", "Zürich \N{SNOWMAN}\n")
    assert (tmp_path / "file").read_bytes() == "Zürich \N{SNOWMAN}\n".encode()


@pytest.mark.slow
def test_two_writers_and_a_reader(tmp_path, fresh_processes):
    (tmp_path / "file").write_text("o" * 100_000)
    (tmp_path / "number").write_text("0")
    writers = [(tmp_path / "file", letter) for letter in "xy"]
    readers = [(tmp_path / "file", tmp_path / f"seen{i}") for i in range(2)]
    jobs = [(file_workers.replace_often, w) for w in writers] + [(file_workers.read_often, r) for r in readers]
    assert fresh_processes(file_workers.call, *jobs) == [0] * 4
    for _, result in readers:
        assert set(json.loads(result.read_text())) <= {f"100000 {letter}" for letter in "oxy"}
    assert names(tmp_path) == ["file", "number", "seen0", "seen1"]


@pytest.mark.slow
@pytest.mark.parametrize("by_file", [True, False])
def test_a_lock_excludes_other_processes_and_ends_with_its_own(by_file, tmp_path, fresh_processes):
    (tmp_path / "number").write_text("0")
    assert fresh_processes(file_workers.count_up, (tmp_path, by_file), (tmp_path, by_file)) == [0, 0]
    assert (tmp_path / "number").read_text() == "400"
    path = tmp_path / "lock" if by_file else tmp_path
    assert fresh_processes(file_workers.die_holding, (path,)) == [-9]
    with locked(path, wait=False), pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    with pytest.raises(Stop), locked(path, wait=False):
        raise Stop
    with locked(path, wait=False):
        pass
    with pytest.raises(FileNotFoundError), locked(tmp_path / "gone" / "lock"):
        pass


def test_who_waits_long_for_a_lock_says_for_which(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "SILENT_S", 0.2)
    acquired = threading.Event()

    def second() -> None:
        with locked(tmp_path / "lock"):
            acquired.set()

    with locked(tmp_path / "lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        while not caplog.records:
            time.sleep(0.01)
        assert [record.args for record in caplog.records] == [(tmp_path / "lock",)] and not acquired.is_set()
    waiting.join()
    assert acquired.is_set() and len(caplog.records) == 1


def test_a_lock_does_not_empty_the_file(tmp_path):
    (tmp_path / "lock").write_text("of somebody else")
    with locked(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").read_text() == "of somebody else"


def test_a_kill_leaves_the_old_content_and_what_it_left_can_be_removed(tmp_path, fresh_processes):
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    (tmp_path / ".file.hidden").write_text("of somebody else")
    assert fresh_processes(file_workers.die_replacing, (tmp_path / "file",)) == [-9]
    assert fresh_processes(file_workers.die_between_renames, (tmp_path / "folder",)) == [-9]
    assert (tmp_path / "file").read_bytes() == OLD
    assert len(names(tmp_path)) == 5  # file, hidden file, temporary file, old and new folder
    mend_folder(tmp_path / "folder")
    assert (tmp_path / "folder" / "a").read_text() == "old"
    assert len(names(tmp_path)) == 4
    remove_temporary(tmp_path, "other")
    assert len(names(tmp_path)) == 4
    remove_temporary(tmp_path, "fi")
    assert names(tmp_path) == [".file.hidden", "file", "folder"]


def test_an_interrupted_pull_is_repeated_and_leaves_no_partial_folder(tmp_path, fresh_processes):
    (tmp_path / "store" / "x").mkdir(parents=True)
    fill(NEW)(tmp_path / "store" / "x")
    uri = str(tmp_path / "store")
    arguments = [(uri, "x", tmp_path / "here", 1), (uri, "x/a", tmp_path / "a", 0)]
    assert fresh_processes(file_workers.die_pulling, *arguments) == [-9, -9]
    assert not (tmp_path / "here").exists()
    assert not (tmp_path / "a").exists()
    Store(uri).pull("x", tmp_path / "here")
    Store(uri).pull("x/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "here").rglob("*") if p.is_file()} == set(
        content(NEW, "here")
    )
    (tmp_path / "store" / "x" / "a").write_bytes(OLD)  # another machine has continued the study
    (tmp_path / "here" / "own").write_text("stays")
    Store(uri).pull("x", tmp_path / "here")
    assert (tmp_path / "here" / "a").read_bytes() == OLD
    assert names(tmp_path / "here") == ["a", "empty", "inner", "own"]


def test_the_newest_of_several_old_folders_is_restored(tmp_path):
    leave(tmp_path, ".state.00000002.old", "older")
    leave(tmp_path, ".state.00000001.old", "newer")
    leave(tmp_path, ".state.00000003.tmp")
    for name in (".states.00000003.tmp", ".state.x.00000003.tmp", ".state.3"):  # names that belong to other folders
        leave(tmp_path, name)
    os.utime(tmp_path / ".state.00000002.old", ns=(1, 1))
    mend_folder(tmp_path / "state")
    assert (tmp_path / "state" / "a").read_text() == "newer"
    remaining = [".state.3", ".state.x.00000003.tmp", ".states.00000003.tmp", "state"]
    assert names(tmp_path) == remaining
    leave(tmp_path, ".state.00000004.old", "a successor is there")
    mend_folder(tmp_path / "state")
    assert (tmp_path / "state" / "a").read_text() == "newer"
    mend_folder(tmp_path / "none")
    mend_folder(tmp_path / "none" / "none")
    assert names(tmp_path) == remaining


def test_removal_does_not_follow_links(tmp_path):
    leave(tmp_path, "precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".waveforms-x.00000001.tmp").symlink_to(tmp_path / "precious")
    remove_temporary(tmp_path / "cache", "waveforms-")
    assert names(tmp_path / "cache") == []
    assert names(tmp_path / "precious") == ["a"]
