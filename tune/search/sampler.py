"""The sampler: draws feasible configurations from an Optuna study, which is a fold over the events of our study.

    sampler = FeasibleSampler(space, gate, sampler="tpe", seed=0)
    log.attach(sampler)
    log.replay(events)
    sampler.draw(log)                              # adds TrialCreated, or SpaceExhausted after many rejections

Every sampled configuration is built and measured (dense and after each prune step) before anything is trained. A sample
is rejected (SampleRejected) if it fits the limits at no stage, or if the same networks were trained in the same way
before. Its excess over the limits is reported to Optuna as a constraint.

Each draw has its own Optuna sampler, seeded by (seed, number of the draw), so a resumed study draws the same samples as
an uninterrupted one. `draw` only reads the Optuna study; the events that it adds change it (history.py).
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import optuna

from search_spaces import Space
from tune.search.feasibility import Gate, Verdict
from tune.search.history import OptunaHistory, parameters_key
from tune.search.optuna_study import OBJECTIVES, SAMPLERS, sampler_attributes
from tune.search.replay import replay
from tune.study.events import (
    ConfigurationJudged,
    PointImported,
    SampleRejected,
    SpaceExhausted,
    TrialCreated,
)
from tune.study.log import StudyLog

MAX_REJECTIONS = 200  # rejections in a row after which the space is considered exhausted or infeasible


class FeasibleSampler(OptunaHistory):
    """Multi-objective sampler of the configurations in `space` that pass `gate`, with `replicates` trials each."""

    def __init__(self, space: Space, gate: Gate, *, sampler: str = "tpe", seed: int = 0, replicates: int = 1):
        super().__init__(space, sampler, replicates)
        self._gate, self._seed = gate, seed

    def draw(self, log: StudyLog) -> None:
        """Add the trials of the next feasible configuration to `log`, or SpaceExhausted after MAX_REJECTIONS rejected
        samples in a row."""
        for _ in range(MAX_REJECTIONS):
            seed = int(np.random.SeedSequence([self._seed, self._n_draws]).generate_state(1)[0])
            self.study.sampler = SAMPLERS[self._sampler_name](seed)
            optuna_trial = self.study.ask()
            values = self._space.sample(optuna_trial)
            verdict = self._gate(values)
            if verdict.key in self._seen:
                verdict = Verdict(verdict.key, verdict.excess, "trained before", json.dumps(values))
            self._drawn = optuna_trial
            if not verdict.reason:
                self._create(log, optuna_trial, values, verdict)
                return
            log.add(
                SampleRejected(
                    params=optuna_trial.params, reason=verdict.reason, example=verdict.example, excess=verdict.excess
                )
            )
        log.add(SpaceExhausted(rejections=MAX_REJECTIONS))

    def _create(self, log: StudyLog, optuna_trial: optuna.Trial, values: dict[str, Any], verdict: Verdict) -> None:
        config_id = f"t{self._n_configurations:04d}"
        frozen = self.study.get_trials(deepcopy=False)[optuna_trial.number]
        first = TrialCreated(
            trial=config_id,
            config_id=config_id,
            replicate=0,
            params=optuna_trial.params,
            values=values,
            excess=verdict.excess,
            key=verdict.key,
            attributes=sampler_attributes(frozen),
        )
        log.add(*self._with_replicates(first, 0))

    def _with_replicates(self, first: TrialCreated, known: int) -> list[TrialCreated]:
        """Return the trials of a configuration from replicate `known` on; `first` is one of its trials."""
        shared = {name: getattr(first, name) for name in ("config_id", "params", "values", "excess", "key")}
        return [
            TrialCreated(trial=name, replicate=i, attributes=first.attributes, **shared)
            for i, name in list(enumerate(self._replicas(first.config_id)))[known:]
        ]

    def settle(self, log: StudyLog) -> None:
        """Check the feasibility of trained configurations for which it is unknown, and add the results to `log`. Must
        be called after the end of a trial and after a replay."""
        while self._waiting:
            params, _ = self._waiting[0]
            self._judge(log, params)

    def complete_replicates(self, log: StudyLog) -> None:
        """Add replicates of the newest configuration that are missing because its driver was killed."""
        if self._newest:
            log.add(*self._with_replicates(self._newest, self._newest.replicate + 1))

    def import_points(self, log: StudyLog, known: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> int:
        """Add (parameters, point) pairs of earlier studies; return the number of new ones."""
        new = 0
        for params, point in known:
            if self._judge(log, params).key not in self._seen:
                new += 1
                log.add(PointImported(params=params, point={name: point[name] for name in OBJECTIVES}))
        return new

    def _judge(self, log: StudyLog, params: dict[str, Any]) -> Verdict:
        """Return the feasibility of a configuration that was not drawn here; record it as an event, for a resume."""
        if parameters_key(params) not in self._verdicts:
            verdict = self._gate(replay(self._space, params)[0])
            log.add(ConfigurationJudged(params=params, key=verdict.key, excess=verdict.excess))
        return self._verdicts[parameters_key(params)]
