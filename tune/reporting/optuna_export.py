"""A study as an Optuna journal, which optuna-dashboard and Optuna itself open (`tune/status.py --export-optuna FILE`).

    optuna-dashboard FILE                                                       (a package of its own)
    optuna.load_study(study_name=..., storage=JournalStorage(JournalFileBackend(FILE)))

Every trial and every rejected sample is a trial there: complete ones with the figures of their last network, rejected
and early-stopped ones as pruned. Its user attributes hold our name, status, reason, and the accuracy and MACs of every
network on the way; also the parameters that the space, edited since, does not hold any more.
"""

import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.results import Study
from data.files import replacing
from search_spaces import Space, SpaceError, space_from_dict
from tune.search.replay import replay
from tune.study.events import Event, SampleRejected, TrialCreated
from tune.study.journal import Reading
from tune.study.state import StudyState
from tune.study.state import TrialState as OurTrial

STATES = {
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "crashed": TrialState.FAIL,
    None: TrialState.RUNNING,
}


class OptunaExport:
    """A reducer that keeps the draws of a study in their order; `trials` are these as Optuna's."""

    def __init__(self, space: Space, objectives: list[str], state: StudyState):
        self._space, self._objectives, self._state = space, objectives, state
        self._drawn: list[SampleRejected | str] = []  # a rejected sample, or the name of a trial

    def apply(self, event: Event) -> None:
        if isinstance(event, SampleRejected):
            self._drawn.append(event)
        elif isinstance(event, TrialCreated):
            self._drawn.append(event.trial)

    def trials(self) -> list[FrozenTrial]:
        return [
            self._trial(self._state.trials[drawn]) if isinstance(drawn, str) else self._rejected(drawn)
            for drawn in self._drawn
        ]

    def _rejected(self, event: SampleRejected) -> FrozenTrial:
        attributes = {"status": "rejected before training", "reason": event.reason, "excess": event.excess}
        made = self._made(TrialState.PRUNED, event.params, attributes)
        made.datetime_start = made.datetime_complete = _local(event.time)
        return made

    def _trial(self, trial: OurTrial) -> FrozenTrial:
        names = [*self._objectives, "feasible"]
        attributes: dict[str, Any] = {"trial": trial.name, "status": trial.status, "replicate": trial.replicate}
        attributes["points"] = [{name: point.get(name) for name in names} for point in trial.points]
        attributes |= {"reason": trial.reason} if trial.reason else {}
        state = STATES[trial.outcome]
        complete = state == TrialState.COMPLETE
        values = [trial.points[-1][name] for name in self._objectives] if complete else None
        made = self._made(state, trial.params, attributes, values)
        made.datetime_start = _local(trial.created)
        made.datetime_complete = _local(trial.changed) if state.is_finished() else None
        return made

    def _made(
        self,
        state: TrialState,
        params: Mapping[str, Any],
        attributes: dict[str, Any],
        values: list[float] | None = None,
    ) -> FrozenTrial:
        try:
            distributions: dict[str, BaseDistribution] = replay(self._space, params)[1]
        except SpaceError:
            attributes, params, distributions = attributes | {"params": dict(params)}, {}, {}
        held = {name: params[name] for name in distributions}
        return create_trial(state=state, params=held, distributions=distributions, user_attrs=attributes, values=values)


def export_optuna(study: Study, target: Path) -> int:
    """Write the study's trials to `target`, which is replaced whole; their number."""
    state = StudyState()
    objectives = study.objectives
    export = OptunaExport(space_from_dict(study.manifest.resolved.space), list(objectives), state)

    def apply(event: Event) -> None:
        state.apply(event)
        export.apply(event)

    Reading(study.path).apply(apply)
    trials = export.trials()
    ways = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with replacing(target) as temporary:
        storage = JournalStorage(JournalFileBackend(str(temporary)))
        made = optuna.create_study(
            storage=storage, study_name=study.name, directions=[ways[way] for way in objectives.values()]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # names are of Optuna's interface since 3.2
            made.set_metric_names(list(objectives))
        made.add_trials(trials)
    return len(trials)


def _local(time: str) -> datetime:
    """Optuna's times bear no zone and are local."""
    return datetime.fromisoformat(time).astimezone().replace(tzinfo=None)
