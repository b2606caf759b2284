"""`data/files.py` and its callers: what a power loss, an error, a kill or a second process can leave."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.report import write_report
from ascmodels.checkpoint import CheckpointError, save_student
from ascmodels.students import StudentConfig, build_student
from ascmodels.teachers import TeacherModelConfig, build_teacher, save_teacher
from data import files, tau
from data.cache import open_cache
from data.files import (
    SEAL,
    SealError,
    check_seal,
    fsync_folder,
    fsync_tree,
    locked,
    make_folder,
    mend_folder,
    remove_temporary,
    replace_bytes,
    replace_folder,
    replace_text,
    replacing,
    seal,
)
from tests.support import file_workers
from tests.support.power_loss import TORN, Disk, visible
from trainables.outputs.records import write_info, write_rows
from trainables.outputs.storage import Store
from trainables.teachers.logits import save_logits

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
    """Writes a folder with a file, a file in a folder, and an empty file."""

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


# --- power loss ---


@pytest.mark.parametrize("writer", FILE_WRITERS)
@pytest.mark.parametrize("before", [{}, {"file": OLD}], ids=["absent", "present"])
def test_a_file_is_old_or_new_at_any_power_loss_and_new_at_the_end(writer, before, tmp_path, monkeypatch):
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    disk = Disk(tmp_path, monkeypatch)
    FILE_WRITERS[writer](tmp_path / "file", NEW)
    assert disk.surely() == disk.now() == {"file": NEW}
    states = [visible(state) for state in disk.states]
    assert all(state in (before, {"file": NEW}) for state in states)
    assert {len(state) for state in states} == ({0, 1} if not before else {1})
    (temporary, replaced), (_, last) = disk.calls[0], disk.calls[-1]
    assert [name for name, _ in disk.calls if name != "unlink"] == ["fsync", "replace", "fsync"]
    assert (temporary, disk.calls[1], last) == ("fsync", ("replace", "file"), ".")
    assert replaced.startswith(".file.")


def test_the_model_sees_what_is_missing(tmp_path, monkeypatch):
    """The test above would pass with a model that takes everything for written."""
    (tmp_path / "file").write_bytes(OLD)
    disk = Disk(tmp_path, monkeypatch)
    (tmp_path / "part").write_bytes(NEW)
    (tmp_path / "part").replace(tmp_path / "file")
    assert disk.surely() == {"file": OLD}  # the rename is lost
    assert disk.at_most() == {"file": TORN}  # the rename is there, the content is not
    fsync_folder(tmp_path)
    assert disk.surely() == {"file": TORN}
    fsync_tree(tmp_path)
    assert disk.surely() == {"file": NEW}
    (tmp_path / "file").write_bytes(OLD)
    assert disk.surely() == {"file": TORN}


@pytest.mark.parametrize("before", [{}, content(OLD)], ids=["absent", "present"])
def test_a_folder_is_whole_or_recoverable_at_any_power_loss(before, tmp_path, monkeypatch):
    if before:
        (tmp_path / "folder").mkdir()
        fill(OLD)(tmp_path / "folder")
    disk = Disk(tmp_path, monkeypatch)
    replace_folder(tmp_path / "folder", fill(NEW))
    assert visible(disk.surely()) == disk.now() == content(NEW)  # a part of the old one may be left, hidden
    for state in disk.states:
        shown = visible(state)
        assert shown in ({}, before, content(NEW))
        if before and not shown:  # between two renames: the old one is complete under its other name
            (old,) = {path.split("/")[0] for path in state if path.split("/")[0].endswith(".old")}
            assert content(OLD, old).items() <= state.items()


def test_created_parents_are_on_disk(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    replace_folder(tmp_path / "study" / "experiments" / "t0000" / "folder", fill(NEW))
    assert disk.surely() == content(NEW, "study/experiments/t0000/folder")
    make_folder(tmp_path / "study" / "journal")
    make_folder(tmp_path / "study" / "journal")
    by_library(tmp_path / "study" / "journal" / "file", NEW)
    assert disk.surely()["study/journal/file"] == NEW
    monkeypatch.chdir(tmp_path)
    make_folder(Path("relative") / "inner")
    by_library(Path("relative") / "inner" / "file", NEW)
    assert disk.surely()["relative/inner/file"] == NEW
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "study" / "journal" / "file")


def test_a_seal_is_never_on_disk_before_what_it_names(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    fill(NEW)(tmp_path)
    seal(tmp_path, epochs=3)
    assert disk.surely() == disk.now()
    sealed = [state for state in disk.states if SEAL in state]
    assert sealed
    expected = {path.removeprefix("folder/"): data for path, data in content(NEW).items()}
    assert all(expected.items() <= state.items() and state[SEAL] != TORN for state in sealed)


def test_a_file_system_that_cannot_fsync_folders_is_accepted_and_other_errors_are_not(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(number: int) -> Callable[[int], None]:
        def refuse_folders(handle: int) -> None:
            if Path(f"/proc/self/fd/{handle}").is_dir():
                raise OSError(number, os.strerror(number))
            fsync(handle)

        return refuse_folders

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    replace_bytes(tmp_path / "file", NEW)
    replace_folder(tmp_path / "folder", fill(NEW))
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    for write in (
        lambda: replace_bytes(tmp_path / "file", OLD),
        lambda: replace_folder(tmp_path / "folder", fill(OLD)),
    ):
        with pytest.raises(OSError) as error:
            write()
        assert error.value.errno == errno.EIO


WRITERS: dict[str, Callable[[Path], object]] = {
    "save_student": lambda folder: save_student(folder / "new" / "step0", student(), {}),
    "save_teacher": lambda folder: save_teacher(folder / "teacher", teacher(), {}),
    "save_logits": lambda folder: save_logits(folder / "logits", ["a"], torch.zeros(1, 10)),
    "write_rows": lambda folder: write_rows(folder / "rows.csv", [{"a": 1}]),
    "write_info": lambda folder: write_info(folder / "experiments" / "t0000", {"a": 1}),
    "pull a file": lambda folder: Store(str(folder / "store")).pull("x/a", folder / "here" / "a"),
    "pull a folder": lambda folder: Store(str(folder / "store")).pull("x", folder / "here" / "x"),
}


def student():
    return build_student(StudentConfig(base_channels=8, n_blocks=(1,), strides=()))


def teacher():
    return build_teacher(TeacherModelConfig(hidden_size=16, layers=1, heads=2), 10, 32, 65)


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_is_on_disk_when_the_call_returns(writer, tmp_path, monkeypatch):
    (tmp_path / "store" / "x").mkdir(parents=True)
    fill(NEW)(tmp_path / "store" / "x")
    disk = Disk(tmp_path, monkeypatch)
    n_files = len(disk.now())
    WRITERS[writer](tmp_path)
    assert disk.surely() == disk.now()
    assert len(disk.now()) > n_files
    assert TORN not in [data for state in disk.states for data in visible(state).values()]


def test_cache_and_downloaded_split_are_on_disk(tiny_tau, tmp_path, monkeypatch):
    chosen = [f"audio/{path.name}" for path in sorted((tiny_tau / "audio").iterdir())[:3]]
    disk = Disk(tmp_path, monkeypatch)
    open_cache(tiny_tau, chosen, 8000, tmp_path / "cache", progress=False)
    monkeypatch.setattr(tau, "SPLIT_URL", f"file://{tiny_tau}/split_setup/")
    path = tau.split_file(tmp_path, "split25", download_dir=tmp_path / "splits")
    assert path.read_bytes() == (tiny_tau / "split_setup" / "split25.csv").read_bytes()
    assert visible(disk.surely()) == visible(disk.now())
    assert len(visible(disk.now())) == 5
    assert TORN not in [data for state in disk.states for data in visible(state).values()]


def test_all_parts_of_a_report_are_on_disk_before_the_first_is_replaced(tmp_path, monkeypatch):
    from analysis import report
    from analysis.page import figure_png
    from analysis.page import html as report_page

    class StudyStub:
        path = tmp_path

    monkeypatch.setattr(report, "load_study", lambda _: StudyStub)
    for owner, name in ((report, "front_csv"), (figure_png, "png")):
        monkeypatch.setattr(owner, name, lambda _: NEW)
    monkeypatch.setattr(report_page, "page", lambda _: NEW.decode())
    disk = Disk(tmp_path, monkeypatch)
    paths = write_report(tmp_path)
    assert disk.surely() == disk.now() == {path.name: NEW for path in paths.values()}
    first = [name for name, _ in disk.calls].index("replace")
    assert len({path for name, path in disk.calls[:first] if name == "fsync"}) == 3

    def full_disk(_):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(report_page, "page", full_disk)
    monkeypatch.setattr(figure_png, "png", lambda _: OLD)
    with pytest.raises(OSError):
        write_report(tmp_path)
    assert disk.now() == {path.name: NEW for path in paths.values()}


# --- errors ---


class Stop(BaseException):
    """Like KeyboardInterrupt."""


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


# --- killed and concurrent processes ---


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
    got = threading.Event()

    def second() -> None:
        with locked(tmp_path / "lock"):
            got.set()

    with locked(tmp_path / "lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        while not caplog.records:
            time.sleep(0.01)
        assert [record.args for record in caplog.records] == [(tmp_path / "lock",)] and not got.is_set()
    waiting.join()
    assert got.is_set() and len(caplog.records) == 1


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
    assert len(names(tmp_path)) == 5  # the file, its temporary one, the folder's old and new one
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
    (tmp_path / "store" / "x" / "a").write_bytes(OLD)  # another machine went on
    (tmp_path / "here" / "own").write_text("stays")
    Store(uri).pull("x", tmp_path / "here")
    assert (tmp_path / "here" / "a").read_bytes() == OLD
    assert names(tmp_path / "here") == ["a", "empty", "inner", "own"]


def leave(folder: Path, name: str, text: str = "") -> None:
    (folder / name).mkdir()
    (folder / name / "a").write_text(text)


def test_the_newest_of_several_old_folders_is_restored(tmp_path):
    leave(tmp_path, ".state.00000002.old", "older")
    leave(tmp_path, ".state.00000001.old", "newer")
    leave(tmp_path, ".state.00000003.tmp")
    for name in (".states.00000003.tmp", ".state.x.00000003.tmp", ".state.3"):  # of other folders
        leave(tmp_path, name)
    os.utime(tmp_path / ".state.00000002.old", ns=(1, 1))
    mend_folder(tmp_path / "state")
    assert (tmp_path / "state" / "a").read_text() == "newer"
    kept = [".state.3", ".state.x.00000003.tmp", ".states.00000003.tmp", "state"]
    assert names(tmp_path) == kept
    leave(tmp_path, ".state.00000004.old", "a successor is there")
    mend_folder(tmp_path / "state")
    assert (tmp_path / "state" / "a").read_text() == "newer"
    mend_folder(tmp_path / "none")
    mend_folder(tmp_path / "none" / "none")
    assert names(tmp_path) == kept


def test_removal_does_not_follow_links(tmp_path):
    leave(tmp_path, "precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".waveforms-x.00000001.tmp").symlink_to(tmp_path / "precious")
    remove_temporary(tmp_path / "cache", "waveforms-")
    assert names(tmp_path / "cache") == []
    assert names(tmp_path / "precious") == ["a"]


# --- seals ---


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
