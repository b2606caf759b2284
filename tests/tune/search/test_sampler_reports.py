"""What the sampler reports to Optuna: ends of trials, points, replicates, retries."""

from typing import Any

import pytest
from optuna.trial import TrialState as Optunas

from search_spaces import load_space, space_from_dict
from tests.support.simulated import result
from tests.support.tune.sampled_search import Search, any_gate, one, points
from tune.search.replay import replay
from tune.study.events import (
    TrialCreated,
    TrialEnded,
    TrialRetried,
)


def test_how_trials_end_in_optuna() -> None:
    search = Search()
    ends = {
        "completed": lambda name: search.end(name, one(0.6)),
        "stopped": lambda name: search.end(name, one(0.1), finished=False),
        "failed": lambda name: search.end(name, one(0.1), finished=False, failure="loss is nan"),
        "crashed": lambda name: search.session.crashed(name, "the node died"),
        "by ray": lambda name: search.session.stopped(name, by="ray tune"),
    }
    found = {}
    for outcome, end in ends.items():
        name = search.next().name
        (number,) = [t.number for t in search.optuna_trials(Optunas.RUNNING)]
        end(name)
        found[outcome] = search.optuna_trials()[number]
    assert {outcome: t.state for outcome, t in found.items()} == {
        "completed": Optunas.COMPLETE,
        "stopped": Optunas.PRUNED,
        "failed": Optunas.FAIL,
        "crashed": Optunas.FAIL,
        "by ray": Optunas.PRUNED,
    }
    assert found["completed"].values == [0.6, 2e6]
    assert found["stopped"].values is None


@pytest.mark.parametrize("outcome", ["completed", "stopped", "failed", "crashed"])
def test_shorter_schedules_are_reported_too(outcome: str) -> None:
    """A trial with 3 prune steps also measures those with 1 and 2 steps, whatever its outcome."""
    space = load_space("kd_prune")
    search = Search(space)
    while len((trial := search.next()).values["prune.ratios"]) < 3:
        search.session.crashed(trial.name, "the node died")
    measured = points(4 if outcome == "completed" else 3)
    if outcome == "crashed":
        search.session.report(trial.name, result(trial.name, 2, 1, 9, points=measured))
        search.session.crashed(trial.name, "the node died")
    else:
        failure = {"failure": "loss is nan"} if outcome == "failed" else {}
        search.end(trial.name, measured, finished=outcome == "completed", **failure)
    complete = search.optuna_trials(Optunas.COMPLETE)
    expected = {p["step"]: [p["val_macro_avg_acc"], p["macs"]] for p in measured if p["step"]}
    assert {t.params["prune.steps"]: t.values for t in complete} == expected
    ratios = trial.values["prune.ratios"]
    for t in complete:
        assert replay(space, t.params)[0]["prune.ratios"] == ratios[: t.params["prune.steps"]]


@pytest.mark.parametrize("outcome", ["completed", "stopped"])
def test_the_dense_network_is_reported_where_the_space_draws_it(outcome: str) -> None:
    """A space with 0 prune steps contains the configuration of the dense network."""
    parameters = {"prune.ratios": {"each": "prune.steps", "item": {"uniform": [0.1, 0.4]}}}
    auxiliary = {"prune.steps": {"int": [0, 2]}}
    search = Search(space_from_dict({"name": "s", "auxiliary": auxiliary, "parameters": parameters}), any_gate)
    while len((trial := search.next()).values["prune.ratios"]) < 2:
        search.session.crashed(trial.name, "the node died")
    measured = points(3 if outcome == "completed" else 2)
    search.end(trial.name, measured, finished=outcome == "completed")
    search.sampler.settle(search.log)
    complete = {t.params["prune.steps"]: t.values for t in search.optuna_trials(Optunas.COMPLETE)}
    assert complete == {p["step"]: [p["val_macro_avg_acc"], p["macs"]] for p in measured}


def test_replicates_are_one_configuration_with_other_seeds() -> None:
    search = Search(load_space("kd"), any_gate, replicates=3)
    trials = [search.next() for _ in range(6)]
    assert [t.name for t in trials] == ["t0000", "t0000r1", "t0000r2", "t0001", "t0001r1", "t0001r2"]
    assert [t.replicate for t in trials] == [0, 1, 2, 0, 1, 2]
    assert trials[0].values == trials[1].values == trials[2].values != trials[3].values
    for trial, accuracy in zip(trials, (0.5, 0.6, 0.7), strict=False):
        assert not search.optuna_trials(Optunas.COMPLETE)
        search.end(trial.name, one(accuracy))
    assert [t.values for t in search.optuna_trials(Optunas.COMPLETE)] == [pytest.approx([0.6, 2e6])]


