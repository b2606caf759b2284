"""Export a study as an Optuna journal for optuna-dashboard and Optuna (`tune/status.py --export-optuna FILE`).

    optuna-dashboard FILE                                                       (a separate package)
    optuna.load_study(study_name=..., storage=JournalStorage(JournalFileBackend(FILE)))

Every trial and every rejected sample becomes an Optuna trial. Complete trials have the values of their last network;
rejected samples and early-stopped trials have the state PRUNED. User attributes hold the name of our trial, its status
and reason, and the accuracy and MACs of every measured network. If the parameters are outside the edited search space,
they are a user attribute, too.
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
    """Reducer that keeps the draws of a study in order; `trials` returns them as Optuna trials."""

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
        frozen = self._frozen(TrialState.PRUNED, event.params, attributes)
        frozen.datetime_start = frozen.datetime_complete = _local(event.time)
        return frozen

    def _trial(self, trial: OurTrial) -> FrozenTrial:
        names = [*self._objectives, "feasible"]
        attributes: dict[str, Any] = {"trial": trial.name, "status": trial.status, "replicate": trial.replicate}
        attributes["points"] = [{name: point.get(name) for name in names} for point in trial.points]
        attributes |= {"reason": trial.reason} if trial.reason else {}
        state = STATES[trial.outcome]
        complete = state == TrialState.COMPLETE
        values = [trial.points[-1][name] for name in self._objectives] if complete else None
        frozen = self._frozen(state, trial.params, attributes, values)
        frozen.datetime_start = _local(trial.created)
        frozen.datetime_complete = _local(trial.changed) if state.is_finished() else None
        return frozen

    def _frozen(
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
        params = {name: params[name] for name in distributions}
        return create_trial(
            state=state, params=params, distributions=distributions, user_attrs=attributes, values=values
        )


def export_optuna(study: Study, target: Path) -> int:
    """Write the study's trials to `target`, which is replaced atomically; return their number."""
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
        exported = optuna.create_study(
            storage=storage, study_name=study.name, directions=[ways[way] for way in objectives.values()]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # metric names are experimental since Optuna 3.2
            exported.set_metric_names(list(objectives))
        exported.add_trials(trials)
    return len(trials)


def _local(time: str) -> datetime:
    """Return a time as Optuna stores it: local, without a time zone."""
    return datetime.fromisoformat(time).astimezone().replace(tzinfo=None)
