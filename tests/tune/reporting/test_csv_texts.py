"""points.csv and trials.csv: the moments of a study, and one row for each trial."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulated import RandomStudy
from tests.support.tune.tabled import created, epoch, measured, write_journal
from tune.reporting.csv_texts import REASON_CHARACTERS, TRIAL_COLUMNS, planned_epochs, points_text, trials_text
from tune.reporting.tables import rebuild_tables
from tune.study.events import DriverStarted, Event, TrialCreated, TrialEnded, TrialRestored, TrialRetried
from tune.study.state import StudyState

START = "2026-01-05T09:00:00+00:00"


def at(minute: int, second: int = 0) -> str:
    return f"2026-01-05T09:{minute:02d}:{second:02d}+00:00"


def moved(event: Event, time: str) -> Event:
    return type(event)(**{**vars(event), "time": time})


def state_of(*events: tuple[str, Event]) -> StudyState:
    state = StudyState()
    for time, event in events:
        state.apply(moved(event, time))
    return state


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def two_drivers() -> StudyState:
    """Return the state of a study whose first driver was killed at 09:02 and whose second one started at 09:30."""
    return state_of(
        (at(0), DriverStarted(command="run")),
        (at(0, 10), created("t0000")),
        (at(1), epoch("t0000", 1)),
        (at(1), measured("t0000")),
        (at(1, 30), created("t0001")),
        (at(2), epoch("t0001", 1)),
        (at(30), DriverStarted(command="run")),
        (at(31), TrialRestored(trial="t0001", epochs=0)),
        (at(31), epoch("t0001", 1)),  # trained again
        (at(32), epoch("t0001", 2)),
        (at(32), measured("t0001")),
        (at(32), TrialEnded(trial="t0001", outcome="stopped", by="mo_asha")),
        (at(33), epoch("t0000", 2, stage=1)),
        (at(33), TrialEnded(trial="t0000", outcome="failed", reason="the loss\nis nan")),
    )


def test_the_clock_stands_still_between_two_drivers() -> None:
    points = rows(points_text(two_drivers()))
    assert [(p["trial_id"], float(p["search_s"]), int(p["search_epochs"])) for p in points] == [
        ("t0000", 60.0, 1),
        ("t0001", 240.0, 3),
    ]


def test_a_row_of_each_trial() -> None:
    config = {"train.epochs": 12, "prune.epochs": 4, "prune.ratios": [0.3, 0.2]}
    first, second = rows(trials_text(two_drivers(), config))
    assert tuple(first) == TRIAL_COLUMNS
    expected = {"trial_id": "t0000", "config_id": "t0000", "replicate": "0", "status": "failed", "stopped_by": ""}
    expected |= {"reason": "the loss is nan", "epochs": "2", "planned_epochs": "20", "stage": "1", "restores": "0"}
    assert first == expected | {"created_s": "10.0", "ended_s": "300.0"}
    expected = {"status": "stopped early", "stopped_by": "mo_asha", "reason": "", "epochs": "2", "restores": "1"}
    assert expected | {"created_s": "90.0", "ended_s": "240.0"} == {
        k: second[k] for k in (*expected, "created_s", "ended_s")
    }


def test_a_retried_trial_has_no_end_and_no_reason() -> None:
    state = state_of(
        (START, DriverStarted(command="run")),
        (START, created("t0000")),
        (at(1), TrialEnded(trial="t0000", outcome="crashed", reason="the node died")),
        (at(5), TrialRetried(trial="t0000")),
    )
    (row,) = rows(trials_text(state, {}))
    found = {k: row[k] for k in ("status", "reason", "ended_s", "planned_epochs")}
    assert found == {"status": "running", "reason": "", "ended_s": "", "planned_epochs": ""}


@pytest.mark.parametrize("time", ["", "yesterday", "2026-01-05T08:00:00+00:00", "2026-01-05T09:00:00"])
def test_an_invalid_or_earlier_time_does_not_move_the_clock(time: str) -> None:
    state = state_of((START, DriverStarted(command="run")), (time, created("t0000")))
    assert state.search_s == state.trials["t0000"].created_s == 0.0


def test_a_reason_is_one_short_line_of_printable_characters() -> None:
    reason = "\x1b[2J" + "x" * 1000 + "\nsecond line \ud800"
    state = state_of((START, created("t0000")), (START, TrialEnded(trial="t0000", outcome="failed", reason=reason)))
    (row,) = rows(trials_text(state, {}))
    assert len(row["reason"]) == REASON_CHARACTERS and row["reason"].startswith("\\x1b[2Jxxx")
    assert trials_text(state, {}).encode().isascii()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 12),
        ({"train.epochs": 20}, 20),
        ({"prune.ratios": [0.1, 0.2, 0.3]}, 24),
        ({"prune.ratios": [], "prune.n_steps": 2}, 20),
        ({"prune.ratios": "0.1", "train.epochs": None}, None),
    ],
)
def test_planned_epochs(values: dict[str, Any], expected: int | None) -> None:
    config = {"train.epochs": 12, "prune.epochs": 4, "prune.ratios": None}
    event = TrialCreated(trial="t0000", config_id="t0000", replicate=0, params={}, values=values)
    assert planned_epochs(state_of((START, event)).trials["t0000"], config) == expected


def test_planned_epochs_of_given_widths() -> None:
    """A refit trains the stages up to the last picked network, whatever the pruning plan of the configuration."""
    widths = [{"stem": [8], "expand": [8], "out": [8]}] * 2
    state = state_of((START, created("t0000", widths=widths)))
    config = {"train.epochs": 12, "prune.epochs": 4, "prune.ratios": [0.1, 0.2, 0.3]}
    assert planned_epochs(state.trials["t0000"], config) == 16


@pytest.mark.parametrize("seed", range(3))
def test_the_clocks_of_random_studies_never_go_back(tmp_path: Path, seed: int) -> None:
    """A second implementation: run time as the sum of the drivers' durations, epochs as the sum over trials."""
    events = list(RandomStudy(tmp_path / "simulated", seed).run(200))
    events = [moved(e, f"2026-01-05T{9 + i // 3600:02d}:{i // 60 % 60:02d}:{i % 60:02d}") for i, e in enumerate(events)]
    state, starts = StudyState(), [i for i, e in enumerate(events) if isinstance(e, DriverStarted)]
    for i, event in enumerate(events):
        state.apply(event)
        pauses = sum(0 < start <= i for start in starts)  # one second before each later driver
        assert state.search_s == i - pauses
    assert state.epochs == sum(trial.epochs for trial in state.trials.values())
    for trial in state.trials.values():
        moments = [(point["search_s"], point["search_epochs"]) for point in trial.points]
        assert moments == sorted(moments)
        assert trial.created_s <= (trial.ended_s if trial.ended_s is not None else state.search_s)


def test_a_lost_table_of_trials_is_written_again(tmp_path: Path) -> None:
    write_journal(tmp_path, [DriverStarted(command="run"), created("t0000"), epoch("t0000", 1)])
    state = rebuild_tables(tmp_path, {"train.epochs": 2})
    assert (tmp_path / "trials.csv").read_text() == trials_text(state, {"train.epochs": 2})
