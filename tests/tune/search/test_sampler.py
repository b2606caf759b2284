"""The sampler: which configurations it draws, and which it draws after a resume."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState as Optunas

from search_spaces import load_space, space_from_dict
from tests.support.tune.sampled_search import Search, any_gate, drive, edited, one, points
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from tune.search import history
from tune.search.feasibility import NetworkGate, stages, violation
from tune.search.optuna_study import SAMPLERS
from tune.search.replay import replay
from tune.search.sampler import MAX_REJECTIONS
from tune.study.journal import read_events
from tune.study.writer import Journal


@pytest.mark.slow
def test_every_trial_fits_the_limits_at_some_stage() -> None:
    space = load_space("kd_prune")
    base = compose([*space.base, "limits.macs=1e6"]).flat()
    search = Search(space, NetworkGate(base))
    for _ in range(8):
        c = TrialConfig.from_flat(base | search.next().values)
        sizes = stages(c.student, c.prune, c.frontend.n_mels, c.frontend.frames)
        assert any(c.limits.allow(macs, params) for macs, params, _ in sizes)
    rejected = search.log.state.rejected
    assert set(rejected) == {"over the limits at every stage"}  # a tight limit rejects some samples
    pruned = search.optuna_trials(Optunas.PRUNED)
    assert len(pruned) == rejected.total()
    assert all(t.constraints["limits"] > 0 for t in pruned)


def test_violation_is_the_cheapest_stages_excess() -> None:
    limits = compose(["limits.macs=100", "limits.bytes=100", "limits.precision=int8"]).limits
    assert violation(((200, 90), (150, 10)), limits) == pytest.approx(0.5)
    assert violation(((200, 90), (90, 110)), limits) == pytest.approx(0.1)
    assert violation(((200, 90), (90, 50)), limits) == pytest.approx(-0.1)
    assert violation(((200, 90), (150, 10)), limits, slack=1.5) == pytest.approx(0)  # only pruned sizes are estimates
    assert violation(((150, 90),), limits, slack=1.5) == pytest.approx(0.5)


@pytest.mark.slow
def test_an_estimate_does_not_reject_what_may_fit() -> None:
    """With global pruning, weights decide about the widths, so the size before training is not the final one."""
    base = compose(["student=tf_sepnet", "prune.ratios=[0.3]", "prune.scope=global"]).flat()
    config = TrialConfig.from_flat(base)
    shape = config.frontend.n_mels, config.frontend.frames
    estimate = stages(config.student, config.prune, *shape, config.limits.precision)[1][0]
    for scope, share, accepted in (("global", 0.7, True), ("global", 0.6, False), ("local", 0.7, False)):
        gate = NetworkGate(base | {"prune.scope": scope, "limits.macs": share * estimate})
        assert (gate({}).excess <= 0) is accepted, (scope, share)


@pytest.mark.slow
def test_space_without_a_feasible_point_ends_after_bounded_tries() -> None:
    space = space_from_dict({"name": "s", "parameters": {"train.lr": {"uniform": [0.001, 0.01]}}})
    search = Search(space, NetworkGate(compose(["limits.macs=1000"]).flat()))
    assert search.session.next_trial() is None
    assert search.log.state.exhausted
    assert search.log.state.rejected == {"over the limits at every stage": MAX_REJECTIONS}
    assert len(search.optuna_trials(Optunas.PRUNED)) == MAX_REJECTIONS


@pytest.mark.slow
def test_no_network_is_trained_twice_in_the_same_way() -> None:
    """Different ratios that remove the same channels are one configuration; another learning rate is another one."""
    parameters = {"prune.ratios": {"choice": [[0.3], [0.3001]]}, "train.lr": {"choice": [0.01, 0.02]}}
    space = space_from_dict({"name": "s", "base": ["student.base_channels=8"], "parameters": parameters})
    search = Search(space, NetworkGate(compose(space.base).flat()))
    assert sorted(search.next().values["train.lr"] for _ in range(2)) == [0.01, 0.02]
    assert search.session.next_trial() is None
    assert set(search.log.state.rejected) == {"trained before"}


@pytest.mark.slow
def test_gp_sampler_draws() -> None:
    assert set(SAMPLERS) == {"tpe", "nsga2", "gp", "random"}
    search = Search(load_space("kd"), any_gate, sampler="gp")
    for _ in range(12):  # beyond the random start
        trial = search.next()
        search.end(trial.name, one(trial.values["distill.kd_alpha"]))
    assert len(search.optuna_trials(Optunas.COMPLETE)) == 12


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_resumed_search_draws_what_the_uninterrupted_one_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Tested beyond the random start and a truncation of the history, with a journal on disk."""
    monkeypatch.setattr(history, "CAPACITY", 24)
    through = Search(sampler=sampler)
    drive(through, 30)
    journal = Journal(tmp_path, None)
    journal.append(tuple(through.events))
    resumed = Search(sampler=sampler, events=list(read_events(tmp_path)))
    assert len(resumed.optuna_trials()) == len(through.optuna_trials()) < 30
    assert resumed.sampler.digest() == through.sampler.digest()
    assert drive(resumed, 6) == drive(through, 6)
    assert resumed.sampler.digest() == through.sampler.digest()


