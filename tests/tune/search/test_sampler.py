"""The sampler: what it draws, rejects, reports to Optuna and knows after a resume."""

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as Optunas

from search_spaces import Space, SpaceError, load_space, space_from_dict
from tests.support.simulated import plain_gate, point, result
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from tune.search import history
from tune.search.feasibility import Gate, NetworkGate, Verdict, stages, violation
from tune.search.optuna_study import SAMPLERS
from tune.search.replay import earlier_points, params_of, replay, shortened
from tune.search.sampler import MAX_REJECTIONS, FeasibleSampler
from tune.search.session import SearchSession
from tune.study.events import (
    ConfigurationJudged,
    DriverStarted,
    Event,
    PointImported,
    TrialCreated,
    TrialEnded,
    TrialRetried,
)
from tune.study.journal import Journal, Reading, read_events, read_state
from tune.study.log import StudyLog
from tune.study.state import TrialState

SHIPPED = ("kd", "rep", "families", "prune", "kd_prune", "pbt")


def any_gate(values: dict[str, Any]) -> Verdict:
    return Verdict(json.dumps(values), -1.0)


class Search:
    """One driver's search, without early stopping: it replays `events`, to which its own are added."""

    def __init__(
        self, space: Space | None = None, gate: Gate = plain_gate, events: list[Event] | None = None, **options
    ):
        self.events = [] if events is None else events
        self.log = StudyLog(self.events.extend)
        self.sampler = FeasibleSampler(space or load_space("kd_prune"), gate, **options)
        self.log.attach(self.sampler)
        self.log.replay(list(self.events))
        self.log.add(DriverStarted(command="test"))

    def begin(self) -> "Search":
        """What a driver does before it trains."""
        self.log.add(*(TrialRetried(trial=trial.name) for trial in self.log.state.crashed))
        self.sampler.complete_replicates(self.log)
        self.sampler.settle(self.log)
        return self

    @property
    def session(self) -> SearchSession:
        if not hasattr(self, "_session"):
            self._session = SearchSession(self.log, self.sampler, None, "fifo")
        return self._session

    def next(self) -> TrialState:
        trial = self.session.next_trial()
        assert trial is not None
        return trial

    def end(self, name: str, points: list[dict[str, Any]], finished: bool = True, **more: Any) -> None:
        """Report the last epoch of a trial."""
        epochs = self.log.state.trials[name].epochs + 1
        self.session.report(name, result(name, 0, epochs, epochs, points=points, done=True, finished=finished, **more))

    def told(self, *states: Optunas) -> list[FrozenTrial]:
        """Optuna's trials in one of the states; all without one."""
        return [t for t in self.sampler.study.get_trials(deepcopy=False) if not states or t.state in states]


def points(n: int, accuracy: float = 0.6) -> list[dict[str, Any]]:
    """Of a dense network and n - 1 prune steps, each half as large."""
    return [point(k, accuracy - k / 100, 8e6 / 2**k) for k in range(n)]


def one(accuracy: float) -> list[dict[str, Any]]:
    return [point(0, accuracy, 2e6)]


def drive(search: Search, n: int, leave: int | None = None) -> list[dict[str, Any]]:
    """Draw and end `n` trials, of which every third is stopped early; `leave` is left running. What they were."""
    drawn = []
    for _ in range(n):
        trial = search.next()
        drawn.append({"trial": trial.name} | trial.values)
        number = int(trial.name[1:])
        if number != leave:
            whole = number % 3 > 0
            n_points = len(trial.values["prune.ratios"]) + 1 if whole else 1
            search.end(trial.name, points(n_points, 0.3 + trial.values["distill.kd_alpha"] / 2), whole)
    return drawn


# what is drawn and rejected


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
    assert set(rejected) == {"over the limits at every stage"}  # a tight limit rejects some of any draws
    pruned = search.told(Optunas.PRUNED)
    assert len(pruned) == rejected.total()
    assert all(t.constraints["limits"] > 0 for t in pruned)


def test_violation_is_the_cheapest_stages_excess() -> None:
    limits = compose(["limits.macs=100", "limits.bytes=100", "limits.precision=int8"]).limits
    assert violation(((200, 90), (150, 10)), limits) == pytest.approx(0.5)
    assert violation(((200, 90), (90, 110)), limits) == pytest.approx(0.1)
    assert violation(((200, 90), (90, 50)), limits) == pytest.approx(-0.1)


@pytest.mark.slow
def test_space_without_a_feasible_point_ends_after_bounded_tries() -> None:
    space = space_from_dict({"name": "s", "parameters": {"train.lr": {"uniform": [0.001, 0.01]}}})
    search = Search(space, NetworkGate(compose(["limits.macs=1000"]).flat()))
    assert search.session.next_trial() is None
    assert search.log.state.exhausted
    assert search.log.state.rejected == {"over the limits at every stage": MAX_REJECTIONS}
    assert len(search.told(Optunas.PRUNED)) == MAX_REJECTIONS


