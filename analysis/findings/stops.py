"""Which trials of a study were stopped early, failed or crashed, and how many epochs early stopping saved.

    for stop in stops(study):                  # trials that were stopped by the same cause after the same epoch
        print(stop.stage, stop.epochs, stop.by, stop.trials, stop.saved)
    saving(study)                              # epochs that the scheduler saved, and the epochs that were planned

The functions need trials.csv; without this file, they return nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from analysis.results import Study

OLD_SCHEDULER = "scheduler"  # the name of every scheduler in journals of format 1
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Stop:
    """Trials that were stopped early by the same cause after the same number of epochs."""

    by: str  # name of the scheduler, "ray tune" or "the trial itself"
    stage: int  # 0: dense; k: after prune step k
    epochs: int  # that each of them has reported, over all stages
    trials: tuple[str, ...]
    saved: int | None  # epochs that they did not train; None: the planned epochs of one of them are unknown


@dataclass(frozen=True)
class Failure:
    """Trials that failed or crashed for the same reason; reasons that differ in numbers only are the same."""

    status: str  # failed or crashed
    reason: str  # of the first of them
    varied: bool  # whether the reasons of the others have other numbers
    trials: tuple[str, ...]


def stops(study: Study) -> list[Stop]:
    """Return the trials of `study` that were stopped early, grouped by cause and epoch, the earliest epoch first."""
    groups: dict[tuple[int, int, str], list[dict[Any, Any]]] = {}
    for trial in _trials(study):
        if trial["status"] == "stopped early":
            key = (trial["epochs"], trial["stage"], trial["stopped_by"] or UNKNOWN)
            groups.setdefault(key, []).append(trial)
    found = []
    for (epochs, stage, by), group in sorted(groups.items()):
        saved = [_saved(trial) for trial in group]
        known = None if None in saved else sum(number for number in saved if number)
        found.append(Stop(by, int(stage), int(epochs), tuple(trial["trial_id"] for trial in group), known))
    return found


def saving(study: Study) -> tuple[int, int] | None:
    """Return how many epochs the scheduler saved, and how many epochs the ended trials of `study` had planned.

    Trials that failed or crashed are not counted, and neither are trials whose planned epochs are unknown. The result
    is None if no trial is left.
    """
    saved = planned = 0
    for trial in _trials(study):
        left = _saved(trial)
        if trial["status"] in ("complete", "stopped early") and left is not None:
            planned += int(trial["planned_epochs"])
            saved += left if by_scheduler(study, trial["stopped_by"]) else 0
    return (saved, planned) if planned else None


def by_scheduler(study: Study, stopped_by: str) -> bool:
    """Return whether `stopped_by`, a value of trials.csv, names the scheduler of `study`."""
    return stopped_by in (study.manifest.requested.scheduler, OLD_SCHEDULER)


def failures(study: Study) -> list[Failure]:
    """Return the trials of `study` that failed or crashed, grouped by status and reason, the largest group first."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for trial in _trials(study):
        if trial["status"] in ("failed", "crashed"):
            reason = trial["reason"] or UNKNOWN
            groups.setdefault((trial["status"], re.sub(r"\d+", "#", reason)), []).append((reason, trial["trial_id"]))
    found = []
    for (status, _), group in groups.items():
        reasons, names = zip(*group, strict=True)
        found.append(Failure(status, reasons[0], len(set(reasons)) > 1, names))
    return sorted(found, key=lambda failure: -len(failure.trials))


def _trials(study: Study) -> Iterable[dict[Any, Any]]:
    return [] if study.trials is None else study.trials.to_dict("records")


def _saved(trial: dict[Any, Any]) -> int | None:
    """Return the number of planned epochs that `trial` did not train; None if the plan is unknown.

    A plan with fewer epochs than were trained was changed during the study (population based training): 0.
    """
    planned = trial["planned_epochs"]
    return None if planned != planned else max(0, int(planned) - int(trial["epochs"]))
