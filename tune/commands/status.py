"""Status of a study as JSON values and as text: the work of the command tune/status.py."""

import argparse
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from analysis.findings.progress import progress
from analysis.front import pareto_points
from analysis.manifest import StudyManifest, read_manifest
from analysis.outputs import print_front
from analysis.results import Study, load_study
from analysis.summary import percent, trial_counts
from analysis.typed_json import ResultsError
from data.signals import INTERRUPTED, STORAGE_S, interruptible
from data.untrusted import Terminal, printable
from trainables.outputs.disk import disk_message
from tune.reporting.csv_texts import points_text, prune_steps, trials_text
from tune.reporting.optuna_export import export_optuna
from tune.study.journal import JournalError
from tune.study.reader import Follower, Place, open_place
from tune.study.state import StudyState, TrialState


def study_status(place: Place, study: Study, state: StudyState) -> dict[str, Any]:
    """Return the status of a study as a dict of JSON values, for this command and for the live page.

    `place` gives access to the study's files, `study` has the measured points, and `state` is the state after all
    events of the journal.
    """
    manifest, now = study.manifest, time.time()
    driven = place.driven()
    counts = {status: n for status, n in state.counts().items() if status != "rejected"}
    ended = state.n_ended
    if not state.trials:  # the study has just started, or an older version without a journal made it
        counts = trial_counts(study)[0]
        ended = sum(n for status, n in counts.items() if status != "running")
    n_trials = max(manifest.requested.n_trials, len(state.trials))
    ended_now = ended - state.ended_before  # under the newest driver
    finished = n_trials <= ended or state.exhausted
    since_start = now - _seconds(state.started) if state.started else 0.0
    eta = since_start / ended_now * (n_trials - ended) if driven and ended_now > 0 and not finished else None
    failed = {t.name: _failure(t) for t in state.trials.values() if t.outcome in ("failed", "crashed")}
    repeated = {t.name: t.repeated for t in state.trials.values() if t.repeated}
    return {
        "name": study.name,
        "folder": place.text if "://" in place.text else str(place.folder),
        "status": manifest.progress.status,
        "driver": driven,
        "drivers": state.drivers,
        "trials": {"asked": n_trials, "ended": ended, **counts},
        "space_used_up": state.exhausted,
        "running": [_running(t, manifest) for t in state.open],
        "seconds_since_last_event": round(now - _seconds(state.time), 1) if state.time else None,
        "seconds_left": None if eta is None else round(eta),
        "hypervolume": _hypervolume(study, state),
        "front": json.loads(str(pareto_points(study).to_json(orient="records", double_precision=15))),
        "rejected": {why: {"samples": n, "example": state.examples[why]} for why, n in state.rejected.most_common()},
        "failed": failed,
        "epochs": sum(t.epochs for t in state.trials.values()),
        "restores": sum(t.restores for t in state.trials.values()),
        "repeated_epochs": {"all": sum(repeated.values()), "by_trial": repeated},
        "changes": [change.what for change in manifest.progress.changes],
    }


def current_study(folder: Path, state: StudyState) -> Study:
    """Return the study in `folder` with the points and trials in `state`, which may be more than in its tables."""
    if not state.trials:
        return load_study(folder)
    config = read_manifest(folder / "study.json").resolved.config
    return load_study(folder, points_text(state), trials_text(state, config))


def _hypervolume(study: Study, state: StudyState) -> dict[str, Any] | None:
    """Return the hypervolume of the front as a share of the rectangle from 0 to 100 % accuracy and from 0 MACs to
    `up_to_macs`, and how many trials have begun and how many seconds the study has run since it last grew.

    The rectangle ends at the MACs limit, or without one beyond the largest candidate for the front. The result is None
    if no candidate was measured, or if it is unknown when.
    """
    found = progress(study) if state.trials else None
    if found is None or found.trials is None or (grew := found.grew) is None:
        return None
    return {
        "now": round(float(found.hypervolume[-1]), 6),
        "up_to_macs": found.reference,
        "limit": found.limited,
        "trials_since_growth": len(state.trials) - int(found.trials[grew]),
        "seconds_since_growth": round(state.search_s - 3600 * float(found.hours[grew]), 1),
    }