@pytest.mark.slow
def test_no_network_is_trained_twice_in_the_same_way() -> None:
    """Ratios that differ and remove the same channels are one configuration, another learning rate makes another."""
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
    for _ in range(12):  # past its random start
        trial = search.next()
        search.end(trial.name, one(trial.values["distill.kd_alpha"]))
    assert len(search.told(Optunas.COMPLETE)) == 12


# what a resume knows


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_resumed_search_draws_what_the_uninterrupted_one_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Past the random start and past a shortening of the history; through a journal on disk."""
    monkeypatch.setattr(history, "CAPACITY", 24)
    through = Search(sampler=sampler)
    drive(through, 30)
    journal = Journal(tmp_path, None)
    journal.append(tuple(through.events))
    resumed = Search(sampler=sampler, events=list(read_events(tmp_path)))
    assert len(resumed.told()) == len(through.told()) < 30
    assert resumed.sampler.digest() == through.sampler.digest()
    assert drive(resumed, 6) == drive(through, 6)
    assert resumed.sampler.digest() == through.sampler.digest()


def test_trials_that_have_not_ended_come_first_after_a_resume() -> None:
    search = Search()
    drawn = drive(search, 4, leave=2)
    resumed = Search(events=search.events).begin()
    assert {"trial": (trial := resumed.next()).name} | trial.values == drawn[2]
    assert resumed.next().name == "t0004"
    assert len(resumed.told(Optunas.RUNNING)) == 2


def test_replicates_that_a_kill_left_out_are_added(tmp_path: Path) -> None:
    """The trials of a configuration are written together, of which a kill may leave a part."""
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
    assert [t.values for t in resumed.told(Optunas.COMPLETE)] == [pytest.approx([0.6, 2e6])]
    again = Search(events=resumed.events, **options)
    before = len(again.events)
    again.begin()
    assert len(again.events) == before, "nothing is missing any more"


def test_a_kill_between_the_end_of_a_trial_and_the_judgement_of_its_shorter_schedules() -> None:
    """Wherever the events of its last result are cut, the resumed search knows the same in the end."""
    search = Search(sampler="random")
    while len((trial := search.next()).values["prune.ratios"]) < 3:
        search.end(trial.name, points(len(trial.values["prune.ratios"]) + 1))
    begin = len(search.events)
    search.end(trial.name, points(4))
    kinds = [event.kind for event in search.events[begin:]]
    assert kinds == ["epoch_reported", *["point_measured"] * 4, "trial_ended", *["configuration_judged"] * 2]
    for cut in range(begin + kinds.index("trial_ended") + 1, len(search.events)):
        resumed = Search(sampler="random", events=search.events[:cut])
        assert len(resumed.told(Optunas.COMPLETE)) < len(search.told(Optunas.COMPLETE))
        resumed.begin()
        assert resumed.sampler.digest() == search.sampler.digest()
        assert resumed.next().values == Search(sampler="random", events=list(search.events)).next().values


# an edited space


def edited(**parameters: Any) -> Space:
    """Space kd_prune with other ranges; None removes one."""
    space = load_space("kd_prune").as_dict()
    space["parameters"] = {k: v for k, v in (space["parameters"] | parameters).items() if v is not None}
    return space_from_dict(space)


@pytest.mark.parametrize(
    ("change", "some"),
    [
        ({"distill.kd_alpha": {"uniform": [0.3, 0.6]}}, True),
        ({"distill.kd_temp": None}, False),  # its draws had a value that is not searched any more
        ({"train.weight_decay": {"loguniform": [1e-5, 1e-3]}}, False),
    ],
)
def test_a_search_goes_on_in_an_edited_space(change: dict[str, Any], some: bool) -> None:
    """Draws that the space does not hold are counted but not entered; trials of them end as others do."""
    search = Search()
    drive(search, 8, leave=5)
    space = edited(**change)
    resumed = Search(space, events=search.events).begin()
    told, state = len(resumed.told()), resumed.log.state
    assert told < len(state.trials) + state.rejected.total()
    assert (told > 0) == some
    for expected in ("t0005", "t0008", "t0009"):
        trial = resumed.next()
        assert trial.name == expected
        resumed.end(trial.name, points(2))
    assert set(trial.values) == set(space.parameters)
    assert replay(space, trial.params)[0] == trial.values
    assert len(resumed.told(Optunas.COMPLETE)) >= 2
    assert Search(space, events=list(resumed.events)).sampler.digest() == resumed.sampler.digest()


# what is reported to Optuna


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
        (number,) = [t.number for t in search.told(Optunas.RUNNING)]
        end(name)
        found[outcome] = search.told()[number]
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
    """A trial with 3 prune steps has trained those with 1 and 2 of them, whatever became of it after its third."""
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
    told = search.told(Optunas.COMPLETE)
    expected = {p["step"]: [p["val_macro_avg_acc"], p["macs"]] for p in measured if p["step"]}
    assert {t.params["prune.steps"]: t.values for t in told} == expected
    ratios = trial.values["prune.ratios"]
    for t in told:
        assert replay(space, t.params)[0]["prune.ratios"] == ratios[: t.params["prune.steps"]]


def test_replicates_are_one_configuration_with_other_seeds() -> None:
    search = Search(load_space("kd"), any_gate, replicates=3)
    trials = [search.next() for _ in range(6)]
    assert [t.name for t in trials] == ["t0000", "t0000r1", "t0000r2", "t0001", "t0001r1", "t0001r2"]
    assert [t.replicate for t in trials] == [0, 1, 2, 0, 1, 2]
    assert trials[0].values == trials[1].values == trials[2].values != trials[3].values
    for trial, accuracy in zip(trials, (0.5, 0.6, 0.7), strict=False):
        assert not search.told(Optunas.COMPLETE)
        search.end(trial.name, one(accuracy))
    assert [t.values for t in search.told(Optunas.COMPLETE)] == [pytest.approx([0.6, 2e6])]


# crashes and retries


def test_a_crashed_trial_is_another_one_in_optuna_when_it_is_retried() -> None:
    search = Search()
    for _ in range(2):
        search.session.crashed(search.next().name, "the node died")
    assert [t.state for t in search.told(Optunas.FAIL, Optunas.RUNNING)] == [Optunas.FAIL] * 2
    resumed = Search(events=search.events)
    resumed.log.add(TrialRetried(trial="t0001"))
    assert resumed.next().name == "t0001"
    first, second, retried = resumed.told(Optunas.FAIL, Optunas.RUNNING)
    assert [t.state for t in (first, second, retried)] == [Optunas.FAIL, Optunas.FAIL, Optunas.RUNNING]
    assert retried.params == second.params
    resumed.end("t0001", one(0.7))
    assert [(t.number, t.values) for t in resumed.told(Optunas.COMPLETE)] == [(retried.number, [0.7, 2e6])]


@pytest.mark.parametrize("last", [0, 2])
def test_a_retry_among_replicates_gives_the_mean_over_all(last: int) -> None:
    """Whether the others had ended before it crashed, or ended after its retry."""
    options: dict[str, Any] = {"space": load_space("kd"), "gate": any_gate, "replicates": 3}
    search = Search(**options)
    names = [search.next().name for _ in range(3)]
    search.session.crashed(names[1], "the node died")
    for name in (names[0], names[2])[: 2 - last]:
        search.end(name, one(0.4))
    assert [t.values for t in search.told(Optunas.COMPLETE)] == ([[0.4, 2e6]] if last == 0 else [])
    resumed = Search(events=search.events, **options).begin()
    for name in (names[0], names[2])[2 - last :]:
        resumed.end(name, one(0.4))
    resumed.end(names[1], one(0.7))
    means = [t.values for t in resumed.told(Optunas.COMPLETE)]
    assert means == [pytest.approx([0.4, 2e6])] * (last == 0) + [pytest.approx([0.5, 2e6])]
    assert not resumed.told(Optunas.RUNNING)


def test_points_before_a_crash_count_after_its_retry() -> None:
    """The retried trial continues from its checkpoint and reports the dense network no second time."""
    search = Search()
    trial = search.next()
    n_points = len(trial.values["prune.ratios"]) + 1
    search.session.report(trial.name, result(trial.name, 0, 1, 1, points=points(1)))
    search.session.crashed(trial.name, "the node died")
    resumed = Search(events=search.events).begin()
    resumed.end(trial.name, points(n_points))
    told = [t for t in resumed.told(Optunas.COMPLETE) if t.params == trial.params]
    assert [t.values for t in told] == [[points(n_points)[-1][name] for name in ("val_macro_avg_acc", "macs")]]


def test_optuna_does_not_learn_from_confirmations() -> None:
    """Nor does the retry of one end the wait for the retry of the configuration's own trial."""
    search = Search(load_space("kd"), any_gate)
    trial = search.next()
    search.session.crashed(trial.name, "the node died")
    shared = {"config_id": trial.name, "params": trial.params, "values": trial.values, "key": trial.key}
    search.log.add(TrialCreated(trial="t0000r1", replicate=1, confirms=True, **shared))
    search.log.add(TrialEnded(trial="t0000r1", outcome="crashed"), TrialRetried(trial="t0000r1"))
    assert [t.state for t in search.told()] == [Optunas.FAIL]
    search.log.add(TrialRetried(trial="t0000"))
    assert [t.state for t in search.told()] == [Optunas.FAIL, Optunas.RUNNING]
    resumed = Search(load_space("kd"), any_gate, events=search.events).begin()
    assert [resumed.next().name for _ in range(2)] == ["t0000", "t0000r1"]
    resumed.end("t0000r1", one(0.1))
    resumed.end("t0000", one(0.7))
    assert [t.values for t in resumed.told(Optunas.COMPLETE)] == [[0.7, 2e6]]
    assert resumed.next().name == "t0001"


