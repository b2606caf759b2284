"""The gauges and the front of a running study, and the lines that its driver prints.

test_cluster.py checks, on two nodes, that gauges arrive at the metrics port.
"""

import io
import math
from pathlib import Path

import pytest
from ray.util.metrics import Gauge
from rich.console import Console

from tests.support.simulated import point
from tune.reporting.front import RunningFront
from tune.reporting.gauges import Gauges
from tune.reporting.progress import ProgressLines
from tune.study.events import (
    DriverStarted,
    EpochReported,
    PointMeasured,
    SampleRejected,
    TrialCreated,
    TrialEnded,
    TrialRetried,
)
from tune.study.log import StudyLog


def epoch(trial: str, epochs: int, accuracy: float | None, macs: int) -> EpochReported:
    figures = {"val_macro_avg_acc": accuracy, "macs": macs}
    return EpochReported(trial=trial, stage=0, epoch=epochs, epochs=epochs, figures=figures)


def measured(trial: str, step: int, accuracy: float, macs: int, feasible: bool = True) -> PointMeasured:
    return PointMeasured(trial=trial, point=point(step, accuracy, macs, feasible))


@pytest.fixture
def study() -> tuple[StudyLog, RunningFront]:
    """Return a study with two complete trials, which have a dominated and a too large point, and a running one."""
    log, front = StudyLog(), RunningFront()
    log.attach(front)
    log.add(DriverStarted(command="python tune/run.py"))
    for name in ("t0000", "t0001", "t0002"):
        log.add(TrialCreated(trial=name, config_id=name, replicate=0, params={}, values={}))
    log.add(SampleRejected(params={}, reason="over the limits", example="{}", excess=0.5))
    log.add(epoch("t0000", 2, 0.5, 4_000_000), measured("t0000", 0, 0.5, 4_000_000))
    log.add(measured("t0001", 0, 0.9, 90_000_000, feasible=False), measured("t0001", 1, 0.4, 5_000_000))
    for name in ("t0000", "t0001"):
        log.add(TrialEnded(trial=name, outcome="completed"))
    log.add(epoch("t0002", 3, 0.45, 2_000_000))
    return log, front


def test_front_takes_measured_networks_within_the_limits(study: tuple[StudyLog, RunningFront]) -> None:
    log, front = study
    assert front.values == [[0.5, 4e6]]
    log.add(measured("t0002", 0, 0.45, 2_000_000))  # a running trial
    assert sorted(front.values) == [[0.45, 2e6], [0.5, 4e6]]
    log.add(measured("t0002", 0, 0.99, 1_000_000))  # measured again: the first result counts
    log.add(measured("t0002", 1, math.nan, 1_000_000))
    assert sorted(front.values) == [[0.45, 2e6], [0.5, 4e6]]


@pytest.mark.parametrize("outcome", ["stopped", "failed", "crashed"])
def test_a_measured_network_stays_on_the_front_whatever_becomes_of_its_trial(
    study: tuple[StudyLog, RunningFront], outcome: str
) -> None:
    log, front = study
    log.add(measured("t0002", 0, 0.8, 3_000_000), TrialEnded(trial="t0002", outcome=outcome))  # type: ignore[arg-type]
    assert front.values == [[0.8, 3e6]]


def test_gauges_of_running_trials_and_of_the_study(study: tuple[StudyLog, RunningFront]) -> None:
    log, front = study
    gauges = Gauges("X", log.state, front)
    values = gauges.values(["t0002", "a trial that the journal does not know"])
    assert {(name, *(value for _, value in tags)): number for (name, tags), number in values.items()} == {
        ("val_macro_avg_acc", "t0002"): 0.45,
        ("macs", "t0002"): 2e6,
        ("epochs", "t0002"): 3,
        ("trials", "running"): 1,
        ("trials", "complete"): 2,
        ("trials", "stopped early"): 0,
        ("trials", "failed"): 0,
        ("trials", "crashed"): 0,
        ("rejected", "over the limits"): 1,
        ("front_size",): 1,
        ("best_val_macro_avg_acc",): 0.5,
    }


