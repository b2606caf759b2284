"""A study as an Optuna journal, which optuna-dashboard and Optuna itself open (`tune/status.py --export-optuna FILE`).

    optuna-dashboard FILE                                                       (a package of its own)
    optuna.load_study(study_name=..., storage=JournalStorage(JournalFileBackend(FILE)))

Every trial and every rejected sample is a trial there: complete ones with the figures of their last network, rejected
and early-stopped ones as pruned. Its user attributes hold our name, status, reason, and the accuracy and MACs of every
network on the way.
"""

import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.results import Study
from search_spaces import Space, space_from_dict
from tune.history import replay
from tune.journal import StudyLog, TrialLog, read_events

STATES = {
    "complete": TrialState.COMPLETE,
    "stopped early": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


def export_optuna(study: Study, target: Path) -> int:
    """Write the study's trials to `target`, which is replaced whole; their number."""
    events = list(read_events(study.path))
    log, space = StudyLog(), space_from_dict(study.manifest["space"])
    times: dict[str, list[datetime]] = {}  # of a trial's events
    for event in events:
        log.apply(event)
        if "trial" in event:
            times.setdefault(event["trial"], []).append(datetime.fromisoformat(event["time"]))
    trials: list[FrozenTrial] = []
    for event in events:
        if event["event"] == "reject":
            trials.append(_rejected(space, event))
        elif event["event"] == "trial":
            trial, at = log.trials[event["trial"]], times[event["trial"]]
            trials.append(_trial(space, list(study.objectives), trial, at[0], at[-1]))
    beside = target.with_name(f".{target.name}.part")
    beside.unlink(missing_ok=True)
    storage = JournalStorage(JournalFileBackend(str(beside)))
    ways = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(
        storage=storage, study_name=study.name, directions=[ways[way] for way in study.objectives.values()]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # names are of Optuna's interface since 3.2
        made.set_metric_names(list(study.objectives))
    made.add_trials(trials)
    beside.replace(target)
    return len(trials)


def _rejected(space: Space, event: dict[str, Any]) -> FrozenTrial:
    attributes = {"status": "rejected before training", "reason": event["reason"], "excess": event["excess"]}
    made = create_trial(
        state=TrialState.PRUNED,
        params=event["params"],
        distributions=replay(space, event["params"])[1],
        user_attrs=attributes,
    )
    made.datetime_start = made.datetime_complete = _local(datetime.fromisoformat(event["time"]))
    return made


def _trial(space: Space, objectives: list[str], trial: TrialLog, begun: datetime, ended: datetime) -> FrozenTrial:
    names = [*objectives, "feasible"]
    attributes: dict[str, Any] = {"trial": trial.name, "status": trial.status, "replicate": trial.replicate}
    attributes["points"] = [{name: point.get(name) for name in names} for point in trial.points]
    attributes |= {"reason": trial.failure} if trial.failure else {}
    state = STATES[trial.status]
    made = create_trial(
        state=state,
        params=trial.params,
        distributions=replay(space, trial.params)[1],
        values=[trial.points[-1][name] for name in objectives] if state == TrialState.COMPLETE else None,
        user_attrs=attributes,
    )
    made.datetime_start = _local(begun)
    made.datetime_complete = _local(ended) if state.is_finished() else None
    return made


def _local(time: datetime) -> datetime:
    """Optuna's times bear no zone and are local."""
    return time.astimezone().replace(tzinfo=None)