def test_trials_that_have_not_ended_come_first_after_a_resume() -> None:
    search = Search()
    values = drive(search, 4, leave=2)
    resumed = Search(events=search.events).begin()
    assert {"trial": (trial := resumed.next()).name} | trial.values == values[2]
    assert resumed.next().name == "t0004"
    assert len(resumed.optuna_trials(Optunas.RUNNING)) == 2


def test_replicates_that_a_kill_left_out_are_added(tmp_path: Path) -> None:
    """The trials of a configuration are written in one call, of which a kill may leave a part."""
    options: dict[str, Any] = {"space": load_space("kd"), "gate": any_gate, "replicates": 3}
    search = Search(**options)
    first = [search.next() for _ in range(4)]
    journal = Journal(tmp_path, None)
    journal.append(tuple(search.events))
    path = next((tmp_path / "journal").iterdir())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1])[:-20])  # t0001 is there, its replicates are not
    resumed = Search(events=list(read_events(tmp_path)), **options).begin()
    names = ["t0000", "t0000r1", "t0000r2", "t0001", "t0001r1", "t0001r2", "t0002"]
    trials = [resumed.next() for _ in names]
    assert [t.name for t in trials] == names
    assert [t.values for t in trials[:4]] == [t.values for t in first]
    assert trials[4].values == trials[5].values == trials[3].values
    for name, accuracy in (("t0001", 0.4), ("t0001r1", 0.5), ("t0001r2", 0.9)):
        resumed.end(name, one(accuracy))
    assert [t.values for t in resumed.optuna_trials(Optunas.COMPLETE)] == [pytest.approx([0.6, 2e6])]
    again = Search(events=resumed.events, **options)
    before = len(again.events)
    again.begin()
    assert len(again.events) == before, "nothing is missing any more"


def test_a_kill_between_the_end_of_a_trial_and_the_judgement_of_its_shorter_schedules() -> None:
    """Wherever a kill cuts the events of the last result, the resumed search ends with the same history."""
    search = Search(sampler="random")
    while len((trial := search.next()).values["prune.ratios"]) < 3:
        search.end(trial.name, points(len(trial.values["prune.ratios"]) + 1))
    begin = len(search.events)
    search.end(trial.name, points(4))
    kinds = [event.kind for event in search.events[begin:]]
    assert kinds == ["epoch_reported", *["point_measured"] * 4, "trial_ended", *["configuration_judged"] * 2]
    for cut in range(begin + kinds.index("trial_ended") + 1, len(search.events)):
        resumed = Search(sampler="random", events=search.events[:cut])
        assert len(resumed.optuna_trials(Optunas.COMPLETE)) < len(search.optuna_trials(Optunas.COMPLETE))
        resumed.begin()
        assert resumed.sampler.digest() == search.sampler.digest()
        assert resumed.next().values == Search(sampler="random", events=list(search.events)).next().values


@pytest.mark.parametrize(
    ("change", "some"),
    [
        ({"distill.kd_alpha": {"uniform": [0.5, 0.9]}}, True),
        ({"distill.kd_temp": None}, False),  # the samples have a value that is no longer searched
        ({"train.weight_decay": {"loguniform": [1e-5, 1e-3]}}, False),
    ],
)
def test_a_search_goes_on_in_an_edited_space(change: dict[str, Any], some: bool) -> None:
    """Samples outside the edited space are counted but not added to the Optuna study; their trials end normally."""
    search = Search()
    drive(search, 8, leave=5)
    space = edited(**change)
    resumed = Search(space, events=search.events).begin()
    n_optuna_trials, state = len(resumed.optuna_trials()), resumed.log.state
    assert n_optuna_trials < len(state.trials) + state.rejected.total()
    assert (n_optuna_trials > 0) == some
    for expected in ("t0005", "t0008", "t0009"):
        trial = resumed.next()
        assert trial.name == expected
        resumed.end(trial.name, points(2))
    assert set(trial.values) == set(space.parameters)
    assert replay(space, trial.params)[0] == trial.values
    assert len(resumed.optuna_trials(Optunas.COMPLETE)) >= 2
    assert Search(space, events=list(resumed.events)).sampler.digest() == resumed.sampler.digest()