def test_gauges_leave_out_what_is_not_finite_and_what_is_not_known(study: tuple[StudyLog, RunningFront]) -> None:
    log, _ = study
    log.add(epoch("t0002", 4, math.nan, 2_000_000))
    gauges = Gauges("X", log.state, RunningFront())
    names = {name for name, _ in gauges.values(["t0002"])}
    assert not names & {"val_macro_avg_acc", "best_val_macro_avg_acc"}
    assert {"macs", "epochs", "front_size"} <= names


def test_gauges_are_set_when_it_is_time(study: tuple[StudyLog, RunningFront], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gauges are set with their declared tags, and again at the end of the study."""
    log, front = study
    set_to: list[tuple[str, float, dict[str, str]]] = []
    monkeypatch.setattr(Gauge, "set", lambda self, value, tags: set_to.append((self.info["name"], value, tags)))
    gauges = Gauges("X", log.state, front)
    gauges.step(["t0002"])
    assert ("asc_tune_macs", 2e6, {"study": "X", "trial": "t0002"}) in set_to
    assert ("asc_tune_trials", 2.0, {"study": "X", "status": "complete"}) in set_to
    gauges._set_at = math.inf
    set_to.clear()
    gauges.step(["t0002"])
    assert not set_to
    gauges.step([], last=True)
    assert {name for name, _, _ in set_to} == {
        *("asc_tune_trials", "asc_tune_rejected", "asc_tune_front_size", "asc_tune_best_val_macro_avg_acc")
    }


def test_lines_of_a_running_study(tmp_path: Path) -> None:
    """Events of earlier drivers are not printed again; the text of errors is not read as markup."""
    log, front = StudyLog(), RunningFront()
    log.attach(front)
    for name in ("t0000", "t0001", "t0002"):
        values = {"prune.ratios": [0.2]}
        log.add(TrialCreated(trial=name, config_id=name, replicate=0, params={}, values=values))
    log.add(measured("t0000", 0, 0.5, 4_000_000), TrialEnded(trial="t0000", outcome="crashed", reason="first"))
    text = io.StringIO()
    log.attach(ProgressLines(Console(file=text, width=200), log.state, front, 3, {"train.lr": 0.1}, Path("ray.log")))
    log.add(TrialRetried(trial="t0000"), epoch("t0000", 3, 0.5, 4_000_000))
    assert text.getvalue() == ""
    log.add(measured("t0000", 1, 0.45, 2_000_000), TrialEnded(trial="t0000", outcome="completed"))
    log.add(measured("t0001", 0, 0.9, 90_000_000, feasible=False))
    log.add(TrialEnded(trial="t0001", outcome="failed", reason="CUDA [red]error[/red]"))
    log.add(epoch("t0002", 2, 0.1, 1), TrialEnded(trial="t0002", outcome="stopped", by="mo_asha"))
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    assert "t0000 step 1/1:  45.0% validation,   2.00 M MACs,   5.0 k params" in lines[0]
    assert "1/3 trials" in lines[0] and "front 2" in lines[0]
    assert "t0001 step 0/1" in lines[1] and "over the limits" in lines[1]
    assert "t0001 failed after 0 epochs: CUDA [red]error[/red]" in lines[2]
    assert "t0002 stopped early after 2 epochs" in lines[3]
    assert "3/3 trials" in lines[3]


def test_a_student_that_beats_its_teacher_is_pointed_out_once(tmp_path: Path) -> None:
    log, front, text = StudyLog(), RunningFront(), io.StringIO()
    log.attach(front)
    config = {"distill.kd_alpha": 0.5}
    log.attach(ProgressLines(Console(file=text, width=300), log.state, front, 3, config, Path("ray.log"), 0.6))
    for name, alpha in (("t0000", 1.0), ("t0001", 0.5), ("t0002", 0.5), ("t0003", 0.5)):
        values = {"distill.kd_alpha": alpha}
        log.add(TrialCreated(trial=name, config_id=name, replicate=0, params={}, values=values))
    for name, accuracy in (("t0000", 0.9), ("t0001", 0.59), ("t0002", 0.61), ("t0003", 0.7)):
        log.add(measured(name, 0, accuracy, 4_000_000))
    (line,) = [line for line in text.getvalue().splitlines() if "teacher" in line]
    assert "t0002 (61.0% validation)" in line and "60.0%" in line