def _seconds(time: str) -> float:
    """Convert the time of an event (UTC in ISO format) to seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


def _failure(trial: TrialState) -> str:
    again = " (crashed; a resume retries it)" if trial.outcome == "crashed" else ""
    return (trial.reason or "reason unknown") + again


def _running(trial: TrialState, manifest: StudyManifest) -> dict[str, Any]:
    """Return the stage, epoch and accuracy of a running trial, and how many prune steps and epochs it will have."""
    config = manifest.resolved.config | trial.values
    return {
        "trial": trial.name,
        "stage": trial.stage,
        "steps": prune_steps(config),
        "epoch": trial.epoch,
        "of_epochs": config.get("prune.epochs" if trial.stage else "train.epochs"),
        "val_macro_avg_acc": trial.figures.get("val_macro_avg_acc"),
    }


def sentences(status: dict[str, Any], positions: int = 64) -> list[str]:
    """Convert `status`, the result of `study_status`, to lines of text for a terminal or a page, without the front.

    At most `positions` running trials get a line of their own; a further line has the number of the others.
    """
    trials = dict(status["trials"])
    n_trials, ended = trials.pop("asked"), trials.pop("ended")
    detail = ", ".join(f"{n} {name}" for name, n in trials.items() if n and name != "running")
    n, times = len(status["running"]), status["drivers"]
    lines = [f"{status['name']}: {_state(status)}" + (f"; started {_count(times, 'time')}" if times > 1 else "")]
    lines.append(f"trials: {ended} of {n_trials} ended" + (f" ({detail})" if detail else ""))
    lines[-1] += _open_trials(status) + _times(status)
    lines += [f"  {_position(trial)}" for trial in status["running"][:positions]]
    lines += [f"  and {n - positions} more"] if n > positions else []
    if volume := status["hypervolume"]:
        end = "the limit" if volume["limit"] else f"{volume['up_to_macs'] / 1e6:.3g} M MACs"
        lines.append(
            f"hypervolume up to {end}: {volume['now']:.3f}; it last grew "
            f"{_count(volume['trials_since_growth'], 'trial')} and {_duration(volume['seconds_since_growth'])} ago"
        )
    if status["space_used_up"]:
        lines.append("the search space is exhausted: it has no further configuration that can be trained")
    if status["rejected"]:
        lines.append(f"rejected before training: {sum(r['samples'] for r in status['rejected'].values())}")
        lines += [f"  {r['samples']} {why}, for example {r['example']}" for why, r in status["rejected"].items()]
    reasons: dict[str, list[str]] = {}
    for trial, why in status["failed"].items():
        reasons.setdefault(why, []).append(trial)
    lines += [f"failed: {_names(names)}: {why}" for why, names in reasons.items()]
    if status["restores"]:
        by_trial = status["repeated_epochs"]["by_trial"]
        detail = f" ({_names([f'{name}: {epochs}' for name, epochs in by_trial.items()])})" if by_trial else ""
        lines.append(
            f"epochs: {status['epochs']}, and {status['repeated_epochs']['all']} trained again{detail} after "
            f"{_count(status['restores'], 'restore')} from a checkpoint"
        )
    return lines


def _state(status: dict[str, Any]) -> str:
    if status["driver"]:
        return "running"
    if status["status"] in ("running", "new"):
        return "not running (its driver was killed or stopped early); repeat its command with --resume to continue"
    return str(status["status"])


def _times(status: dict[str, Any]) -> str:
    """Return the age of the last event and the estimated time left as text, from the result of `study_status`.

    The text is empty if neither time is known.
    """
    text = ""
    if status["status"] != "complete" and status["seconds_since_last_event"] is not None:
        text = f"; last event {_duration(status['seconds_since_last_event'])} ago"
    return text + (f", about {_duration(status['seconds_left'])} left" if status["seconds_left"] is not None else "")


def _open_trials(status: dict[str, Any]) -> str:
    """Return how many trials have not ended, as text to append to a line, e.g. ", 2 running, 1 without an epoch yet".

    `status` is the result of `study_status`. The text is empty if all trials have ended.
    """
    trials = status["running"]
    if not status["driver"]:
        return f", {len(trials)} to continue" if trials else ""
    waiting = sum(not trial["stage"] and not trial["epoch"] for trial in trials)  # for a worker or for its first epoch
    running = len(trials) - waiting
    return (f", {running} running" if running else "") + (f", {waiting} without an epoch yet" if waiting else "")


def _position(trial: dict[str, Any]) -> str:
    steps = f" of {trial['steps']}" if trial["steps"] else ""
    stage = f"prune step {trial['stage']}{steps}" if trial["stage"] else "dense"
    accuracy = f", {percent(trial['val_macro_avg_acc'])} % validation" if trial["val_macro_avg_acc"] else ""
    of = f" of {trial['of_epochs']}" if trial["of_epochs"] else ""
    return f"{trial['trial']} {stage}, epoch {trial['epoch']}{of}{accuracy}"


def _names(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def command(options: argparse.Namespace) -> int:
    """Print or export the status of the study that `options` name; return the exit status (`tune.status.main`)."""
    console = Terminal(stderr=True)
    try:
        with interruptible(STORAGE_S):
            return show(options, console)
    except KeyboardInterrupt:
        console.print("interrupted; the study is unchanged: repeat the command")
        return INTERRUPTED


def show(options: argparse.Namespace, console: Console) -> int:
    """Print or export the status of the study that `options` name; return the exit status of the command."""
    try:
        place = open_place(options.study)
        follower = Follower(place.folder)
        follower.update()
        study = current_study(place.folder, follower.state)
        if options.export_optuna:
            exported = export_optuna(study, options.export_optuna)
            print(f"exported {_count(exported, 'trial')} as an Optuna journal: {options.export_optuna}")
            return 0
    except (ResultsError, JournalError, OSError) as error:
        console.print(f"[red]error:[/red] {escape(disk_message(error))}", highlight=False, soft_wrap=True)
        return 2
    status = study_status(place, study, follower.state)
    if options.json:
        print(json.dumps(status))
        return 0
    print(printable("\n".join(sentences(status))), end="\n\n")
    if (source := study.manifest.requested.refit_of) is None:
        print_front(study)
    else:
        print(printable(f"a refit of study {source}: its networks have no validation accuracy, so there is no front"))
    return 0
