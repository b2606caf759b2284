"""The tables of a study: true at every moment, written again from the journal when they are lost or damaged."""

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulated import RandomStudy, fill, point
from tune.reporting import tables as tables_module
from tune.reporting.tables import CURVE, StudyTables, rebuild_tables, replay
from tune.study.events import (
    DriverStarted,
    EpochReported,
    Event,
    PointMeasured,
    TrialCreated,
    TrialEnded,
    TrialRestored,
    TrialRetried,
)
from tune.study.journal import Journal, Reading
from tune.study.log import StudyLog
from tune.study.waiting import Patience

OUTCOMES = {"t0000": "completed", "t0001": "stopped", "t0002": "failed", "t0003": "crashed", "t0004": None}
CONFIG = {"train.lr": 0.1, "train.epochs": 2, "replicate": 0}


def created(name: str, config_id: str | None = None, **more: Any) -> TrialCreated:
    values = {"train.lr": 0.01, "student.branches": ["3x3", "1x1"]}
    return TrialCreated(trial=name, config_id=config_id or name, replicate=0, params={}, values=values, **more)


def epoch(name: str, epochs: int, stage: int = 0, **figures: float) -> EpochReported:
    shared = {"val_macro_avg_acc": epochs / 10, "train_loss": 1 / 3}
    return EpochReported(trial=name, stage=stage, epoch=epochs, epochs=epochs, figures={**shared, **figures})


def measured(name: str, step: int = 0, accuracy: float = 0.5) -> PointMeasured:
    return PointMeasured(trial=name, point=point(step, accuracy, 2e6))


def every_outcome() -> list[Event]:
    """A trial of each outcome, all with two epochs and a point; one that runs."""
    events: list[Event] = [DriverStarted(command="python tune/run.py")]
    for name, outcome in OUTCOMES.items():
        events += [created(name), epoch(name, 1), epoch(name, 2), measured(name)]
        if outcome:
            events.append(TrialEnded(trial=name, outcome=outcome, reason="none" if outcome == "failed" else None))  # type: ignore[arg-type]
    return events


def write_journal(study: Path, events: list[Event]) -> None:
    """As one driver after another."""
    begins = [i for i, event in enumerate(events) if i == 0 or isinstance(event, DriverStarted)]
    for begin, end in zip(begins, [*begins[1:], None], strict=True):
        reading = Reading(study)
        list(reading)
        journal = Journal(study, reading.after)
        journal.append(tuple(events[begin:end]))
        journal.close()


class Live:
    """A driver that writes events and tables."""

    def __init__(self, study: Path):
        study.mkdir(exist_ok=True)
        self.study, self.log = study, StudyLog(lambda events: self.journal.append(events))
        self.tables = StudyTables(study, self.log.state, CONFIG, Patience(lambda message: None, limit_s=0))
        self.log.attach(self.tables)
        reading = Reading(study)
        replay(reading, self.log, self.tables)
        self.journal = Journal(study, reading.after)

    def add(self, *events: Event) -> None:
        self.log.add(*events)
        self.tables.flush()


def files(study: Path) -> dict[str, bytes]:
    """The tables of a study: name -> content."""
    found = [study / "points.csv", *sorted((study / "experiments").rglob("*.*"))]
    return {str(path.relative_to(study)): path.read_bytes() for path in found if path.is_file()}


def info(study: Path, name: str) -> dict[str, Any]:
    return json.loads((study / "experiments" / name / "info.json").read_text())


