"""The contents of points.csv and trials.csv, computed from the state of a study.

    points_text(state)             # the text of points.csv: one row for each measured network
    trials_text(state, config)     # the text of trials.csv: one row for each created trial

`analysis/results.py` reads both files. Column by column, trials.csv has

    trial_id, config_id, replicate  as in points.csv
    status          complete, stopped early, failed, crashed or running
    stopped_by      what stopped the trial: name of the scheduler, "ray tune" or "the trial itself"; else empty
    reason          why the trial failed or crashed, in one line of at most 300 characters; else empty
    epochs          number of epochs that the trial has reported, over all stages
    planned_epochs  number of epochs of all its stages if it is not stopped; empty: unknown
    stage           stage of its newest epoch; 0: dense, k: after prune step k
    restores        how often it was restored from a checkpoint
    created_s       run time of the study in seconds when the trial was created (as `search_s` in points.csv)
    ended_s         run time of the study in seconds when the trial ended; empty: it has not ended
"""

from collections.abc import Mapping
from typing import Any

from data.untrusted import printable
from trainables.outputs.records import EXPERIMENTS, MOMENT, point_row, points_csv, rows_text
from tune.study.state import StudyState, TrialState

TRIAL_COLUMNS = (
    *("trial_id", "config_id", "replicate", "status", "stopped_by", "reason", "epochs", "planned_epochs", "stage"),
    *("restores", "created_s", "ended_s"),
)
REASON_CHARACTERS = 300


def points_text(state: StudyState) -> str:
    """Return the content of points.csv: one row for each measured network, from trials of every status."""
    return points_csv(
        [
            {"trial_id": trial.name, "config_id": trial.config_id, "replicate": trial.replicate}
            | point_row(trial.name, trial.status, f"{EXPERIMENTS}/{trial.name}", point, trial.values)
            | {column: point[column] for column in MOMENT}
            for trial in state.trials.values()
            for point in trial.points
        ]
    )


def trials_text(state: StudyState, config: Mapping[str, Any]) -> str:
    """Return the content of trials.csv: one row for each trial of every status, in the order of their creation.

    `config` is the flat configuration that the sampled values override. None becomes an empty cell.
    """
    rows = [
        {
            "trial_id": trial.name,
            "config_id": trial.config_id,
            "replicate": trial.replicate,
            "status": trial.status,
            "stopped_by": _one_line(trial.stopped_by),
            "reason": _one_line(trial.reason),
            "epochs": trial.epochs,
            "planned_epochs": planned_epochs(trial, config),
            "stage": trial.stage,
            "restores": trial.restores,
            "created_s": trial.created_s,
            "ended_s": trial.ended_s,
        }
        for trial in state.trials.values()
    ]
    return rows_text(rows, TRIAL_COLUMNS)


def planned_epochs(trial: TrialState, config: Mapping[str, Any]) -> int | None:
    """Return the number of epochs over all stages of `trial` if it is not stopped; None if it is unknown.

    `config` is the flat configuration that the values of the trial override.
    """
    own = {**config, **trial.values}
    steps = len(trial.widths) - 1 if trial.widths else prune_steps(own)
    dense, per_step = own.get("train.epochs"), own.get("prune.epochs") if steps else 0
    return dense + steps * per_step if isinstance(dense, int) and isinstance(per_step, int) else None


def prune_steps(config: Mapping[str, Any]) -> int:
    """Return the number of prune steps of a flat configuration (0: no pruning, or the value is not valid)."""
    ratios, n_steps = config.get("prune.ratios"), config.get("prune.n_steps")
    given = len(ratios) if isinstance(ratios, list | tuple) else 0
    return given or (n_steps if isinstance(n_steps, int) else 0)


def _one_line(text: str | None) -> str | None:
    """Return `text` as one line of at most REASON_CHARACTERS characters, without control characters."""
    line = printable(" ".join((text or "").split()))
    return (line if len(line) <= REASON_CHARACTERS else f"{line[: REASON_CHARACTERS - 3]}...") or None
