"""Files and folders written by `data/files.py` and its callers, after a power loss at any moment."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analysis.outputs import write_report
from ascmodels.checkpoint import save_student
from ascmodels.teachers import save_teacher
from data import tau
from data.cache import open_cache
from data.files import (
    fsync_folder,
    fsync_tree,
    make_folder,
    replace_bytes,
    replace_folder,
)
from tests.support.data.contents import FILE_WRITERS, NEW, OLD, by_library, content, fill, student, teacher
from tests.support.power_loss import TORN, Disk, visible
from trainables.outputs.records import write_info, write_rows
from trainables.outputs.storage import Store
from trainables.teachers.logits import save_logits


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
    """The disk model reports missing fsyncs; without that, the test above would always pass."""
    (tmp_path / "file").write_bytes(OLD)
    disk = Disk(tmp_path, monkeypatch)
    (tmp_path / "part").write_bytes(NEW)
    (tmp_path / "part").replace(tmp_path / "file")
    assert disk.surely() == {"file": OLD}  # the rename is lost
    assert disk.at_most() == {"file": TORN}  # the rename is on disk, the content is not
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
    assert visible(disk.surely()) == disk.now() == content(NEW)  # hidden parts of the old folder may remain
    for state in disk.states:
        files = visible(state)
        assert files in ({}, before, content(NEW))
        if before and not files:  # between two renames: the old folder is complete under its temporary name
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
    from analysis import outputs
    from analysis.figures import static
    from analysis.page import html as report_page
    from analysis.page import markdown
    from tests.support.analysis.outputs import study_of
    from tests.support.example_study import rows

    study = replace(study_of(rows()), path=tmp_path)
    monkeypatch.setattr(outputs, "load_study", lambda _: study)
    for owner, name in ((outputs, "front_csv"), (static, "png"), (static, "svg")):
        monkeypatch.setattr(owner, name, lambda _: NEW)
    for module, name in ((report_page, "page"), (markdown, "markdown")):
        monkeypatch.setattr(module, name, lambda _: NEW.decode())
    disk = Disk(tmp_path, monkeypatch)
    paths = write_report(tmp_path)
    assert disk.surely() == disk.now() == {path.name: NEW for path in paths.values()}
    first = [name for name, _ in disk.calls].index("replace")
    assert len({path for name, path in disk.calls[:first] if name == "fsync"}) == len(paths) == 5

    def full_disk(_):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(report_page, "page", full_disk)
    monkeypatch.setattr(static, "png", lambda _: OLD)
    with pytest.raises(OSError):
        write_report(tmp_path)
    assert disk.now() == {path.name: NEW for path in paths.values()}