def curve(study: Path, name: str) -> list[int]:
    with (study / "experiments" / name / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(list(row) == list(CURVE) for row in rows)
    return [int(row["epochs"]) for row in rows]


def test_trials_of_every_outcome(tmp_path: Path) -> None:
    live = Live(tmp_path)
    live.add(*every_outcome())
    live.tables.flush(last=True)
    with (tmp_path / "points.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    statuses = ["complete", "stopped early", "failed", "crashed", "running"]
    assert [(row["trial_id"], row["status"]) for row in rows] == list(zip(OUTCOMES, statuses, strict=True))
    assert {row["checkpoint"] for row in rows} == {f"experiments/{name}/step0" for name in OUTCOMES}
    assert {row["config/student.branches"] for row in rows} == {'["3x3", "1x1"]'}
    for name, status in zip(OUTCOMES, statuses, strict=True):
        content = info(tmp_path, name)
        assert (content["status"], content["trial_id"], content["points"]) == (status, name, [point(0, 0.5, 2e6)])
        assert content["config"] == CONFIG | {"train.lr": 0.01, "student.branches": ["3x3", "1x1"]}
        assert content["last_result"]["epochs"] == 2
        assert curve(tmp_path, name) == [1, 2]
    assert info(tmp_path, "t0002")["failure"] == "none"


@pytest.mark.parametrize("outcome", ["completed", "stopped", "failed", "crashed"])
def test_an_ended_trial_keeps_confusion_matrices_and_widths(tmp_path: Path, outcome: Any) -> None:
    """Also of a trial that crashed, was tried again and measured its second network in another driver."""
    live = Live(tmp_path)
    live.add(created("t0000"), epoch("t0000", 1), measured("t0000"))
    live.add(TrialEnded(trial="t0000", outcome=outcome, reason="the node died"))
    kept = [(p["confusion"], p["widths"]) for p in info(tmp_path, "t0000")["points"]]
    assert kept == [([[1]], {"stem": [8]})]
    live.journal.close()
    again = Live(tmp_path)
    again.add(DriverStarted(command="again"))
    if outcome == "crashed":
        again.add(TrialRetried(trial="t0000"), epoch("t0000", 2, stage=1), measured("t0000", 1))
        again.add(TrialEnded(trial="t0000", outcome="completed"))
        assert [p["step"] for p in info(tmp_path, "t0000")["points"]] == [0, 1]
        assert all(p["confusion"] == [[1]] and p["widths"] for p in info(tmp_path, "t0000")["points"])
        assert curve(tmp_path, "t0000") == [1, 2]
        assert info(tmp_path, "t0000")["failure"] is None


def test_an_epoch_that_was_trained_again_has_one_row(tmp_path: Path) -> None:
    live = Live(tmp_path)
    live.add(created("t0000"), epoch("t0000", 1), epoch("t0000", 2, train_loss=0.25))
    live.journal.close()
    again = Live(tmp_path)
    again.add(TrialRestored(trial="t0000", epochs=1), epoch("t0000", 2, train_loss=0.75))
    again.add(epoch("t0000", 3), measured("t0000"))
    assert curve(tmp_path, "t0000") == [1, 2, 3]
    assert "0.75" not in (tmp_path / "experiments" / "t0000" / "results.csv").read_text()
    assert info(tmp_path, "t0000")["epochs_repeated"] == 1


def test_what_a_killed_driver_had_no_time_to_write(tmp_path: Path) -> None:
    write_journal(tmp_path, every_outcome())
    state = rebuild_tables(tmp_path, CONFIG)
    assert state.trials["t0000"].status == "complete"
    live = Live(tmp_path.with_name("other"))
    live.add(*Reading(tmp_path))
    live.tables.flush(last=True)
    assert files(tmp_path) == files(live.study)


def test_half_a_row_that_a_kill_left_is_written_anew(tmp_path: Path) -> None:
    live = Live(tmp_path)
    live.add(created("t0000"), epoch("t0000", 1))
    live.journal.close()
    with (tmp_path / "experiments" / "t0000" / "results.csv").open("a") as stream:
        stream.write("0,2,")
    again = Live(tmp_path)
    again.add(epoch("t0000", 2))
    assert curve(tmp_path, "t0000") == [1, 2]


@pytest.mark.parametrize("chunk", [500, 3])
@pytest.mark.parametrize("damage", ["lost", "cut", "empty", "another"])
@pytest.mark.parametrize("name", ["points.csv", "experiments/t0000/info.json", "experiments/t0003/results.csv"])
def test_a_lost_or_damaged_table_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str, chunk: int
) -> None:
    """Byte for byte; files of other trials are not written."""
    monkeypatch.setattr(tables_module, "REPLAY_CHUNK", chunk)
    write_journal(tmp_path, every_outcome()[:-4])  # all trials have ended
    rebuild_tables(tmp_path, CONFIG)
    before = files(tmp_path)
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in before}
    path, content = tmp_path / name, before[name]
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "another": b"[1, 2]\n"}[damage])
    rebuild_tables(tmp_path, CONFIG)
    assert files(tmp_path) == before
    if chunk == 500:
        rewritten = {path for path in before if (tmp_path / path).stat().st_mtime_ns != times[path]}
        assert {str(Path(path).parent) for path in rewritten} == {str(Path(name).parent)}


@pytest.mark.parametrize("seed", range(6))
def test_tables_do_not_depend_on_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """By drivers that died before they wrote, by one that writes at odd moments, in chunks of a replay, or at once."""
    rng = random.Random(seed)
    events = list(RandomStudy(tmp_path / "simulated", seed).run(150))
    live, waiting = Live(tmp_path / "live"), list[Event]()
    for event in events:
        if isinstance(event, DriverStarted) and rng.random() < 0.7:
            live.log.add(*waiting)
            waiting.clear()
            live.journal.close()
            live = Live(tmp_path / "live")
        waiting.append(event)
        if rng.random() < 0.2:
            live.add(*waiting)
            waiting.clear()
    live.log.add(*waiting)
    live.tables.flush(last=True)
    write_journal(tmp_path / "rebuilt", events)
    state = rebuild_tables(tmp_path / "rebuilt", CONFIG)
    monkeypatch.setattr(tables_module, "REPLAY_CHUNK", 7)
    write_journal(tmp_path / "chunks", events)
    rebuild_tables(tmp_path / "chunks", CONFIG)
    ended = {name for name, trial in state.trials.items() if trial.ended}
    found = []
    for folder in ("live", "rebuilt", "chunks"):
        tables = files(tmp_path / folder)
        # the info.json of a trial that runs is as old as its newest point
        found.append({n: c for n, c in tables.items() if n.endswith(".csv") or n.split("/")[1] in ended})
    assert found[0] == found[1] == found[2]
    assert ended and len(found[0]) > 3


