"""The journal: what a kill, a full disk and a storage that is away leave of it; and the writer's small parts."""

import json
import os
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from data.files import seal
from trainables.storage import TrialCheckpoints
from tune import journal as journal_module
from tune.journal import Journal, read_events, read_log, segments
from tune.writer import append_row, catch_up


def add_trial(journal: Journal, name: str = "t0000") -> None:
    journal.add("trial", trial=name, config_id=name, replicate=0, params={}, values={})


def add_result(journal: Journal, epochs: int, **more) -> None:
    fields = {"stage": 0, "epochs": epochs, "val_macro_avg_acc": epochs / 10, "done": False, "finished": False}
    journal.add("result", trial="t0000", **fields | more)


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    add_trial(journal)
    add_result(journal, 1)
    whole = journal.path.read_bytes()
    add_result(journal, 2)
    journal.path.write_bytes(journal.path.read_bytes()[:-5])
    again = Journal(tmp_path)
    assert again.log.trials["t0000"].epochs == 1
    add_result(again, 2)
    assert [p.name for p in segments(tmp_path)] == ["000.jsonl", "001.jsonl"]
    assert len(list(read_events(tmp_path))) == whole.count(b"\n") + 1
    assert read_log(tmp_path).trials["t0000"].epochs == 2


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    add_trial(journal)
    add_result(journal, 1)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0][:-9] + b"\n" + lines[1])
    with pytest.raises(ValueError, match=r"000\.jsonl, line 1 is damaged"):
        read_log(tmp_path)


def test_what_a_log_tells_of_a_trial(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    add_trial(journal)
    log = journal.log.trials["t0000"]
    for epochs in (1, 2, 3):
        add_result(journal, epochs)
    journal.add("restore", trial="t0000", epochs=1)
    add_result(journal, 2)  # these two were trained before
    add_result(journal, 3)
    assert (log.epochs, log.repeated, log.restores, log.status) == (3, 2, 1, "running")
    add_result(journal, 4, point={"step": 0, "macs": 1, "confusion": [[1]]}, done=True, finished=True)
    assert (log.status, log.repeated) == ("complete", 2)
    assert log.points == [{"step": 0, "macs": 1}]
    assert read_log(tmp_path).trials["t0000"] == log


@pytest.mark.parametrize(("fields", "status"), [({}, "stopped early"), ({"failure": "loss is nan"}, "failed")])
def test_how_a_trial_ends(tmp_path: Path, fields: dict, status: str) -> None:
    journal = Journal(tmp_path)
    add_trial(journal)
    add_result(journal, 1, done=True, **fields)
    log = journal.log.trials["t0000"]
    assert (log.status, log.failure, log.crashed) == (status, fields.get("failure"), False)
    journal.add("end", trial="t0000", status="failed", failure="later")  # an end that came first stands
    assert log.status == status
    assert journal.log.counts() == {status: 1, "rejected": 0}


def test_a_crash_is_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    add_trial(journal)
    journal.add("end", trial="t0000", status="failed", failure="the node died")
    assert journal.log.trials["t0000"].crashed
    journal.add("retry", trial="t0000")
    assert journal.log.trials["t0000"].status == "running"


@pytest.mark.slow
def test_driver_waits_for_a_storage_that_is_away(tmp_path: Path) -> None:
    told: list[str] = []
    study = tmp_path / "study"
    journal = Journal(study, told.append)
    add_trial(journal)
    study.rename(tmp_path / "away")
    back = threading.Timer(1.5, lambda: (tmp_path / "away").rename(study))
    back.start()
    add_result(journal, 1)
    assert read_log(study).trials["t0000"].epochs == 1
    assert "cannot be written" in told[0]
    assert told[1:] == ["the storage is back"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_loses_nothing_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mount.stderr.strip()}")
    try:
        journal = Journal(tmp_path / "study", lambda told: None)
        add_trial(journal)
        filler = tmp_path / "filler"
        with filler.open("wb", buffering=0) as stream, suppress(OSError):
            while True:
                stream.write(b"x" * 1024)
        before = journal.path.read_bytes()
        monkeypatch.setattr(journal_module, "PATIENCE_S", 0.5)
        with pytest.raises(OSError, match="No space left"):
            while True:
                before = journal.path.read_bytes()
                add_result(journal, 1, padding="y" * 3000)
        assert journal.path.read_bytes() == before
        assert before.endswith(b"\n")
        monkeypatch.setattr(journal_module, "PATIENCE_S", 30.0)
        threading.Timer(1.0, filler.unlink).start()
        add_result(journal, 2, padding="y" * 3000)
        assert read_log(tmp_path / "study").trials["t0000"].epochs == 2
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_what_a_killed_driver_had_no_time_to_write(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    add_trial(journal)
    figures = {"macs": 1, "class_acc": {"bus": 0.5}, "device_acc": {}, "group_acc": {}, "confusion": [[1]]}
    measured = [figures | {"step": k, "checkpoint": f"step{k}"} for k in (0, 1)]
    add_result(journal, 1, point=measured[0])
    add_result(journal, 2, point=measured[1], done=True, finished=True)
    events = list(read_events(tmp_path))
    catch_up(tmp_path, events, journal.log, {"train.lr": 0.1, "trial": "of another"})
    info = json.loads((tmp_path / "experiments" / "t0000" / "info.json").read_text())
    assert (info["status"], info["points"]) == ("complete", measured)
    assert info["config"] == {"train.lr": 0.1, "replicate": 0}
    assert (tmp_path / "points.csv").read_text().count("t0000/step") == 2


def test_rows_are_appended_after_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "t0000" / "results.csv"
    append_row(path, {"epochs": 1, "val_loss": 0.5})
    with path.open("a") as stream:
        stream.write("2,0.")
    append_row(path, {"epochs": 2, "val_loss": 0.25})
    append_row(path, {"epochs": 2, "val_loss": 0.25})  # trained again after a kill
    assert path.read_text() == "epochs,val_loss\n1,0.5\n2,0.25\n"
    shutil.rmtree(path.parent)


def test_half_written_checkpoints_never_displace_whole_ones(tmp_path: Path) -> None:
    for i in range(5):
        folder = tmp_path / "run000" / "t0000" / f"checkpoint_{i:06d}"
        (folder / "student").mkdir(parents=True)
        (folder / "student" / "weights").write_text("w" * 10)
        seal(folder)
        if i > 2:  # as a full disk leaves them
            (folder / "student" / "weights").write_text("w")
    checkpoints = TrialCheckpoints(str(tmp_path), "t0000")
    checkpoints.clear(1)
    assert [name[-1] for name in checkpoints.newest_first()] == ["4", "3", "2"]
    assert checkpoints.load_newest(lambda folder: folder.name, lambda told: None) == "checkpoint_000002"