# parameters and values


@pytest.mark.parametrize("name", SHIPPED)
def test_parameters_come_back_from_values(name: str) -> None:
    space = load_space(name)
    search = Search(space, any_gate, sampler="random")
    for _ in range(10):
        trial = search.next()
        asked = search.told()[-1]
        found = params_of(space, json.loads(json.dumps(trial.values)))
        assert replay(space, found)[0] == trial.values
        if name != "rep":  # an empty subset is drawn as another one
            assert found == asked.params
        assert replay(space, asked.params) == (trial.values, asked.distributions)


def test_values_outside_a_space_are_refused() -> None:
    space = load_space("kd")
    values = {"distill.kd_alpha": 0.5, "distill.kd_temp": 2.0, "train.lr": 0.01, "student.base_channels": 16}
    assert params_of(space, values) == values
    for key, value in (("distill.kd_alpha", 2.0), ("student.base_channels", 12), ("train.lr", "fast")):
        with pytest.raises(SpaceError, match=key):
            params_of(space, values | {key: value})
    with pytest.raises(SpaceError, match="kd_beta"):
        replay(space, values | {"distill.kd_beta": 0.5})
    assert shortened(space, values, 1) is None


# points of other studies


def earlier_study(study: Path) -> int:
    """A study of 12 trials in the folder; how many of its networks another search could have drawn."""
    search = Search()
    drive(search, 12)
    Journal(study, None).append(tuple(search.events))
    return sum(bool(p["step"]) for t in search.log.state.trials.values() for p in t.points)


