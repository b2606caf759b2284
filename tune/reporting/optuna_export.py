"""Export a study as an Optuna journal for optuna-dashboard and Optuna (`tune/status.py --export-optuna FILE`).

    optuna-dashboard FILE                                                       # a separate package
    optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(FILE)))

Every trial and every rejected sample of the study becomes a trial in Optuna:

- State: COMPLETE for completed trials, RUNNING for trials that have not ended, FAIL for failed and crashed trials,
  PRUNED for trials that were stopped early and for rejected samples.
- Values: a completed trial has the objective values of its last network. Other trials have no values.
- User attributes of a trial: `trial` (its name), `status`, `replicate`, `reason` (why it failed or crashed), and
  `points` (the objective values of each measured network, and whether it fits the limits).
- User attributes of a rejected sample: `status`, `reason` (why it was rejected), and `excess` (relative excess of its
  cheapest stage over the limits).
- Parameters: the sampled ones. If the search space was edited and no longer contains them, they are stored as the user
  attribute `params`, because Optuna requires a distribution for each parameter.
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
    """Reducer that records the trials and rejected samples of a study; `trials` converts them to Optuna trials.

    `space` is the search space of the study, and `objectives` holds the names of its objectives. `state` is the state
    of the same study: the caller must apply each event to `state` first, then to this reducer.
    """

    def __init__(self, space: Space, objectives: list[str], state: StudyState):
        self._space, self._objectives, self._state = space, objectives, state
        self._drawn: list[SampleRejected | str] = []  # a rejected sample, or the name of a trial

    def apply(self, event: Event) -> None:
        if isinstance(event, SampleRejected):
            self._drawn.append(event)
        elif isinstance(event, TrialCreated):
            self._drawn.append(event.trial)

    def trials(self) -> list[FrozenTrial]:
        """Return the trials and rejected samples as Optuna trials, in the order of their events."""
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
    """Write the trials and rejected samples of `study` as an Optuna journal to the file `target`, which is replaced
    atomically. Return the number of Optuna trials.

    Raise JournalError, which names file and line, if the journal of the study is damaged.
    """
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
    """Return the time of an event (ISO 8601, UTC) as Optuna stores it: local time without a time zone."""
    return datetime.fromisoformat(time).astimezone().replace(tzinfo=None)
