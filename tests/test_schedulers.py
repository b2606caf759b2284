"""The schedulers: rungs, decisions, what a resume rebuilds; population based training, also in a Ray cluster."""

import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.tune as rt
from ray import cloudpickle
from ray.tune.schedulers import TrialScheduler

from search_spaces import load_space, space_from_dict
from trainables.config import MUTABLE_KEYS, key_types
from tune.population import Population, SchedulerError
from tune.schedulers import (
    SCHEDULERS,
    SuccessiveHalving,
    build_scheduler,
    crowding_distance,
    milestones,
)
from tune.search import OBJECTIVES, FeasibleOptunaSearch, Verdict

ACCURACY = {"val_macro_avg_acc": "max"}
SPACE = load_space("kd_prune")


def result(epochs: int, accuracy: float, macs: float = 1e6, stage: int = 0, ends: bool = False, **more) -> dict:
    """As a Trainable reports it, `ends` a stage or not."""
    points = [{"step": step} for step in range(stage + ends)]
    figures = {"val_macro_avg_acc": accuracy, "macs": macs, "points": points}
    return {"stage": stage, "epochs": epochs, "training_iteration": epochs, "done": False, **figures, **more}


def event(name: str, of: dict) -> dict:
    """A result as the journal has it."""
    point = next((p for p in of["points"] if p["step"] == of["stage"]), None)
    return {"event": "result", "trial": name, "finished": False, "point": point} | {
        k: v for k, v in of.items() if k not in ("points", "training_iteration")
    }


def trial(name: str) -> Any:
    return SimpleNamespace(config={"trial": name})


def test_milestones() -> None:
    assert milestones(2, 7, 2.0) == [2, 4]
    assert milestones(37, 149, 2.0) == [37, 74, 148]
    assert milestones(1, 0, 2.0) == []


def test_plain_asha_keeps_the_better_half() -> None:
    scheduler = SuccessiveHalving(ACCURACY, [2])
    accuracies = np.random.default_rng(0).permutation(20) / 20
    for i, accuracy in enumerate(accuracies):
        kept = scheduler.record(f"t{i}", result(2, accuracy))
        better = (accuracies[:i] > accuracy).sum()
        assert kept == (better < max(1, np.ceil((i + 1) / 2)))


def test_mo_asha_keeps_a_small_network_that_asha_stops() -> None:
    plain, multi = SuccessiveHalving(ACCURACY, [2]), SuccessiveHalving(OBJECTIVES, [2])
    for i in range(9):
        for scheduler in (plain, multi):
            scheduler.record(f"t{i}", result(2, 0.5 + i / 100, macs=(10 + i) * 1e6))
    small = result(2, 0.4, macs=1e6)
    assert not plain.record("small", small)
    assert multi.record("small", small)
    assert not multi.record("bad", result(2, 0.3, macs=30e6))


def test_only_milestones_count_and_a_rung_keeps_the_first_result() -> None:
    scheduler = SuccessiveHalving(OBJECTIVES, [2, 4])
    assert scheduler.record("t0", result(3, 0.0))
    assert scheduler.rungs == {("dense", 2): {}, ("dense", 4): {}}
    scheduler.record("t0", result(4, 0.5))
    scheduler.record("t0", result(4, 0.1))  # repeated by a resume
    assert scheduler.rungs["dense", 4] == {"t0": (0.5, 1e6)}


@pytest.mark.parametrize("accuracy", [float("nan"), float("inf")])
def test_what_is_not_finite_enters_no_rung(accuracy: float) -> None:
    scheduler = SuccessiveHalving(OBJECTIVES, [2])
    assert scheduler.record("t0", result(2, accuracy))
    assert scheduler.record("t1", {"done": True, "failure": "diverged in its first epoch"})
    assert scheduler.record("t2", result(2, 0.5, failure="diverged", done=True))
    assert scheduler.rungs["dense", 2] == {}


def test_a_rung_after_each_prune_step() -> None:
    scheduler = SuccessiveHalving(OBJECTIVES, [2], after_steps=True)
    for i in range(4):
        scheduler.record(f"t{i}", result(5, 0.6 + i / 100, macs=5e6 - i, stage=1, ends=True))
    assert scheduler.record("t4", result(5, 0.1, stage=1, macs=9e6))  # retraining goes on
    assert not scheduler.record("t4", result(6, 0.1, stage=1, macs=9e6, ends=True))
    scheduler.on_trial_complete(None, trial("t5"), result(6, 0.9, stage=1, ends=True, done=True))  # its last stage
    assert set(scheduler.rungs["step", 1]) == {"t0", "t1", "t2", "t3", "t4", "t5"}
    plain = SuccessiveHalving(ACCURACY, [2])
    assert plain.record("t0", result(6, 0.1, stage=1, ends=True))
    assert set(plain.rungs) == {("dense", 2)}


