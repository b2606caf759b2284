"""The sampler: an Optuna study that is a fold over the events of ours, and draws that fit the limits.

    sampler = FeasibleSampler(space, gate, sampler="tpe", seed=0)
    log.attach(sampler);  log.replay(events)
    sampler.draw(log)                              # adds TrialCreated, or SpaceExhausted after many rejections

Every sampled configuration is built and measured (dense and after each prune step) before anything is trained. One that
fits the limits at no stage, or whose networks were trained in the same way before, becomes a SampleRejected: Optuna
learns its excess over the limits as a violated constraint.

Each draw has an Optuna sampler of its own, seeded by (seed, number of the draw), so a resumed study draws what it would
have drawn. A trial with R prune steps has trained the configurations with 1 to R - 1 of them on its way, so these are
reported to Optuna as well. Optuna's study is changed by `apply` alone; `draw` only asks it.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.front import nondominated_rank
from search_spaces import Space, SpaceError
from tune.search.replay import replay, shortened
from tune.study.events import (
    ConfigurationJudged,
    Event,
    PointImported,
    PointMeasured,
    SampleRejected,
    SpaceExhausted,
    TrialCreated,
    TrialEnded,
    TrialRetried,
)
from tune.study.log import StudyLog
from tune.study.state import is_first

OBJECTIVES = {"val_macro_avg_acc": "max", "macs": "min"}  # the one place that states the directions
MAX_REJECTIONS = 200  # in a row, before the space is declared used up or without a feasible point
CAPACITY = 1000  # Optuna's history is cut to half when it is as long: a draw's time grows with it, and must not
CONSTRAINT = "limits"  # relative excess of the cheapest stage; Optuna takes <= 0 for feasible
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    # one joint density instead of one for each parameter: the trials are sorted once a draw, not once a parameter
    "tpe": lambda seed: _tpe(seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


@dataclass(frozen=True)
class Verdict:
    """The feasibility of a configuration."""

    key: str  # equal for configurations that train the same networks in the same way
    excess: float  # relative, over the limits, of the cheapest stage; above 0: not to be trained
    reason: str = ""
    example: str = ""


Gate = Callable[[dict[str, Any]], Verdict]


@dataclass
class _Configuration:
    """A sampled configuration while some of its trials have not ended, or have crashed."""

    number: int  # of its trial in Optuna's study
    params: dict[str, Any]
    excess: float
    open: set[str]  # names of its trials that have not ended
    outcomes: dict[str, str] = field(default_factory=dict)  # of those that have
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # trial -> its points, by step


class FeasibleSampler:
    """Multi-objective sampler of `space` behind `gate`; `replicates` trials are made of each configuration."""

    def __init__(self, space: Space, gate: Gate, *, sampler: str = "tpe", seed: int = 0, replicates: int = 1):
        self.study = _new_study(sampler)
        self._space, self._gate = space, gate
        self._sampler_name, self._seed, self._replicates = sampler, seed, replicates
        self._seen: set[str] = set()  # keys of what was drawn, imported or trained on the way
        self._open: dict[str, _Configuration] = {}
        self._crashed: dict[str, _Configuration] = {}  # ended, and a retry of a trial opens them again
        self._n_configurations = self._n_draws = 0
        self._verdicts: dict[str, Verdict] = {}  # of ConfigurationJudged, by parameters
        self._waiting: list[tuple[dict[str, Any], dict[str, float]]] = []  # trained, and not judged yet
        self._newest: TrialCreated | None = None  # of the trials that were drawn
        self._confirmations: set[str] = set()  # trials that Optuna does not learn from
        self._asked: optuna.Trial | None = None  # drawn; its event is the next one

    # the fold

    def apply(self, event: Event) -> None:
        if isinstance(event, SampleRejected):
            self._apply_draw(event, TrialState.PRUNED)
        elif isinstance(event, TrialCreated):
            if event.confirms:
                self._confirmations.add(event.trial)
            else:
                self._newest = event
            if event.trial == event.config_id:
                self._seen.add(event.key)
                self._apply_draw(event, TrialState.RUNNING)
        elif isinstance(event, TrialRetried):
            self._apply_retry(event.trial)
        elif isinstance(event, PointMeasured):
            configuration = self._open.get(configuration_of(event.trial))
            if configuration and event.trial in configuration.open:
                points = configuration.points.setdefault(event.trial, [])
                if is_first(event.point, points):
                    points.append({name: event.point[name] for name in ("step", *OBJECTIVES)})
        elif isinstance(event, TrialEnded):
            self._apply_end(event)
        elif isinstance(event, PointImported):
            figures = {name: float(event.point[name]) for name in OBJECTIVES}
            self._report_known(event.params, figures)
        elif isinstance(event, ConfigurationJudged):
            self._verdicts[_text(event.params)] = Verdict(event.key, event.excess)
            waiting, self._waiting = self._waiting, []
            for params, figures in waiting:
                self._report_known(params, figures)

    def _apply_draw(self, event: SampleRejected | TrialCreated, state: TrialState) -> None:
        """Enter a draw into Optuna's study. One that the space does not hold any more, because it was edited, is
        counted but not entered."""
        self._n_draws += 1
        number: int | None = None
        if self._asked:
            number, trial, self._asked = self._asked.number, self._asked, None
            trial.set_constraint(CONSTRAINT, event.excess)
            if state == TrialState.PRUNED:
                self.study.tell(trial, state=state)
        else:
            number = self._enter(event.params, state, event.excess, getattr(event, "attributes", None))
        if isinstance(event, TrialCreated):
            self._n_configurations += 1
            if number is not None:
                names = set(self._replicas(event.trial))
                self._open[event.trial] = _Configuration(number, event.params, event.excess, names)
        self._keep_short()

    def _enter(
        self,
        params: dict[str, Any],
        state: TrialState,
        excess: float,
        attributes: Mapping[str, Any] | None = None,
        values: list[float] | None = None,
    ) -> int | None:
        """Add a trial to Optuna's study; its number, or None where the space does not hold `params`."""
        try:
            _, distributions = replay(self._space, params)
        except SpaceError:
            return None
        self.study.add_trial(
            create_trial(
                state=state,
                params=params,
                distributions=distributions,
                constraints={CONSTRAINT: excess},
                system_attrs=dict(attributes or {}),
                values=values,
            )
        )
        return len(self.study.get_trials(deepcopy=False)) - 1

    def _apply_retry(self, name: str) -> None:
        if name in self._confirmations:
            return
        config_id = configuration_of(name)
        configuration = self._open.get(config_id) or self._crashed.pop(config_id, None)
        if configuration is None:
            return
        if not configuration.open:  # its end was reported to Optuna: the retry is another trial there
            number = self._enter(configuration.params, TrialState.RUNNING, configuration.excess)
            if number is None:
                return
            configuration.number = number
            self._open[config_id] = configuration
        configuration.open.add(name)
        configuration.outcomes.pop(name, None)

    def _apply_end(self, event: TrialEnded) -> None:
        config_id = configuration_of(event.trial)
        configuration = self._open.get(config_id)
        if configuration is None or event.trial not in configuration.open:  # a confirmation
            return
        configuration.open.remove(event.trial)
        configuration.outcomes[event.trial] = event.outcome
        if configuration.open:
            return
        del self._open[config_id]
        self._report(configuration)
        if "crashed" in configuration.outcomes.values():
            self._crashed[config_id] = configuration

    def _report(self, ended: _Configuration) -> None:
        """Tell Optuna the end of a configuration: means over the complete replicates; stopped ones alone are `pruned`,
        failed ones alone `fail`. Then the shorter schedules that were trained on the way."""
        complete = [points for name, points in ended.points.items() if ended.outcomes[name] == "completed"]
        if complete:
            last = [points[-1] for points in complete]
            self.study.tell(ended.number, [fmean(p[name] for p in last) for name in OBJECTIVES])
        else:
            stopped = "stopped" in ended.outcomes.values()
            self.study.tell(ended.number, state=TrialState.PRUNED if stopped else TrialState.FAIL)
        trained = complete or list(ended.points.values())
        for step in range(1, max(map(len, trained), default=0) - (1 if complete else 0)):
            at_step = [points[step] for points in trained if len(points) > step]
            params = shortened(self._space, ended.params, step)
            if params is not None and all(p["step"] == step for p in at_step):
                self._report_known(params, {name: fmean(p[name] for p in at_step) for name in OBJECTIVES})

    def _report_known(self, params: dict[str, Any], figures: dict[str, float]) -> None:
        """Tell Optuna a configuration that was trained elsewhere, once it is judged; not one that the space does not
        hold any more."""
        verdict = self._verdicts.get(_text(params))
        if verdict is None:
            if self._holds(params):
                self._waiting.append((params, figures))
        elif verdict.key not in self._seen:
            self._seen.add(verdict.key)
            values = [figures[name] for name in OBJECTIVES]
            self._enter(params, TrialState.COMPLETE, verdict.excess, values=values)

    def _holds(self, params: dict[str, Any]) -> bool:
        try:
            replay(self._space, params)
        except SpaceError:
            return False
        return True

    def _keep_short(self) -> None:
        """Cut a history of CAPACITY trials to half: what runs, then the best and the latest, as many of each."""
        trials = self.study.get_trials(deepcopy=False)
        if len(trials) < CAPACITY:
            return
        running = [t for t in trials if not t.state.is_finished()]
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        ranks = nondominated_rank([t.values for t in complete], list(OBJECTIVES.values()))
        best = [t for _, t in sorted(zip(ranks, complete, strict=True), key=lambda pair: (pair[0], -pair[1].number))]
        kept: dict[int, FrozenTrial] = {t.number: t for t in [*running, *best[: CAPACITY // 4]]}
        for trial in reversed(trials):
            if len(kept) >= CAPACITY // 2:
                break
            kept.setdefault(trial.number, trial)
        self.study = _new_study(self._sampler_name)
        numbers = {old: new for new, old in enumerate(sorted(kept))}
        self.study.add_trials(kept[old] for old in numbers)
        for configuration in self._open.values():
            configuration.number = numbers[configuration.number]

    def digest(self) -> str:
        """A hash of everything that decides further draws; equal digests, equal draws."""
        trials = [  # the attributes of a sample that was rejected are not kept, and decide nothing
            [t.number, t.state.name, t.values, t.params, t.constraints]
            + ([] if t.state == TrialState.PRUNED else [_attributes(t)])
            for t in self.study.get_trials(deepcopy=False)
        ]
        open_ones = [[c, x.number, sorted(x.open), sorted(x.outcomes.items())] for c, x in sorted(self._open.items())]
        rest = [sorted(self._seen), self._n_draws, self._n_configurations, sorted(self._crashed), self._waiting]
        return hashlib.sha256(json.dumps([trials, open_ones, rest], sort_keys=True).encode()).hexdigest()[:16]

    # the draws

    def draw(self, log: StudyLog) -> None:
        """Add the trials of the next feasible configuration to `log`, or SpaceExhausted when MAX_REJECTIONS samples in
        a row were rejected."""
        for _ in range(MAX_REJECTIONS):
            seed = int(np.random.SeedSequence([self._seed, self._n_draws]).generate_state(1)[0])
            self.study.sampler = SAMPLERS[self._sampler_name](seed)
            asked = self.study.ask()
            values = self._space.sample(asked)
            verdict = self._gate(values)
            if verdict.key in self._seen:
                verdict = Verdict(verdict.key, verdict.excess, "trained before", json.dumps(values))
            self._asked = asked
            if not verdict.reason:
                self._create(log, asked, values, verdict)
                return
            log.add(
                SampleRejected(
                    params=asked.params, reason=verdict.reason, example=verdict.example, excess=verdict.excess
                )
            )
        log.add(SpaceExhausted(rejections=MAX_REJECTIONS))

    def _create(self, log: StudyLog, asked: optuna.Trial, values: dict[str, Any], verdict: Verdict) -> None:
        config_id = f"t{self._n_configurations:04d}"
        drawn = self.study.get_trials(deepcopy=False)[asked.number]
        first = TrialCreated(
            trial=config_id,
            config_id=config_id,
            replicate=0,
            params=asked.params,
            values=values,
            excess=verdict.excess,
            key=verdict.key,
            attributes=_attributes(drawn),
        )
        log.add(*self._with_replicates(first, 0))

    def _with_replicates(self, first: TrialCreated, known: int) -> list[TrialCreated]:
        """The trials of a configuration from replicate `known` on."""
        shared = {name: getattr(first, name) for name in ("config_id", "params", "values", "excess", "key")}
        return [
            TrialCreated(trial=name, replicate=i, attributes=first.attributes, **shared)
            for i, name in list(enumerate(self._replicas(first.config_id)))[known:]
        ]

    def _replicas(self, config_id: str) -> list[str]:
        return [f"{config_id}r{i}" if i else config_id for i in range(self._replicates)]

    def settle(self, log: StudyLog) -> None:
        """Judge what was trained and is not judged yet; after the end of a trial, and after a replay."""
        while self._waiting:
            params, _ = self._waiting[0]
            self._judge(log, params)

    def complete_replicates(self, log: StudyLog) -> None:
        """Add replicates of the newest configuration that a kill left out."""
        if self._newest:
            log.add(*self._with_replicates(self._newest, self._newest.replicate + 1))

    def import_points(self, log: StudyLog, known: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> int:
        """Add (parameters, point) pairs of earlier studies; returns how many were new."""
        new = 0
        for params, point in known:
            if self._judge(log, params).key not in self._seen:
                new += 1
                log.add(PointImported(params=params, point={name: point[name] for name in OBJECTIVES}))
        return new

    def _judge(self, log: StudyLog, params: dict[str, Any]) -> Verdict:
        """The feasibility of a configuration that is not drawn here; its event makes a resume know it again."""
        if _text(params) not in self._verdicts:
            verdict = self._gate(replay(self._space, params)[0])
            log.add(ConfigurationJudged(params=params, key=verdict.key, excess=verdict.excess))
        return self._verdicts[_text(params)]


def configuration_of(name: str) -> str:
    """The configuration that a trial, t0003 or its replicate t0003r1, has drawn."""
    return name.partition("r")[0]


def _new_study(sampler: str) -> optuna.Study:
    ways = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    directions = [ways[way] for way in OBJECTIVES.values()]
    return optuna.create_study(directions=directions, sampler=SAMPLERS[sampler](0))


def _attributes(trial: FrozenTrial) -> dict[str, Any]:
    """Return the system attributes that an Optuna sampler stored in a trial when it was drawn (NSGA-II: generation)."""
    return {k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints:")}


def _text(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
