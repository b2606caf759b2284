"""Successive halving: rungs, ranks, and the state after a resume. test_early_stopping.py has its use in a study."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.simulated import RandomStudy, point
from tune.search.halving import (
    SCHEDULERS,
    SchedulerError,
    SuccessiveHalving,
    build_rungs,
    crowding_distance,
)
from tune.search.optuna_study import OBJECTIVES
from tune.study.events import EpochReported, PointMeasured, TrialCreated, TrialEnded, TrialRetried

ACCURACY = {"val_macro_avg_acc": "max"}


def reach(
    rungs: SuccessiveHalving, name: str, epochs: int, accuracy: float | None, macs: float = 1e6, stage: int = 0
) -> bool:
    """Report an epoch; return whether the trial continues."""
    figures = {"val_macro_avg_acc": accuracy, "macs": macs}
    rungs.apply(EpochReported(trial=name, stage=stage, epoch=epochs, epochs=epochs, figures=figures))
    return not rungs.should_stop(name)


def measure(rungs: SuccessiveHalving, name: str, step: int, accuracy: float, macs: float = 1e6) -> bool:
    """Report a measured network; return whether the trial continues."""
    rungs.apply(PointMeasured(trial=name, point=point(step, accuracy, macs)))
    return not rungs.should_stop(name)


def end(rungs: SuccessiveHalving, name: str, outcome: Any) -> None:
    rungs.apply(TrialEnded(trial=name, outcome=outcome))


def test_the_rung_is_after_two_thirds_of_the_dense_epochs() -> None:
    found = {n: build_rungs("mo_asha", n) for n in (1, 7, 8, 16, 18, 150)}
    assert {n: sorted(rungs.epochs) for n, rungs in found.items() if rungs} == {
        **{1: [], 7: [], 8: [6], 16: [11]},
        **{18: [12], 150: [100]},
    }


def test_a_dense_rung_ranks_by_the_best_accuracy_so_far() -> None:
    """A trial whose accuracy happens to be low at the rung is not stopped for that."""
    rungs = SuccessiveHalving(OBJECTIVES, [3])
    reach(rungs, "t0000", 3, 0.5)
    for epoch, accuracy in ((1, 0.2), (2, 0.6), (3, 0.1)):
        continues = reach(rungs, "t0001", epoch, accuracy, macs=2e6)
    assert continues and rungs.rungs["dense", 3]["t0001"] == (0.6, 2e6)
    reach(rungs, "t0002", 2, math.nan)
    assert not reach(rungs, "t0002", 3, 0.1, macs=3e6)
    late = SuccessiveHalving(OBJECTIVES, [3], after_steps=True)  # a measured network is ranked by its own accuracy
    reach(late, "t0001", 3, 0.6)
    measure(late, "t0001", 1, 0.3)
    assert late.rungs["step", 1]["t0001"][0] == 0.3


def test_plain_asha_keeps_the_better_half() -> None:
    rungs = SuccessiveHalving(ACCURACY, [2])
    accuracies = np.random.default_rng(0).permutation(20) / 20
    for i, accuracy in enumerate(accuracies):
        continues = reach(rungs, f"t{i:04d}", 2, float(accuracy))
        better = (accuracies[:i] > accuracy).sum()
        assert continues == (better < max(1, np.ceil((i + 1) / 2)))


def test_mo_asha_keeps_a_small_network_that_asha_stops() -> None:
    plain, multi = SuccessiveHalving(ACCURACY, [2]), SuccessiveHalving(OBJECTIVES, [2])
    for i in range(9):
        for rungs in (plain, multi):
            reach(rungs, f"t{i:04d}", 2, 0.5 + i / 100, macs=(10 + i) * 1e6)
    assert not reach(plain, "t0009", 2, 0.4, macs=1e6)
    assert reach(multi, "t0009", 2, 0.4, macs=1e6)
    assert not reach(multi, "t0010", 2, 0.3, macs=30e6)


def test_only_milestones_count_and_a_rung_keeps_the_first_result() -> None:
    rungs = SuccessiveHalving(OBJECTIVES, [2, 4])
    assert reach(rungs, "t0000", 3, 0.0)
    assert rungs.rungs == {("dense", 2): {}, ("dense", 4): {}}
    reach(rungs, "t0000", 4, 0.5)
    reach(rungs, "t0000", 4, 0.1)  # repeated by a resume
    assert rungs.rungs["dense", 4] == {"t0000": (0.5, 1e6)}


def test_an_epoch_after_the_dense_phase_reaches_no_dense_rung() -> None:
    rungs = SuccessiveHalving(OBJECTIVES, [2, 4])
    reach(rungs, "t0000", 4, 0.5, stage=1)
    assert rungs.rungs["dense", 4] == {}


@pytest.mark.parametrize("accuracy", [math.nan, math.inf, None])
def test_what_is_not_finite_enters_no_rung(accuracy: float | None) -> None:
    rungs = SuccessiveHalving(OBJECTIVES, [2])
    assert reach(rungs, "t0000", 2, accuracy)
    end(rungs, "t0001", "failed")
    assert rungs.rungs["dense", 2] == {}
    assert reach(rungs, "t0002", 2, 0.1)


def test_a_rung_after_each_prune_step() -> None:
    rungs = SuccessiveHalving(OBJECTIVES, [2], after_steps=True)
    for i in range(4):
        assert measure(rungs, f"t000{i}", 0, 0.9 - i / 100)  # dense networks have no rung
        measure(rungs, f"t000{i}", 1, 0.6 + i / 100, macs=5e6 - i)
    assert reach(rungs, "t0004", 5, 0.1, macs=9e6, stage=1)  # retraining continues
    assert not measure(rungs, "t0004", 1, 0.1, macs=9e6)
    measure(rungs, "t0005", 1, 0.9)
    end(rungs, "t0005", "completed")  # its last stage
    assert not rungs.should_stop("t0005")
    assert list(rungs.rungs["step", 1]) == [f"t000{i}" for i in range(6)]
    assert ("step", 0) not in rungs.rungs
    plain = SuccessiveHalving(ACCURACY, [2])
    assert measure(plain, "t0000", 1, 0.1)
    assert set(plain.rungs) == {("dense", 2)}


def test_a_retried_trial_is_ranked_like_any_other() -> None:
    rungs = SuccessiveHalving(ACCURACY, [2])
    assert reach(rungs, "t0000", 2, 0.5)
    end(rungs, "t0002", "crashed")
    assert not rungs.should_stop("t0002")
    rungs.apply(TrialRetried(trial="t0002"))
    assert not reach(rungs, "t0002", 2, 0.1)


def test_a_replicate_is_stopped_where_its_first_trial_was_and_a_confirmation_never() -> None:
    """A replicate that starts later still runs to the rung, because its points count in the means."""
    rungs = SuccessiveHalving(OBJECTIVES, [2], after_steps=True)
    rungs.apply(TrialCreated(trial="t0001r9", config_id="t0001", replicate=9, params={}, values={}, confirms=True))
    assert reach(rungs, "t0000", 2, 0.9)
    assert reach(rungs, "t0001", 2, 0.8, macs=5e5)
    for name, accuracy in (("t0000", 0.9), ("t0001", 0.1)):
        point = {"step": 1, "val_macro_avg_acc": accuracy, "macs": 1e6}
        rungs.apply(PointMeasured(trial=name, point=point))
    assert rungs.should_stop("t0001")
    end(rungs, "t0001", "stopped")
    for name in ("t0001r1", "t0001r9"):
        assert reach(rungs, name, 2, 0.5), "its first trial passed this rung"
        rungs.apply(PointMeasured(trial=name, point=point))
        assert rungs.should_stop(name) == (name == "t0001r1")
    assert set(rungs.rungs["step", 1]) == {"t0000", "t0001"}


def test_the_digest_tells_another_order_from_the_same() -> None:
    orders = [["t0000", "t0001"], ["t0001", "t0000"]]
    digests = []
    for order in orders:
        rungs = SuccessiveHalving(ACCURACY, [2])
        for name in order:
            reach(rungs, name, 2, float(name[-1]))
        digests.append(rungs.digest())
    assert digests[0] != digests[1]


def test_a_log_rebuilds_the_rungs_in_their_order(tmp_path: Path) -> None:
    study = RandomStudy(tmp_path, 3, scheduler="mo_asha", replicates=1)
    study.run(400)
    first = study.reducers.rungs
    assert first
    again = build_rungs("mo_asha", 8)
    assert again
    for event in study.events:
        again.apply(event)
    assert {k: list(r.items()) for k, r in again.rungs.items()} == {k: list(r.items()) for k, r in first.rungs.items()}
    assert again.digest() == first.digest()
    assert len(first.rungs["dense", 6]) > 8
    assert len(first.rungs["step", 1]) > 1


def test_decisions_do_not_depend_on_when_they_are_asked_for() -> None:
    """A trial is compared with those that reached the rung before it, not with later ones."""
    early, late = SuccessiveHalving(ACCURACY, [2]), SuccessiveHalving(ACCURACY, [2])
    accuracies = np.random.default_rng(1).permutation(30) / 30
    decisions = [reach(early, f"t{i:04d}", 2, float(a)) for i, a in enumerate(accuracies)]
    for i, a in enumerate(accuracies):
        late.apply(
            EpochReported(trial=f"t{i:04d}", stage=0, epoch=2, epochs=2, figures={"val_macro_avg_acc": float(a)})
        )
    assert [not late.should_stop(f"t{i:04d}") for i in range(30)] == decisions
    assert 5 < sum(decisions) < 25


def test_crowding_distance_closed_form() -> None:
    values = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    assert crowding_distance(values).tolist() == [np.inf, 3 / 4 + 3 / 4, 3 / 4 + 3 / 4, np.inf]
    assert crowding_distance(values[:1]).tolist() == [np.inf]


def test_every_scheduler_has_a_name() -> None:
    assert set(SCHEDULERS) == {"mo_asha", "asha", "fifo", "pbt"}
    assert {name: build_rungs(name, 8) is not None for name in SCHEDULERS} == {
        "mo_asha": True,
        "asha": True,
        "fifo": False,
        "pbt": False,
    }
    with pytest.raises(SchedulerError) as error:
        build_rungs("hyperband", 8)
    for word in ("'hyperband'", *SCHEDULERS):
        assert word in str(error.value)