def test_points_of_an_earlier_study_are_imported(tmp_path: Path) -> None:
    """What is known is not entered twice; a resume knows them, too."""
    n_points = earlier_study(tmp_path)
    found = list(earlier_points(load_space("kd_prune"), tmp_path))
    assert len(found) == n_points > 8
    search = Search()
    assert search.sampler.import_points(search.log, found) == len(found)
    assert search.sampler.import_points(search.log, found) == 0
    told = search.told(Optunas.COMPLETE)
    assert [t.params for t in told] == [params for params, _ in found]
    assert [t.values for t in told] == [[p["val_macro_avg_acc"], p["macs"]] for _, p in found]
    kinds = [type(event) for event in search.events[1:]]
    assert kinds == [ConfigurationJudged, PointImported] * len(found)
    resumed = Search(events=list(search.events))
    assert resumed.sampler.digest() == search.sampler.digest()
    assert resumed.sampler.import_points(resumed.log, found) == 0
    assert resumed.next().values == search.next().values


def test_an_import_that_a_kill_cut_off_is_completed(tmp_path: Path) -> None:
    earlier_study(tmp_path)
    found = list(earlier_points(load_space("kd_prune"), tmp_path))
    whole = Search()
    whole.sampler.import_points(whole.log, found)
    for cut in (2, 3, 4):  # also between a judgement and its point
        resumed = Search(events=whole.events[:cut])
        assert resumed.sampler.import_points(resumed.log, found) == len(found) - (cut - 1) // 2
        assert resumed.sampler.digest() == whole.sampler.digest()


def test_a_space_imports_what_it_could_have_drawn(tmp_path: Path) -> None:
    n_points = earlier_study(tmp_path)
    narrower = list(earlier_points(edited(**{"student.base_channels": {"int": [8, 16], "step": 8}}), tmp_path))
    assert 0 < len(narrower) < n_points
    assert not list(earlier_points(load_space("rep"), tmp_path))


def test_imported_points_that_an_edited_space_does_not_hold(tmp_path: Path) -> None:
    earlier_study(tmp_path)
    search = Search()
    n = search.sampler.import_points(search.log, earlier_points(load_space("kd_prune"), tmp_path))
    narrower = edited(**{"student.base_channels": {"int": [8, 16], "step": 8}})
    resumed = Search(narrower, events=list(search.events)).begin()
    assert 0 < len(resumed.told(Optunas.COMPLETE)) < n


def test_the_journal_of_a_search_is_a_study(tmp_path: Path) -> None:
    earlier_study(tmp_path)
    state = read_state(tmp_path)
    assert len(state.trials) == 12
    assert {trial.status for trial in state.trials.values()} == {"complete", "stopped early"}
    assert len(list(Reading(tmp_path))) > 36
