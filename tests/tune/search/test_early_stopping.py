"""Early stopping in a search session: which trials are stopped, and the effect on replicates and on a resume."""

from pathlib import Path
from typing import Any

from tests.support.simulated import RandomStudy, Reducers, result
from tests.support.tune.session_driver import Driver
from tune.search.halving import SuccessiveHalving
from tune.study.events import (
    TrialEnded,
)


def rung_of_two(folder: Path, accuracies: list[float], **options: Any) -> tuple[Driver, list[bool]]:
    """Return, for trials that reach the rung of epoch 6 one after another, whether each was stopped there."""
    driver = Driver(folder, scheduler="asha", dense_epochs=8, **options)
    stopped = []
    for accuracy in accuracies:
        name = driver.next().name
        stopped += driver.report(result(name, 0, 6, 6, val_macro_avg_acc=accuracy))
    return driver, stopped


def test_a_trial_that_is_stopped_says_by_whom(tmp_path: Path) -> None:
    driver, stopped = rung_of_two(tmp_path, [0.5, 0.4])
    assert stopped == [False, True]
    ended = driver.events[-1]
    assert isinstance(ended, TrialEnded)
    assert (ended.trial, ended.outcome, ended.by) == ("t0001", "stopped", "asha")
    assert driver.report(result("t0001", 0, 5, 5, val_macro_avg_acc=0.9)) == [True]  # the trial had begun another epoch
    assert driver.events[-1] is ended


def test_replicates_share_the_fate_of_their_configurations_first_trial(tmp_path: Path) -> None:
    driver = Driver(tmp_path, scheduler="asha", dense_epochs=8, replicates=2)
    assert [driver.next().name for _ in range(4)] == ["t0000", "t0000r1", "t0001", "t0001r1"]
    assert isinstance(driver.reducers.rungs, SuccessiveHalving)
    fates = driver.report(
        result("t0000", 0, 6, 6, val_macro_avg_acc=0.5),
        result("t0000r1", 0, 6, 6, val_macro_avg_acc=0.1),
        result("t0001r1", 0, 6, 6, val_macro_avg_acc=0.9),
        result("t0001", 0, 6, 6, val_macro_avg_acc=0.3),
        result("t0001r1", 0, 5, 5, val_macro_avg_acc=0.9),
    )
    assert fates == [False, False, False, True, True]
    assert driver.reducers.rungs.rungs == {("dense", 6): {"t0000": (0.5,), "t0001": (0.3,)}}
    again = Driver(tmp_path, driver.events[:-1], scheduler="asha", dense_epochs=8, replicates=2)
    assert again.report(result("t0001r1", 0, 6, 6, val_macro_avg_acc=0.9)) == [True]


def test_a_replicate_goes_on_where_its_first_trial_failed_or_crashed(tmp_path: Path) -> None:
    driver = Driver(tmp_path, scheduler="asha", dense_epochs=8, replicates=2)
    assert [driver.next().name for _ in range(4)] == ["t0000", "t0000r1", "t0001", "t0001r1"]
    driver.report(result("t0000", 0, 6, 6, val_macro_avg_acc=0.5))
    driver.session.crashed("t0001", "the node died")
    assert driver.report(result("t0001r1", 0, 6, 6, val_macro_avg_acc=0.1)) == [False]


def test_a_decision_that_a_kill_swallowed_is_taken_again(tmp_path: Path) -> None:
    """The driver is killed between the event of an epoch and that of the decision, anywhere in a study."""
    swallowed = 0
    for seed in range(4):
        study = RandomStudy(tmp_path, seed, scheduler="mo_asha", replicates=1)
        events = list(study.run(120))
        for cut, event in enumerate(events):
            if not (isinstance(event, TrialEnded) and event.by == "mo_asha"):
                continue
            before = Reducers(tmp_path, sampler="random", **study.options)
            before.log.replay(events[:cut])
            assert before.rungs and before.rungs.should_stop(event.trial)
            swallowed += 1
            trial = before.log.state.trials[event.trial]
            epochs = trial.epochs + 1
            session = before.session()
            assert session.report(trial.name, result(trial.name, trial.stage, trial.epoch + 1, epochs))
    assert swallowed > 2


def test_a_failed_result_enters_no_rung(tmp_path: Path) -> None:
    driver = Driver(tmp_path, scheduler="asha", dense_epochs=8)
    name = driver.next().name
    driver.report(result(name, 0, 6, 6, done=True, failure="the loss is nan"))
    assert driver.reducers.rungs and driver.reducers.rungs.rungs == {("dense", 6): {}}