def test_replicates_share_the_fate_of_their_configurations_first_trial() -> None:
    scheduler = SuccessiveHalving(ACCURACY, [2])
    assert scheduler.record("t0000", result(2, 0.5))
    assert scheduler.record("t0000r1", result(2, 0.1))
    assert not scheduler.record("t0001", result(2, 0.3))
    assert not scheduler.record("t0001r1", result(1, 0.9))
    assert scheduler.rungs == {("dense", 2): {"t0000": (0.5,), "t0001": (0.3,)}}
    again = SuccessiveHalving(ACCURACY, [2], events=[event("t0001", result(2, 0.3) | {"done": True})])
    assert not again.record("t0001r1", result(1, 0.9))


def test_decisions_are_rays() -> None:
    scheduler = SuccessiveHalving(ACCURACY, [2])
    assert scheduler.on_trial_result(None, trial("t0"), result(2, 0.5)) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, trial("t1"), result(2, 0.4)) == TrialScheduler.STOP
    assert scheduler.on_trial_result(None, trial("t1"), result(3, 0.9)) == TrialScheduler.STOP  # it did not hear


def lives(n_trials: int, seed: int) -> tuple[SuccessiveHalving, list[dict]]:
    """Trials of 6 dense epochs and two steps of 2, in a shuffled order: the scheduler, and its journal."""
    scheduler, events = SuccessiveHalving(OBJECTIVES, [2, 4], after_steps=True), []
    rng = np.random.default_rng(seed)
    left = {f"t{i:04d}": list(range(10)) for i in range(n_trials)}
    while left:
        name = str(rng.choice(list(left)))
        epoch = left[name].pop(0) + 1
        stage = max(0, (epoch - 5) // 2)
        ends, done = epoch in (6, 8, 10), epoch == 10
        told = result(epoch, float(rng.random()), float(rng.integers(1, 99)) * 1e5, stage, ends, done=done)
        events.append(event(name, told))
        if done:
            scheduler.on_trial_complete(None, trial(name), told)
        if done or scheduler.on_trial_result(None, trial(name), told) == TrialScheduler.STOP:
            del left[name]
            if not done:
                events.append({"event": "end", "trial": name, "status": "stopped early", "failure": None})
    return scheduler, events


def test_a_journal_rebuilds_the_rungs_in_their_order() -> None:
    first, events = lives(12, seed=1)
    again = build_with(events)
    assert {k: list(r.items()) for k, r in again.rungs.items()} == {k: list(r.items()) for k, r in first.rungs.items()}
    assert len(first.rungs["dense", 2]) == 12
    assert len(first.rungs["step", 1]) > 1
    repeated = build_with([*events, *events])
    assert repeated.rungs == first.rungs
    nothing = {"stage": None, "epochs": 0, "val_macro_avg_acc": None, "macs": None, "finished": False}
    failed = nothing | {"event": "result", "trial": "t0099", "done": True, "failure": "out of GPU memory"}
    assert build_with([*events, failed]).rungs == first.rungs


def build_with(events: list[dict]) -> SuccessiveHalving:
    return SuccessiveHalving(OBJECTIVES, [2, 4], after_steps=True, events=events)


def test_a_decision_that_a_kill_swallowed_is_taken_again() -> None:
    """Cut off anywhere, a rebuilt scheduler decides as the one that went on."""
    _, events = lives(12, seed=2)
    journal = json.loads(json.dumps(events))
    swallowed = 0
    for cut in range(1, len(journal)):
        ended = journal[cut]["event"] == "end"
        rebuilt = build_with(journal[:cut])
        last = journal[cut - 1]
        if last["event"] == "result" and not last["done"]:
            assert (last["trial"] in rebuilt.stopped) == ended
        swallowed += ended
    assert swallowed > 3


def test_crowding_distance_closed_form() -> None:
    values = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    assert crowding_distance(values).tolist() == [np.inf, 3 / 4 + 3 / 4, 3 / 4 + 3 / 4, np.inf]
    assert crowding_distance(values[:1]).tolist() == [np.inf]


def test_every_scheduler_has_a_name() -> None:
    for name in SCHEDULERS:
        built = build_scheduler(name, 8, load_space("pbt"))
        assert isinstance(built, Population) == (name == "pbt")
    with pytest.raises(SchedulerError, match="'hyperband': choose from mo_asha, asha, fifo, pbt"):
        build_scheduler("hyperband", 8, SPACE)


def test_pbt_refuses_a_space_with_more_than_one_network() -> None:
    with pytest.raises(SchedulerError, match=r"space kd_prune searches prune\.ratios, student\.base_channels, student"):
        build_scheduler("pbt", 8, SPACE)


def test_mutable_keys_are_of_the_configuration() -> None:
    assert set(MUTABLE_KEYS) <= set(key_types())
    assert set(load_space("pbt").parameters) <= set(MUTABLE_KEYS)


def test_pbt_keeps_names_and_ranges() -> None:
    parameters = {"train.lr": {"loguniform": [0.001, 0.02]}, "augment.mixup_alpha": {"choice": [0.0, 0.2, 0.4]}}
    population = Population(space_from_dict({"name": "s", "parameters": parameters}), dense_epochs=8)
    random.seed(0)
    mine = {"trial": "t0", "study_dir": "a", "seed": 1, "replicate": 0, "train.lr": 0.002, "augment.mixup_alpha": 0.0}
    other = mine | {"trial": "t1", "replicate": 1, "train.lr": 0.019, "augment.mixup_alpha": 0.4}
    changed = set()
    for _ in range(50):
        config, _ = population._get_new_config(SimpleNamespace(config=mine), SimpleNamespace(config=other))  # type: ignore[arg-type]
        assert (config["trial"], config["study_dir"], config["replicate"]) == ("t0", "a", 0)
        assert 0.001 <= config["train.lr"] <= 0.02
        assert config["augment.mixup_alpha"] in (0.0, 0.2, 0.4)
        changed.add(config["train.lr"])
    assert len(changed) > 3


class Walker(rt.Trainable):
    """Moves up by its rate each epoch; tells whose steps it has taken."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.own, self.position, self.lineage = dict(new_config), 0.0, []
        return True

    def step(self) -> dict[str, Any]:
        self.position += self.own["train.lr"]
        self.lineage.append(self.own["trial"])
        with Path(self.own["log"]).open("a") as log:
            log.write(f"{self.own['trial']}\n")
        epochs = len(self.lineage)
        figures = {
            "val_macro_avg_acc": self.position,
            "macs": 1.0,
            "lineage": self.lineage,
            "rate": self.own["train.lr"],
        }
        return {"stage": 0, "epochs": epochs, "done": epochs == 8, "finished": epochs == 8, **figures}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "state.json").write_text(json.dumps([self.position, self.lineage]))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.position, self.lineage = json.loads((Path(checkpoint) / "state.json").read_text())


@pytest.mark.ray
@pytest.mark.slow
def test_pbt_in_a_cluster(tmp_path: Path) -> None:
    """Weights move from better to worse trials in the dense phase; each trial keeps its name and its place."""
    space = space_from_dict({"name": "s", "parameters": {"train.lr": {"loguniform": [0.001, 0.02]}}})
    searcher = FeasibleOptunaSearch(
        space, {"log": str(tmp_path / "log")}, lambda values: Verdict(json.dumps(values), -1.0), sampler="random"
    )
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)  # two at a time, the others wait
    try:
        results = rt.Tuner(
            Walker,
            tune_config=rt.TuneConfig(
                search_alg=searcher, scheduler=build_scheduler("pbt", 8, space), num_samples=4, reuse_actors=True
            ),
            run_config=rt.RunConfig(
                storage_path=str(tmp_path), verbose=0, checkpoint_config=rt.CheckpointConfig(checkpoint_frequency=1)
            ),
        ).fit()
    finally:
        ray.shutdown()
    ended = [r.metrics for r in results if r.metrics]
    assert sorted(m["lineage"][-1] for m in ended) == ["t0000", "t0001", "t0002", "t0003"]
    assert all(len(m["lineage"]) == 8 for m in ended)
    assert any(len(set(m["lineage"])) > 1 for m in ended)  # someone took over another's steps
    steps = (tmp_path / "log").read_text().splitlines()
    assert max(Counter(steps).values()) < 2 * 8  # an epoch is trained twice at most, to take over one behind
    assert all(0.001 <= m["rate"] <= 0.02 for m in ended)
