"""The tables of a study agree with its journal at every moment."""

import csv
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.marks import rest_slow
from tests.support.simulated import RandomStudy, point
from tests.support.tune.tabled import (
    CONFIG,
    OUTCOMES,
    Live,
    created,
    curve,
    epoch,
    every_outcome,
    files,
    info,
    measured,
    write_journal,
)
from tune.reporting import tables as tables_module
from tune.reporting.tables import rebuild_tables
from tune.study.events import (
    DriverStarted,
    Event,
    TrialEnded,
    TrialRestored,
    TrialRetried,
)


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
    """Including a trial that crashed and measured its second network in another driver."""
    live = Live(tmp_path)
    live.add(created("t0000"), epoch("t0000", 1), measured("t0000"))
    live.add(TrialEnded(trial="t0000", outcome=outcome, reason="the node died"))
    details = [(p["confusion"], p["widths"]) for p in info(tmp_path, "t0000")["points"]]
    assert details == [([[1]], {"stem": [8]})]
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


@pytest.mark.parametrize("seed", rest_slow(range(6), 2))
def test_tables_do_not_depend_on_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Drivers may die before they write, write at irregular moments, in chunks of a replay, or at once."""
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
        # info.json of a running trial is written with each point
        found.append({n: c for n, c in tables.items() if n.endswith(".csv") or n.split("/")[1] in ended})
    assert found[0] == found[1] == found[2]
    assert ended and len(found[0]) > 3


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
    """Writing takes at most a twentieth of the time; the last call always writes."""
    live = Live(tmp_path)
    live.add(created("t0000"), measured("t0000"))
    live.tables.flush(last=True)
    live.tables._table_at = math.inf
    live.add(measured("t0000", 1))
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 2
    live.tables.flush(last=True)
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 3
