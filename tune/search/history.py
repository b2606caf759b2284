"""Builds the Optuna study, from which the sampler draws, from the events of a study.

    history = OptunaHistory(space, sampler="tpe", replicates=1)
    for event in events:                           # the events of a study, in their order
        history.apply(event)
    history.study                                  # optuna.Study; each of its trials is one configuration

A trial with R prune steps also trains, on its way, the configurations with only its first 1, 2, ..., R - 1 prune steps.
These are reported to Optuna as further trials.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.front import nondominated_rank
from search_spaces import Space, SpaceError
from tune.search.feasibility import Verdict
from tune.search.optuna_study import CONSTRAINT, OBJECTIVES, new_optuna_study, sampler_attributes
from tune.search.replay import replay, shortened
from tune.study.events import (
    ConfigurationJudged,
    Event,
    PointImported,
    PointMeasured,
    SampleRejected,
    TrialCreated,
    TrialEnded,
    TrialRetried,
)
from tune.study.state import is_first

CAPACITY = 1000  # number of Optuna trials at which half of them are removed: the time of a draw grows with the number


@dataclass
class _Configuration:
    """A sampled configuration with a trial that has not ended, or that crashed and may be retried."""

    number: int  # number of its Optuna trial
    params: dict[str, Any]  # parameters of its Optuna trial
    excess: float  # `Verdict.excess`
    open: set[str]  # names of its trials that have not ended
    outcomes: dict[str, str] = field(default_factory=dict)  # ended trial -> outcome
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # trial -> step and objectives of its points


class OptunaHistory:
    """Reducer that keeps an Optuna study (the attribute `study`) in which each trial is one configuration.

    `apply` updates the Optuna study by one event. `sampler` is the name of an Optuna sampler: tpe, nsga2, gp or random.
    `replicates` is the number of our trials, with different seeds, of each configuration.
    """

    def __init__(self, space: Space, sampler: str, replicates: int):
        self.study = new_optuna_study(sampler)
        self._space, self._sampler_name, self._replicates = space, sampler, replicates
        self._seen: set[str] = set()  # `Verdict.key` of all drawn, imported and shortened configurations
        self._open: dict[str, _Configuration] = {}
        self._crashed: dict[str, _Configuration] = {}  # ended configurations; a retry of a trial reopens them
        self._n_configurations = self._n_draws = 0
        self._verdicts: dict[str, Verdict] = {}  # parameters_key -> verdict of ConfigurationJudged
        self._waiting: list[tuple[dict[str, Any], dict[str, float]]] = []  # trained, feasibility not checked yet
        self._newest: TrialCreated | None = None  # newest trial, without confirmations
        self._confirmations: set[str] = set()  # trials that are not reported to Optuna
        self._drawn: optuna.Trial | None = None  # a trial that was drawn; the next event describes it

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
            self._verdicts[parameters_key(event.params)] = Verdict(event.key, event.excess)
            waiting, self._waiting = self._waiting, []
            for params, figures in waiting:
                self._report_known(params, figures)

    def _apply_draw(self, event: SampleRejected | TrialCreated, state: TrialState) -> None:
        """Add the sample that `event` describes to the Optuna study, as an Optuna trial.

        `state` is PRUNED for a rejected sample and RUNNING for an accepted one. If the space was edited after the draw
        (--allow-changes), a sample outside the new space is not added; only the number of draws increases.
        """
        self._n_draws += 1
        number: int | None = None
        if self._drawn:
            number, trial, self._drawn = self._drawn.number, self._drawn, None
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
        """Add an Optuna trial with these `params` and return its number; None, without a trial, if the search space
        cannot draw `params`.

        `excess` is the value of Optuna's constraint (above 0: violated), and `attributes` are the system attributes
        that the sampler stored. `values` are the objectives if `state` is COMPLETE, else None.
        """
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
        """Record that a resume retries the crashed trial `name`.

        If its configuration has been reported to Optuna already, the configuration gets a new Optuna trial.
        """
        if name in self._confirmations:
            return
        config_id = configuration_of(name)
        configuration = self._open.get(config_id) or self._crashed.pop(config_id, None)
        if configuration is None:
            return
        if not configuration.open:  # Optuna already has its result, so the retry is a new Optuna trial
            number = self._enter(configuration.params, TrialState.RUNNING, configuration.excess)
            if number is None:
                return
            configuration.number = number
            self._open[config_id] = configuration
        configuration.open.add(name)
        configuration.outcomes.pop(name, None)

    def _apply_end(self, event: TrialEnded) -> None:
        """Record the end of a trial. If all trials of its configuration have ended, report the result to Optuna."""
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
        """Report `ended`, a configuration whose trials have all ended, to Optuna; then report the configurations with
        fewer prune steps that these trials trained on their way.

        The reported objectives are means over the completed trials. If no trial was completed, the state of the Optuna
        trial is PRUNED if a trial was stopped early, else FAIL.
        """
        complete = [points for name, points in ended.points.items() if ended.outcomes[name] == "completed"]
        if complete:
            last = [points[-1] for points in complete]
            self.study.tell(ended.number, [fmean(p[name] for p in last) for name in OBJECTIVES])
        else:
            stopped = "stopped" in ended.outcomes.values()
            self.study.tell(ended.number, state=TrialState.PRUNED if stopped else TrialState.FAIL)
        trained = complete or list(ended.points.values())
        for step in range(max(map(len, trained), default=0) - (1 if complete else 0)):  # step 0: no prune step
            at_step = [points[step] for points in trained if len(points) > step]
            params = shortened(self._space, ended.params, step)
            if params is not None and all(p["step"] == step for p in at_step):
                self._report_known(params, {name: fmean(p[name] for p in at_step) for name in OBJECTIVES})

    def _report_known(self, params: dict[str, Any], figures: dict[str, float]) -> None:
        """Report to Optuna a configuration that was measured but not drawn: one with fewer prune steps than a drawn
        one, or one of an earlier study (--warm-start).

        `params` are its Optuna parameters, and `figures` its measured objectives. Nothing is reported if the search
        space cannot draw it, or if Optuna already has a configuration that trains the same networks in the same way. If
        its feasibility has not been checked yet, it is reported when the event ConfigurationJudged adds the result.
        """
        verdict = self._verdicts.get(parameters_key(params))
        if verdict is None:
            if self._contains(params):
                self._waiting.append((params, figures))
        elif verdict.key not in self._seen:
            self._seen.add(verdict.key)
            values = [figures[name] for name in OBJECTIVES]
            self._enter(params, TrialState.COMPLETE, verdict.excess, values=values)

    def _contains(self, params: dict[str, Any]) -> bool:
        """Return whether the search space can draw the Optuna parameters `params`."""
        try:
            replay(self._space, params)
        except SpaceError:
            return False
        return True

    def _keep_short(self) -> None:
        """If the Optuna study has CAPACITY trials, replace it by a study with half of them, so that draws stay fast.

        All running trials are kept, and the best CAPACITY / 4 complete ones. The newest of the other trials are added
        until CAPACITY / 2 trials are kept.
        """
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
        self.study = new_optuna_study(self._sampler_name)
        numbers = {old: new for new, old in enumerate(sorted(kept))}
        self.study.add_trials(kept[old] for old in numbers)
        for configuration in self._open.values():
            configuration.number = numbers[configuration.number]

    def digest(self) -> str:
        """Return a hash of all state that decides the next samples.

        A driver that resumes the study compares this hash with the one that the earlier driver recorded, and warns if
        they differ.
        """
        trials = [  # attributes of rejected samples are not kept; they have no influence
            [t.number, t.state.name, t.values, t.params, t.constraints]
            + ([] if t.state == TrialState.PRUNED else [sampler_attributes(t)])
            for t in self.study.get_trials(deepcopy=False)
        ]
        open_ones = [[c, x.number, sorted(x.open), sorted(x.outcomes.items())] for c, x in sorted(self._open.items())]
        rest = [sorted(self._seen), self._n_draws, self._n_configurations, sorted(self._crashed), self._waiting]
        return hashlib.sha256(json.dumps([trials, open_ones, rest], sort_keys=True).encode()).hexdigest()[:16]

    def _replicas(self, config_id: str) -> list[str]:
        """Return the names of a configuration's trials without those of --confirm: t0003, t0003r1, ... for id t0003."""
        return trial_names(config_id, self._replicates)


def trial_names(config_id: str, n: int) -> list[str]:
    """Return the names of the `n` trials of a configuration, one for each seed: t0003, t0003r1, t0003r2, ..."""
    return [f"{config_id}r{i}" if i else config_id for i in range(n)]


def configuration_of(name: str) -> str:
    """Return the id of a trial's configuration: t0003 for the trials t0003 and t0003r1 (its first replicate)."""
    return name.partition("r")[0]


def parameters_key(params: Mapping[str, Any]) -> str:
    """Return the Optuna parameters `params` as JSON text, which can be a key of a dictionary."""
    return json.dumps(params, sort_keys=True)