def test_a_crashed_trial_is_another_one_in_optuna_when_it_is_retried() -> None:
    search = Search()
    for _ in range(2):
        search.session.crashed(search.next().name, "the node died")
    assert [t.state for t in search.optuna_trials(Optunas.FAIL, Optunas.RUNNING)] == [Optunas.FAIL] * 2
    resumed = Search(events=search.events)
    resumed.log.add(TrialRetried(trial="t0001"))
    assert resumed.next().name == "t0001"
    first, second, retried = resumed.optuna_trials(Optunas.FAIL, Optunas.RUNNING)
    assert [t.state for t in (first, second, retried)] == [Optunas.FAIL, Optunas.FAIL, Optunas.RUNNING]
    assert retried.params == second.params
    resumed.end("t0001", one(0.7))
    assert [(t.number, t.values) for t in resumed.optuna_trials(Optunas.COMPLETE)] == [(retried.number, [0.7, 2e6])]


@pytest.mark.parametrize("last", [0, 2])
def test_a_retry_among_replicates_gives_the_mean_over_all(last: int) -> None:
    """The other replicates may end before the crash or after the retry."""
    options: dict[str, Any] = {"space": load_space("kd"), "gate": any_gate, "replicates": 3}
    search = Search(**options)
    names = [search.next().name for _ in range(3)]
    search.session.crashed(names[1], "the node died")
    for name in (names[0], names[2])[: 2 - last]:
        search.end(name, one(0.4))
    assert [t.values for t in search.optuna_trials(Optunas.COMPLETE)] == ([[0.4, 2e6]] if last == 0 else [])
    resumed = Search(events=search.events, **options).begin()
    for name in (names[0], names[2])[2 - last :]:
        resumed.end(name, one(0.4))
    resumed.end(names[1], one(0.7))
    means = [t.values for t in resumed.optuna_trials(Optunas.COMPLETE)]
    assert means == [pytest.approx([0.4, 2e6])] * (last == 0) + [pytest.approx([0.5, 2e6])]
    assert not resumed.optuna_trials(Optunas.RUNNING)


def test_points_before_a_crash_count_after_its_retry() -> None:
    """The retried trial continues from its checkpoint and does not report the dense network again."""
    search = Search()
    trial = search.next()
    n_points = len(trial.values["prune.ratios"]) + 1
    search.session.report(trial.name, result(trial.name, 0, 1, 1, points=points(1)))
    search.session.crashed(trial.name, "the node died")
    resumed = Search(events=search.events).begin()
    resumed.end(trial.name, points(n_points))
    complete = [t for t in resumed.optuna_trials(Optunas.COMPLETE) if t.params == trial.params]
    assert [t.values for t in complete] == [[points(n_points)[-1][name] for name in ("val_macro_avg_acc", "macs")]]


def test_optuna_does_not_learn_from_confirmations() -> None:
    """The retry of a confirmation does not complete a configuration whose own trial still waits for its retry."""
    search = Search(load_space("kd"), any_gate)
    trial = search.next()
    search.session.crashed(trial.name, "the node died")
    shared = {"config_id": trial.name, "params": trial.params, "values": trial.values, "key": trial.key}
    search.log.add(TrialCreated(trial="t0000r1", replicate=1, confirms=True, **shared))
    search.log.add(TrialEnded(trial="t0000r1", outcome="crashed"), TrialRetried(trial="t0000r1"))
    assert [t.state for t in search.optuna_trials()] == [Optunas.FAIL]
    search.log.add(TrialRetried(trial="t0000"))
    assert [t.state for t in search.optuna_trials()] == [Optunas.FAIL, Optunas.RUNNING]
    resumed = Search(load_space("kd"), any_gate, events=search.events).begin()
    assert [resumed.next().name for _ in range(2)] == ["t0000", "t0000r1"]
    resumed.end("t0000r1", one(0.1))
    resumed.end("t0000", one(0.7))
    assert [t.values for t in resumed.optuna_trials(Optunas.COMPLETE)] == [[0.7, 2e6]]
    assert resumed.next().name == "t0001"
