"""The search session without Ray: events of results, restores after a kill, ends of trials and studies."""

from pathlib import Path

import pytest

from tests.support.simulated import point, result
from tests.support.tune.session_driver import Driver, kinds, row
from tune.study.events import (
    ConfigurationChanged,
    EpochReported,
    PointMeasured,
    TrialEnded,
    TrialRestored,
)


def test_a_trial_from_its_first_epoch_to_its_end(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    name = driver.next().name
    dense = [point(0, 0.5, 2e6)]
    new = driver.new_events(
        lambda: driver.report(
            result(name, 0, 1, 1),
            result(name, 0, 2, 2, points=dense, train_loss=0.25),
            result(name, 1, 1, 3, points=[*dense, point(1, 0.4, 1e6)], done=True, finished=True),
        )
    )
    assert kinds(new) == [
        "epoch_reported",
        *("epoch_reported", "point_measured"),
        *("epoch_reported", "point_measured", "trial_ended"),
    ]
    assert isinstance(new[1], EpochReported)
    assert (new[1].stage, new[1].epoch, new[1].epochs, new[1].figures["train_loss"]) == (0, 2, 2, 0.25)
    assert [e.point["step"] for e in new if isinstance(e, PointMeasured)] == [0, 1]
    assert isinstance(new[-1], TrialEnded) and (new[-1].outcome, new[-1].by) == ("completed", None)
    assert driver.report(result(name, 1, 2, 4, done=True, finished=True)) == [True]  # Ray reports the end twice
    driver.session.crashed(name, "later")
    driver.session.stopped(name, by="ray tune")
    assert driver.events[-1] is new[-1]


def test_trials_that_have_not_ended_come_before_new_ones(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    names = [driver.next().name for _ in range(4)]
    driver.session.stopped(names[1], by="ray tune")
    again = Driver(tmp_path, driver.events)
    assert [again.next().name for _ in range(5)] == ["t0000", "t0002", "t0003", "t0004", "t0005"]


def test_what_a_checkpoint_knows_and_no_event_does(tmp_path: Path) -> None:
    """After a kill between a checkpoint and its report, the restore records the checkpoint's epochs and point."""
    driver = Driver(tmp_path)
    name = driver.next().name
    driver.report(result(name, 0, 1, 1))
    again = Driver(tmp_path, driver.events)
    curve, dense = [row(1), row(2), row(3)], [point(0, 0.5, 2e6)]
    new = again.new_events(
        lambda: again.report(result(name, 1, 1, 4, points=dense, restored_epochs=3, curve=[*curve, row(4, 1)]))
    )
    assert kinds(new) == ["trial_restored", *["epoch_reported"] * 3, "point_measured"]
    assert isinstance(new[0], TrialRestored) and new[0].epochs == 3
    assert [(e.stage, e.epochs) for e in new if isinstance(e, EpochReported)] == [(0, 2), (0, 3), (1, 4)]
    trial = again.log.state.trials[name]
    assert (trial.epochs, trial.repeated, trial.restores, trial.points[0]["step"]) == (4, 0, 1, 0)
    assert again.reducers.front.values == [[0.5, 2e6]]


def test_epochs_of_a_lost_driver_reach_their_rungs(tmp_path: Path) -> None:
    driver = Driver(tmp_path, scheduler="asha", dense_epochs=8)
    assert driver.reducers.rungs
    name = driver.next().name
    driver.report(result(name, 0, 7, 7, restored_epochs=6, curve=[row(n) for n in range(1, 8)]))
    assert driver.reducers.rungs.rungs["dense", 6] == {name: (0.6,)}


def test_an_epoch_that_is_trained_again_is_counted(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    name = driver.next().name
    driver.report(result(name, 0, 1, 1), result(name, 0, 2, 2))
    driver.report(result(name, 0, 2, 2, restored_epochs=1, curve=[row(1), row(2)], val_macro_avg_acc=0.9))
    trial = driver.log.state.trials[name]
    assert (trial.epochs, trial.repeated, trial.restores) == (2, 1, 1)
    assert trial.figures["val_macro_avg_acc"] == 0.5, "the first result of an epoch counts"


@pytest.mark.parametrize("known", [2, 3])
def test_a_trial_that_is_restored_after_its_last_epoch(tmp_path: Path, known: int) -> None:
    """A result with `trained: False` is no repeated epoch; an epoch without an event is recorded, with its point."""
    driver = Driver(tmp_path)
    name, dense = driver.next().name, [point(0, 0.5, 2e6)]
    driver.report(*(result(name, 0, n, n, points=dense if n == 3 else []) for n in range(1, known + 1)))
    again = Driver(tmp_path, driver.events)
    more = {"restored_epochs": 3, "curve": [row(1), row(2), row(3)], "trained": False}
    again.report(result(name, 0, 3, 3, points=dense, done=True, finished=True, **more))
    trial = again.log.state.trials[name]
    assert (trial.epochs, trial.repeated, trial.outcome) == (3, 0, "completed")
    assert [p["step"] for p in trial.points] == [0]
    assert kinds(again.events).count("epoch_reported") == 3


def test_a_failure_is_no_epoch_and_keeps_what_was_measured(tmp_path: Path) -> None:
    """The result of a failure repeats the figures of the last epoch, but may have points that are not recorded yet."""
    driver = Driver(tmp_path)
    name = driver.next().name
    driver.report(result(name, 0, 1, 1))
    last = result(name, 0, 2, 2, points=[point(0, 0.5, 2e6)])
    failure = {"done": True, "finished": False, "failure": "stage 1, epoch 1: the loss is nan"}
    new = driver.new_events(lambda: driver.report(last | failure | {"restored_epochs": 2, "curve": [row(1), row(2)]}))
    assert kinds(new) == ["trial_restored", "epoch_reported", "point_measured", "trial_ended"]
    assert isinstance(new[-1], TrialEnded)
    assert (new[-1].outcome, new[-1].reason) == ("failed", "stage 1, epoch 1: the loss is nan")
    assert driver.log.state.trials[name].epochs == 2


def test_a_failure_in_the_first_epoch_has_no_figures(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    name = driver.next().name
    failed = {"config": {"trial": name}, "done": True, "finished": False, "failure": "out of GPU memory"}
    assert driver.report(failed) == [True]
    trial = driver.log.state.trials[name]
    assert (trial.outcome, trial.reason, trial.epochs) == ("failed", "out of GPU memory", 0)


def test_an_error_that_a_retry_cannot_fix_is_a_crash_which_a_resume_retries(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    name = driver.next().name
    assert driver.report({"config": {"trial": name}, "done": True, "finished": False, "crash": "no clips"}) == [True]
    trial = driver.log.state.trials[name]
    assert (trial.outcome, trial.reason, trial.epochs) == ("crashed", "no clips", 0)
    assert driver.log.state.crashed == [trial]


def test_ends_that_ray_alone_knows(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    first, second = (driver.next().name for _ in range(2))
    driver.session.crashed(first, "the node died")
    driver.session.stopped(second, by="ray tune")
    assert driver.log.state.trials[first].outcome == "crashed"
    assert driver.log.state.trials[second].outcome == "stopped"
    assert [trial.name for trial in driver.log.state.crashed] == [first]


@pytest.mark.parametrize(
    ("reasons", "hopeless"),
    [
        (["epoch 1: loss is nan", "epoch 2: loss is nan", "epoch 13: loss is nan"], True),
        (["loss is nan", "out of GPU memory", "loss is nan"], False),
        (["out of GPU memory", "loss is nan", "loss is nan", "loss is nan"], True),
        (["loss is nan", "loss is nan"], False),
    ],
)
@pytest.mark.parametrize("how", ["failed", "crashed"])
def test_a_study_whose_first_trials_fail_for_one_reason_is_hopeless(
    tmp_path: Path, reasons: list[str], hopeless: bool, how: str
) -> None:
    """Reasons that differ in numbers only count as one."""
    driver = Driver(tmp_path)
    for reason in reasons:
        name = driver.next().name
        if how == "failed":
            driver.report({"config": {"trial": name}, "done": True, "failure": reason})
        else:
            driver.session.crashed(name, reason)
    assert driver.session.hopeless == (reasons[-1] if hopeless else None)
    again = Driver(tmp_path, driver.events)
    again.session.crashed(again.next().name, reasons[-1])
    assert again.session.hopeless is None, "a new driver may have ended the cause"


def test_a_study_with_a_measured_network_is_not_hopeless(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    name = driver.next().name
    driver.report(result(name, 0, 1, 1, points=[point(0, 0.5, 2e6)]))
    for session in (driver.session, Driver(tmp_path, driver.events).session):
        for _ in range(5):
            trial = session.next_trial()
            assert trial is not None
            session.crashed(trial.name, "the node died")
        assert session.hopeless is None


def test_configuration_keys_that_a_scheduler_changed(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    trial = driver.next()
    values = dict(trial.values)
    unchanged = result(trial.name, 0, 1, 1)
    unchanged["config"] |= values | {"seed": 3}
    changed = result(trial.name, 0, 2, 2)
    changed["config"] |= values | {"train.lr": 0.015, "seed": 4}
    new = driver.new_events(lambda: driver.report(unchanged, changed, changed | {"epoch": 3, "epochs": 3}))
    (event,) = [e for e in new if isinstance(e, ConfigurationChanged)]
    assert event.values == {"train.lr": 0.015}
    assert kinds(new) == ["epoch_reported", "configuration_changed", "epoch_reported", "epoch_reported"]
    assert driver.log.state.trials[trial.name].values == values | {"train.lr": 0.015}
