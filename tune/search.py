"""The searcher: Ray's OptunaSearch, told what a configuration costs before anything is trained.

Every sampled configuration is built and measured (dense and after each prune step) first. One that fits the limits at
no stage, or whose networks were trained in the same way before, never reaches an actor: it is told to Optuna, with
its excess over the limits as a violated constraint, and counted.

Each draw has a sampler of its own, seeded by (seed, number of the draw): with the journal's history told again, a
resumed study draws what it would have drawn. A trial with R prune steps has on its way trained the configurations with
1 to R - 1 of them, so these are told as well.
"""

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from analysis.front import nondominated_rank
from search_spaces import Space, SpaceError
from tune.history import replay, shortened
from tune.journal import Events, TrialLog

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
    """What the gate says of a configuration."""

    key: str  # equal for configurations that train the same networks in the same way
    excess: float  # relative, over the limits, of the cheapest stage; above 0: not to be trained
    reason: str = ""
    example: str = ""


Gate = Callable[[dict[str, Any]], Verdict]


@dataclass
class _Configuration:
    """A drawn configuration while its replicates are being trained."""

    number: int
    params: dict[str, Any]
    open: set[str]  # names of its trials that have not ended
    points: list[list[dict[str, Any]]] = field(default_factory=list)  # of each complete one
    partial: list[list[dict[str, Any]]] = field(default_factory=list)  # of each that was stopped early


