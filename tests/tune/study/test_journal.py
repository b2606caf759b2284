"""The journal: durability of events, segments, formats, the state of trials."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.power_loss import Disk
from tests.support.tune.journals import TIME, commands, created, epoch, names, newest, opened, started, write_old
from tune.study import writer as writer_module
from tune.study.events import (
    PointMeasured,
    TrialEnded,
    TrialRestored,
)
from tune.study.journal import next_generation, read_events, read_state, segments
from tune.study.lease import StudyLost
from tune.study.log import StudyLog
from tune.study.state import StudyState
from tune.study.writer import Journal


def test_an_event_is_on_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Including the first event of a new segment, whose directory entry must be on disk."""
    monkeypatch.setattr(writer_module, "SEGMENT_BYTES", 400)
    disk = Disk(tmp_path, monkeypatch)
    journal, last = opened(tmp_path / "study"), 0
    for i in range(12):
        journal.append((started(f"{i}"), started(f"{i}, too")))
        assert disk.surely() == disk.now()
        assert len(disk.calls) > last
        last = len(disk.calls)
    assert len(segments(tmp_path / "study")) > 3
    fsyncs = [i for i, call in enumerate(disk.calls) if call == ("fsync", "study/journal")]
    assert len(fsyncs) == len(segments(tmp_path / "study"))
    assert len(commands(tmp_path / "study")) == 24


def test_no_byte_is_acknowledged_before_its_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[int, int] = {}  # inode -> size at its last fsync
    fsync = os.fsync

    def recorded(handle: int) -> None:
        fsync(handle)
        sizes[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    monkeypatch.setattr(os, "fsync", recorded)
    journal = opened(tmp_path)
    for i in range(5):
        journal.append((started(f"{i}"),))
        assert sizes[newest(tmp_path).stat().st_ino] == newest(tmp_path).stat().st_size


def test_events_of_one_append_are_written_together_and_in_order(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(())
    journal.append((created(), epoch(1)))
    journal.append((epoch(2),))
    assert [e.kind for e in read_events(tmp_path)] == ["trial_created", "epoch_reported", "epoch_reported"]
    assert read_state(tmp_path).trials["t0000"].epochs == 2


def test_what_cannot_be_written_is_not_applied(tmp_path: Path) -> None:
    lost = StudyLost("another driver has it")

    def check() -> None:
        if journal is not None:
            raise lost

    journal: Journal | None = None
    journal = opened(tmp_path, check=check)
    log = StudyLog(journal.append)
    before = newest(tmp_path).read_bytes()
    with pytest.raises(StudyLost):
        log.add(created())
    assert not log.state.trials
    assert newest(tmp_path).read_bytes() == before


def test_segments_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SEGMENT_BYTES", 300)
    for driver in range(3):
        journal = opened(tmp_path)
        for i in range(8):
            journal.append((started(f"{driver}.{i}"),))
        journal.close()
    assert commands(tmp_path) == [f"{driver}.{i}" for driver in range(3) for i in range(8)]
    assert {name[:7] for name in names(tmp_path)} == {"000001-", "000002-", "000003-"}
    assert len(names(tmp_path)) > 6
    for segment in segments(tmp_path)[:-1]:
        assert segment.path.stat().st_size < 300 + 200


def test_the_segment_after_the_9999th(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SEGMENT_BYTES", 1)
    journal = opened(tmp_path)
    journal._number = 9_996
    for i in range(6):
        journal.append((started(f"{i}"),))
    assert names(tmp_path)[-2:] == ["000001-10001.jsonl", "000001-10002.jsonl"]
    assert commands(tmp_path) == [f"{i}" for i in range(6)]


def test_segments_sort_as_numbers(tmp_path: Path) -> None:
    expected = ["998.jsonl", "999.jsonl", "1000.jsonl", "1001.jsonl"]
    expected += [f"{n}.jsonl" for n in ("001003-9999", "001003-10000", "001004-0001", "999999-0002", "1000000-0001")]
    (tmp_path / "journal").mkdir()
    for name in random.Random(0).sample([*expected, "note.txt", "a-1.jsonl"], len(expected) + 2):
        (tmp_path / "journal" / name).touch()
    assert names(tmp_path) == expected
    assert next_generation(tmp_path) == 1_000_001


def test_drivers_beyond_the_thousandth_of_format_1(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    for number in range(997, 1_003):
        event = TIME | {"event": "run", "command": f"{number}"}
        (tmp_path / "journal" / f"{number:03d}.jsonl").write_text(json.dumps(event) + "\n")
    assert commands(tmp_path) == [f"{n}" for n in range(997, 1_003)]


def test_a_journal_of_format_1_is_continued_in_format_2(tmp_path: Path) -> None:
    write_old(tmp_path)
    state = read_state(tmp_path)
    assert (state.drivers, state.trials["t0000"].epochs, state.trials["t0000"].outcome) == (2, 1, "crashed")
    journal = opened(tmp_path)
    journal.append((started("third"),))
    journal.append((created("t0001"), epoch(1, "t0001")))
    assert names(tmp_path) == ["000.jsonl", "001.jsonl", "000003-0001.jsonl"]
    assert commands(tmp_path) == ["python tune/run.py", "again", "third"]
    assert read_state(tmp_path).trials["t0001"].epochs == 1
    with (tmp_path / "journal" / "001.jsonl").open("a") as stream:  # by a paused driver of the older version
        stream.write(json.dumps(TIME | {"event": "run", "command": "late"}) + "\n")
    assert commands(tmp_path) == ["python tune/run.py", "again", "third"]


def test_what_a_journal_says_of_a_trial(tmp_path: Path) -> None:
    state = StudyState()
    log = StudyLog(opened(tmp_path).append)
    log.attach(state)
    log.add(created(), epoch(1), epoch(2), epoch(3))
    log.add(TrialRestored(trial="t0000", epochs=1), epoch(2), epoch(3))  # both epochs were trained before
    trial = state.trials["t0000"]
    assert (trial.epochs, trial.repeated, trial.restores, trial.status) == (3, 2, 1, "running")
    point = {"step": 0, "macs": 1, "confusion": [[1]], "widths": {"stem": [8]}}
    log.add(epoch(4), PointMeasured(trial="t0000", point=point), PointMeasured(trial="t0000", point=point))
    log.add(TrialEnded(trial="t0000", outcome="completed"))
    assert (trial.status, trial.repeated, trial.figures) == ("complete", 2, {"val_macro_avg_acc": 0.4})
    kept = {"step": 0, "macs": 1, "search_s": trial.points[0]["search_s"], "search_epochs": 4}
    assert trial.points == [kept]
    assert read_state(tmp_path) == state


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("completed", "complete"), ("stopped", "stopped early"), ("failed", "failed"), ("crashed", "crashed")],
)
def test_how_a_trial_ends(tmp_path: Path, outcome: Any, status: str) -> None:
    ended = TrialEnded(trial="t0000", outcome=outcome, reason="loss is nan")
    opened(tmp_path).append((created(), epoch(1), ended))
    state = read_state(tmp_path)
    assert (state.trials["t0000"].status, state.trials["t0000"].reason) == (status, "loss is nan")
    assert state.counts() == {status: 1, "rejected": 0}
    assert [trial.name for trial in state.crashed] == (["t0000"] if outcome == "crashed" else [])