def test_trials_whose_files_are_elsewhere_are_not_written(tmp_path: Path) -> None:
    """In an object store: their files need not come here. Those of trials that run do."""
    write_journal(tmp_path, every_outcome())
    log = StudyLog()
    tables = StudyTables(tmp_path, log.state, CONFIG, Patience(lambda message: None))
    tables.elsewhere = ("t0000", "t0003", "t0004")
    log.attach(tables)
    replay(Reading(tmp_path), log, tables)
    tables.flush(last=True)
    assert {path.name for path in (tmp_path / "experiments").iterdir()} == {"t0001", "t0002", "t0004"}
    tables.elsewhere = ()
    log.replay([TrialRetried(trial="t0003"), epoch("t0003", 3)])
    tables.flush()
    assert curve(tmp_path, "t0003") == [1, 2, 3]


def test_a_trial_that_is_only_open_so_far_in_a_replay_is_not_written(tmp_path: Path, monkeypatch) -> None:
    """Its files in an object store are complete, and a part of them must not go there."""
    monkeypatch.setattr(tables_module, "REPLAY_CHUNK", 1)
    write_journal(tmp_path, every_outcome())
    rebuild_tables(tmp_path, CONFIG, elsewhere=("t0000", "t0003", "t0004"))
    assert {path.name for path in (tmp_path / "experiments").iterdir()} == {"t0001", "t0002", "t0004"}


def test_files_that_are_here_and_behind_are_written_though_others_lie_elsewhere(tmp_path: Path) -> None:
    """A driver was killed between the end of a trial and its files, of which earlier ones had been sent."""
    live = Live(tmp_path)
    live.add(created("t0000"), epoch("t0000", 1), measured("t0000"))
    live.tables.flush(last=True)
    assert info(tmp_path, "t0000")["status"] == "running"
    live.add(TrialEnded(trial="t0000", outcome="completed"))
    rebuild_tables(tmp_path, CONFIG, elsewhere=("t0000",))
    assert info(tmp_path, "t0000")["status"] == "complete"


def test_a_trial_that_failed_in_its_first_epoch(tmp_path: Path) -> None:
    write_journal(tmp_path, [created("t0000"), TrialEnded(trial="t0000", outcome="failed", reason="loss is nan")])
    rebuild_tables(tmp_path, CONFIG)
    assert info(tmp_path, "t0000")["failure"] == "loss is nan"
    assert info(tmp_path, "t0000")["last_result"] == {}
    path = tmp_path / "experiments" / "t0000" / "info.json"
    before = path.stat().st_mtime_ns
    rebuild_tables(tmp_path, CONFIG)
    assert path.stat().st_mtime_ns == before


def test_what_is_not_a_number_comes_back_the_same(tmp_path: Path) -> None:
    live = Live(tmp_path)
    live.add(created("t0000"), epoch("t0000", 1, train_loss=math.nan), measured("t0000", accuracy=math.nan))
    live.add(TrialEnded(trial="t0000", outcome="completed"))
    live.tables.flush(last=True)
    before = files(tmp_path)
    for name in before:
        (tmp_path / name).unlink()
    rebuild_tables(tmp_path, CONFIG)
    assert files(tmp_path) == before


def test_points_csv_is_not_written_at_every_event(tmp_path: Path) -> None:
    """It takes a twentieth of the time at most; the last call writes it."""
    live = Live(tmp_path)
    live.add(created("t0000"), measured("t0000"))
    live.tables.flush(last=True)
    live.tables._table_at = math.inf
    live.add(measured("t0000", 1))
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 2
    live.tables.flush(last=True)
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 3


def test_tables_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    write_journal(tmp_path, every_outcome())
    (tmp_path / "experiments").touch()
    with pytest.raises(OSError):
        rebuild_tables(tmp_path, CONFIG)


def test_a_full_disk_leaves_no_half_row(small_disk: Path, tmp_path: Path) -> None:
    filler, study = small_disk / "filler", small_disk / "study"

    def warn(message: str) -> None:
        filler.unlink(missing_ok=True)

    log = StudyLog()
    tables = StudyTables(study, log.state, CONFIG, Patience(warn))
    log.attach(tables)
    log.add(created("t0000"), epoch("t0000", 1))
    tables.flush()
    fill(filler)
    n = 1
    while filler.exists():
        n += 1
        log.add(epoch("t0000", n))
        tables.flush()
    log.add(epoch("t0000", n + 1))
    tables.flush()
    assert curve(study, "t0000") == list(range(1, n + 2))