class FeasibleOptunaSearch(OptunaSearch):
    """Multi-objective search over `space`, behind `gate`; `fixed` is the configuration that samples are laid over.

    With `events` of an earlier driver, their history is told to Optuna first, and trials that have not ended are
    suggested before new ones. `replicates` trials are made of each configuration.
    """

    def __init__(
        self,
        space: Space,
        fixed: dict[str, Any],
        gate: Gate,
        *,
        sampler: str = "tpe",
        seed: int = 0,
        events: Events | None = None,
        replicates: int = 1,
    ):
        super().__init__(
            space=space.sample,  # type: ignore[arg-type] - defined by running
            metric=list(OBJECTIVES),
            mode=list(OBJECTIVES.values()),
            sampler=SAMPLERS[sampler](seed),
        )
        self._draws, self._fixed, self._gate = space, fixed, gate
        self._sampler_name, self._own_seed, self._replicates = sampler, seed, replicates
        self._events = events or Events()
        self._seen: set[str] = set()
        self._configurations: dict[str, _Configuration] = {}
        self._names: dict[str, str] = {}  # Ray's trial id -> ours
        self._n_configurations = self._n_draws = 0
        self._queue: deque[TrialLog] = deque()
        self._verdicts: dict[str, Verdict] = {}  # of the journal, by parameters: the gate takes longer than a look
        self._tell_history()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The configuration of the next trial, or FINISHED when MAX_REJECTIONS in a row were none."""
        if not self._queue and not self._draw():
            return Searcher.FINISHED
        trial = self._queue.popleft()
        self._names[trial_id] = trial.name
        extra = {"trial": trial.name, "replicate": trial.replicate} if trial.replicate else {"trial": trial.name}
        return self._fixed | trial.values | extra

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take a trial's end in; its configuration is told to Optuna when the last of its replicates has ended."""
        name = self._names.pop(trial_id, None)
        if name is None:
            return
        failed = error or not result or bool(result.get("failure"))
        status = "failed" if failed else "complete" if result and result.get("finished") else "stopped early"
        self._end(name, status, (result or {}).get("points") or ([result] if result and not failed else []))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Optuna takes no intermediate values of several objectives."""

    @property
    def pending(self) -> list[TrialLog]:
        """Trials that are suggested before anything new is drawn."""
        return list(self._queue)

    def tell_known(self, known: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> int:
        """Take (parameters, point) pairs of earlier studies in; how many were new."""
        told = 0
        for params, point in known:
            verdict = self._judged(params)
            if verdict.key not in self._seen:
                told += 1
                self._events.add("known", params=params, point={name: point[name] for name in OBJECTIVES})
                self._tell_known(params, point, verdict)
        return told

    def _judged(self, params: dict[str, Any]) -> Verdict:
        """The gate's word on a configuration that is not drawn here, which a resume finds in the journal."""
        text = json.dumps(params, sort_keys=True)
        if text not in self._verdicts:
            verdict = self._gate(replay(self._draws, params)[0])
            self._events.add("judged", params=params, key=verdict.key, excess=verdict.excess)
            self._verdicts[text] = verdict
        return self._verdicts[text]

    def _draw(self) -> bool:
        """Queue the next feasible configuration; False when there is none."""
        for _ in range(MAX_REJECTIONS):
            self._keep_short()
            seed = int(np.random.SeedSequence([self._own_seed, self._n_draws]).generate_state(1)[0])
            self._study.sampler = SAMPLERS[self._sampler_name](seed)
            self._n_draws += 1
            asked = self._study.ask()
            values = self._draws.sample(asked)
            verdict = self._gate(values)
            asked.set_constraint(CONSTRAINT, verdict.excess)
            if verdict.key in self._seen:
                verdict = Verdict(verdict.key, verdict.excess, "trained before", json.dumps(values))
            if not verdict.reason:
                self._seen.add(verdict.key)
                self._add_configuration(asked, values, verdict)
                return True
            told = {"reason": verdict.reason, "example": verdict.example, "excess": verdict.excess}
            self._events.add("reject", params=asked.params, **told)
            self._study.tell(asked, state=TrialState.PRUNED)
        self._events.add("exhausted", rejections=MAX_REJECTIONS)
        return False

    def _add_configuration(self, asked: optuna.Trial, values: dict[str, Any], verdict: Verdict) -> None:
        first = f"t{self._n_configurations:04d}"
        drawn = self._study.get_trials(deepcopy=False)[asked.number].system_attrs  # of NSGA-II: its generation
        attributes = {k: v for k, v in drawn.items() if not k.startswith("constraints:")}
        self._open(first, asked.number, asked.params)
        gate = {"excess": verdict.excess, "key": verdict.key}
        self._add_trials(first, 0, params=asked.params, values=values, attributes=attributes, **gate)

    def _add_trials(self, config_id: str, known: int, **shared: Any) -> None:
        """A configuration's trials from replicate `known` on."""
        for replicate, name in list(enumerate(self._replicas(config_id)))[known:]:
            self._events.add("trial", trial=name, config_id=config_id, replicate=replicate, **shared)
            self._queue.append(self._events.log.trials[name])

    def _replicas(self, config_id: str) -> list[str]:
        return [f"{config_id}r{i}" if i else config_id for i in range(self._replicates)]

    def _open(self, config_id: str, number: int, params: dict[str, Any]) -> None:
        self._configurations[config_id] = _Configuration(number, params, set(self._replicas(config_id)))
        self._n_configurations += 1

    def _end(self, name: str, status: str, points: list[dict[str, Any]]) -> None:
        config_id = name.partition("r")[0]
        configuration = self._configurations.get(config_id)
        if configuration is None or name not in configuration.open:  # of a configuration that was told before
            return
        configuration.open.remove(name)
        if status != "failed":
            (configuration.points if status == "complete" else configuration.partial).append(points)
        if not configuration.open:
            del self._configurations[config_id]
            self._tell(configuration)

    def _tell(self, ended: _Configuration) -> None:
        """Means over the complete replicates; stopped ones alone are `pruned`, failed ones alone `fail`."""
        if ended.points:
            last = [points[-1] for points in ended.points]
            self._study.tell(ended.number, [fmean(p[name] for p in last) for name in OBJECTIVES])
        else:
            self._study.tell(ended.number, state=TrialState.PRUNED if ended.partial else TrialState.FAIL)
        trained = ended.points or ended.partial
        for step in range(1, max(map(len, trained), default=0) - (1 if ended.points else 0)):
            at_step = [points[step] for points in trained if len(points) > step]
            params = shortened(self._draws, ended.params, step)
            if params is None or any(p.get("step") != step for p in at_step):
                continue
            verdict = self._judged(params)
            if verdict.key not in self._seen:
                self._tell_known(params, {name: fmean(p[name] for p in at_step) for name in OBJECTIVES}, verdict)

    def _tell_known(self, params: dict[str, Any], point: dict[str, Any], verdict: Verdict) -> None:
        """A configuration that was trained elsewhere."""
        _, distributions = replay(self._draws, params)
        self._seen.add(verdict.key)
        figures = [float(point[name]) for name in OBJECTIVES]
        constraints = {CONSTRAINT: verdict.excess}
        self._study.add_trial(
            create_trial(values=figures, params=params, distributions=distributions, constraints=constraints)
        )

    def _tell_history(self) -> None:
        """What earlier drivers drew and trained, in the order in which they did. Draws that a space changed since does
        not hold are counted, and not told."""
        judged = [event for event in self._events.earlier if event["event"] == "judged"]
        self._verdicts = {json.dumps(e["params"], sort_keys=True): Verdict(e["key"], e["excess"]) for e in judged}
        points: dict[str, list[dict[str, Any]]] = {}
        last: dict[str, Any] | None = None  # the newest trial of a draw
        for event in self._events.earlier:
            kind, name = event["event"], event.get("trial", "")
            if kind == "reject" or (kind == "trial" and event["trial"] == event["config_id"]):
                self._keep_short()
                self._n_draws += 1
                if kind == "trial":
                    self._seen.add(event["key"])
                try:
                    _, distributions = replay(self._draws, event["params"])
                except SpaceError:
                    self._n_configurations += kind == "trial"
                else:
                    self._study.add_trial(
                        create_trial(
                            state=TrialState.PRUNED if kind == "reject" else TrialState.RUNNING,
                            params=event["params"],
                            distributions=distributions,
                            constraints={CONSTRAINT: event["excess"]},
                            system_attrs=event.get("attributes"),
                        )
                    )
                    if kind == "trial":
                        self._open(name, len(self._study.get_trials(deepcopy=False)) - 1, event["params"])
            elif kind == "known":
                with suppress(SpaceError):
                    self._tell_known(event["params"], event["point"], self._judged(event["params"]))
            elif kind == "result":
                known = points.setdefault(name, [])
                if event.get("point") and all(p["step"] != event["point"]["step"] for p in known):
                    known.append(event["point"])
                if event["done"]:
                    status = "failed" if event.get("failure") else "complete" if event["finished"] else "stopped early"
                    self._end(name, status, known or [event])
            elif kind == "end" and (event["status"] != "failed" or self._events.log.trials[name].crashed):
                self._end(name, event["status"], points.get(name, []))
            last = event if kind == "trial" and not event.get("confirms") else last
        self._queue.extend(t for t in self._events.log.trials.values() if not t.ended)
        if last:  # a kill may have come between the events of replicates
            shared = {k: last[k] for k in ("params", "values", "excess", "key", "attributes")}
            self._add_trials(last["config_id"], last["replicate"] + 1, **shared)

    def _keep_short(self) -> None:
        """Cut a history of CAPACITY trials to half: what runs, then the best and the latest, as many of each."""
        trials = self._study.get_trials(deepcopy=False)
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
        self._setup_study(self.mode)
        numbers = {old: new for new, old in enumerate(sorted(kept))}
        self._study.add_trials(kept[old] for old in numbers)
        for configuration in self._configurations.values():
            configuration.number = numbers[configuration.number]

    @property
    def _study(self) -> optuna.Study:
        assert self._ot_study is not None  # made by the base class, since metric and mode are given
        return self._ot_study

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal holds what a resume needs. Ray calls this for its snapshots."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study resumes from its journal: build the searcher with its events")
