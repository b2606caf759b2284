"""The sampler: draws configurations with an Optuna sampler and rejects those that do not fit the limits.

    sampler = FeasibleSampler(space, NetworkGate(base), sampler="tpe", seed=0)     # base: values of all keys
    log.attach(sampler)                            # log: a StudyLog, which passes each event to `sampler.apply`
    log.replay(events)                             # the events of earlier drivers
    sampler.draw(log)                              # adds the event TrialCreated, or SpaceExhausted if none fits

The networks of a sample, dense and after each prune step, are built and measured before anything is trained. A sample
is rejected (event SampleRejected) if no stage fits the limits, or if an earlier configuration trains the same networks
in the same way. The excess of a sample over the limits is reported to Optuna as the value of a constraint.

Each draw has its own Optuna sampler, seeded by (seed, number of the draw), so a resumed study draws the same samples as
an uninterrupted one. `draw` asks the Optuna study for a trial and adds events to the log. When these events are applied
(tune/search/history.py), the Optuna trial gets its state. This is the same in a draw and in the replay of a resume.
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

MAX_REJECTIONS = 200  # after this number of rejections in a row, the space counts as exhausted or infeasible


class FeasibleSampler(OptunaHistory):
    """Multi-objective sampler of the configurations of `space` that `gate`, such as a NetworkGate, accepts.

    `sampler` is the name of an Optuna sampler: tpe, nsga2, gp or random. Each accepted configuration gets `replicates`
    trials with different seeds. `seed` is the seed of the study.
    """

    def __init__(self, space: Space, gate: Gate, *, sampler: str = "tpe", seed: int = 0, replicates: int = 1):
        super().__init__(space, sampler, replicates)
        self._gate, self._seed = gate, seed

    def draw(self, log: StudyLog) -> None:
        """Draw samples until one is accepted or MAX_REJECTIONS are rejected, and add the events to `log`.

        The events are SampleRejected for each rejected sample, then TrialCreated for each trial of the accepted sample
        (one per seed), or SpaceExhausted if none was accepted.
        """
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

    def _with_replicates(self, created: TrialCreated, known: int) -> list[TrialCreated]:
        """Return the TrialCreated events of a configuration's trials, except the first `known` trials, which exist.

        `created` is the TrialCreated event of any trial of the configuration; the values that all trials share are
        copied from it.
        """
        shared = {name: getattr(created, name) for name in ("config_id", "params", "values", "excess", "key")}
        return [
            TrialCreated(trial=name, replicate=i, attributes=created.attributes, **shared)
            for i, name in list(enumerate(self._replicas(created.config_id)))[known:]
        ]

    def settle(self, log: StudyLog) -> None:
        """Check the feasibility of configurations that were trained but not drawn, and add the results to `log`.

        A trial with three prune steps also trains, on its way, the configurations with only its first step and with
        only its first two steps. Call this method after the end of a trial, and when a resume has replayed the journal.
        """
        while self._waiting:
            params, _ = self._waiting[0]
            self._judge(log, params)

    def complete_replicates(self, log: StudyLog) -> None:
        """Add the missing trials of the newest configuration to `log`: a killed driver may not have created all."""
        if self._newest:
            log.add(*self._with_replicates(self._newest, self._newest.replicate + 1))

    def import_points(self, log: StudyLog, known: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> int:
        """Add networks that earlier studies measured to `log`, so that the sampler knows their results.

        `known` has pairs (Optuna parameters, point) from `earlier_points`; a point is a dict with the objectives of a
        network. A pair is skipped if its configuration trains the same networks in the same way as a configuration that
        is drawn or imported already (equal `Verdict.key`). Return the number of added pairs.
        """
        new = 0
        for params, point in known:
            if self._judge(log, params).key not in self._seen:
                new += 1
                log.add(PointImported(params=params, point={name: point[name] for name in OBJECTIVES}))
        return new

    def _judge(self, log: StudyLog, params: dict[str, Any]) -> Verdict:
        """Return the result of the feasibility check for a configuration that this sampler did not draw itself.

        `params` are its Optuna parameters. The configuration has only the first prune steps of a drawn one, whose
        trials trained it, too, or it is from an earlier study (--warm-start). A new result is also added to `log` as
        the event ConfigurationJudged, so that a resume does not check again.
        """
        if parameters_key(params) not in self._verdicts:
            verdict = self._gate(replay(self._space, params)[0])
            log.add(ConfigurationJudged(params=params, key=verdict.key, excess=verdict.excess))
        return self._verdicts[parameters_key(params)]
