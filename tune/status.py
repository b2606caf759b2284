"""How a study stands: progress, front, what was rejected or failed and why, what resumes repeated.

    python tune/status.py runs/<study>                                while it runs, after it ended, or in between
    python tune/status.py s3://bucket/path/<study>                    credentials from the environment
    python tune/status.py runs/<study> --json                         the same as one JSON object
    python tune/status.py runs/<study> --export-optuna study.journal  then: optuna-dashboard study.journal

Reads the study's files only: the journal, study.json, points.csv. Nothing is written there and no driver is disturbed.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from analysis.front import pareto_points
from analysis.report import print_front
from analysis.results import ResultsError, Study, load_study
from analysis.summary import percent, trial_counts
from tune.journal import TrialLog
from tune.optuna_export import export_optuna
from tune.reading import Follower, Place, open_place
from tune.study import n_trials


def study_status(place: Place, study: Study, follower: Follower) -> dict[str, Any]:
    """Everything that is told, as plain JSON values."""
    manifest, log, now = study.manifest, follower.log, time.time()
    driven = place.driven()
    ended = follower.log.n_ended
    counts = {status: n for status, n in log.counts().items() if status != "rejected"}
    if not log.trials:  # a study of an older version, or one that has just begun
        counts = trial_counts(study)[0]
        ended = sum(n for status, n in counts.items() if status != "running")
    asked = max(n_trials(manifest) if "num_samples" in manifest else 0, len(log.trials))
    here = ended - follower.ended_before
    finished = asked <= ended or log.exhausted
    eta = (now - follower.began) / here * (asked - ended) if driven and here > 0 and not finished else None
    failed = {t.name: _failure(t) for t in log.trials.values() if t.status == "failed"}
    repeated = {t.name: t.repeated for t in log.trials.values() if t.repeated}
    return {
        "name": study.name,
        "folder": place.text if "://" in place.text else str(place.folder),
        "status": manifest.get("status"),
        "driver": driven,
        "drivers": log.runs,
        "trials": {"asked": asked, "ended": ended, **counts},
        "space_used_up": log.exhausted,
        "running": [_running(t, manifest) for t in log.trials.values() if not t.ended],
        "seconds_since_last_event": None if follower.last is None else round(now - follower.last, 1),
        "seconds_left": None if eta is None else round(eta),
        "front": json.loads(str(pareto_points(study).to_json(orient="records", double_precision=15))),
        "rejected": {why: {"samples": n, "example": log.examples[why]} for why, n in log.rejected.most_common()},
        "failed": failed,
        "epochs": sum(t.epochs for t in log.trials.values()),
        "restores": sum(t.restores for t in log.trials.values()),
        "repeated_epochs": {"all": sum(repeated.values()), "by_trial": repeated},
    }


def _failure(trial: TrialLog) -> str:
    return (trial.failure or "reason unknown") + (" (crashed; a resume tries it again)" if trial.crashed else "")


def _running(trial: TrialLog, manifest: dict[str, Any]) -> dict[str, Any]:
    """Where a trial that has not ended stands."""
    config = manifest.get("config", {}) | trial.values
    stage = trial.last.get("stage", 0)
    return {
        "trial": trial.name,
        "stage": stage,
        "steps": len(config.get("prune.ratios") or ()) or config.get("prune.n_steps") or 0,
        "epoch": trial.last.get("epoch", 0),
        "of_epochs": config.get("prune.epochs" if stage else "train.epochs"),
        "val_macro_avg_acc": trial.last.get("val_macro_avg_acc"),
    }


def sentences(status: dict[str, Any], positions: int = 64) -> list[str]:
    """What `study_status` says, in lines for a terminal or a page, so many positions of running trials at most; the
    front is not among them."""
    trials = dict(status["trials"])
    asked, ended = trials.pop("asked"), trials.pop("ended")
    detail = ", ".join(f"{n} {name}" for name, n in trials.items() if n and name != "running")
    n, times = len(status["running"]), status["drivers"]
    lines = [f"{status['name']}: {_state(status)}" + (f"; started {_count(times, 'time')}" if times > 1 else "")]
    lines.append(f"trials: {ended} of {asked} ended" + (f" ({detail})" if detail else ""))
    lines[-1] += (f", {n} {'running' if status['driver'] else 'to go on'}" if n else "") + _left(status)
    lines += [f"  {_position(trial)}" for trial in status["running"][:positions]]
    lines += [f"  and {n - positions} more"] if n > positions else []
    if status["space_used_up"]:
        lines.append("the space is used up: no further configuration can be drawn")
    if status["rejected"]:
        lines.append(f"rejected before training: {sum(r['samples'] for r in status['rejected'].values())}")
        lines += [f"  {r['samples']} {why}, for example {r['example']}" for why, r in status["rejected"].items()]
    reasons: dict[str, list[str]] = {}
    for trial, why in status["failed"].items():
        reasons.setdefault(why, []).append(trial)
    lines += [f"failed: {_names(names)}: {why}" for why, names in reasons.items()]
    if status["restores"]:
        by_trial = status["repeated_epochs"]["by_trial"]
        told = f" ({_names([f'{name} {epochs}' for name, epochs in by_trial.items()])})" if by_trial else ""
        lines.append(
            f"repeated by resumes: {_count(status['repeated_epochs']['all'], 'epoch')} beside {status['epochs']} that "
            f"count{told}; {_count(status['restores'], 'trial')} went on from a checkpoint"
        )
    return lines


def _state(status: dict[str, Any]) -> str:
    if status["driver"]:
        return "running"
    if status["status"] in ("running", "new"):
        return "not running (killed, or broken off); the command that started it, with --resume, goes on"
    return str(status["status"])


def _left(status: dict[str, Any]) -> str:
    said = ""
    if status["status"] != "complete" and status["seconds_since_last_event"] is not None:
        said = f"; last event {_duration(status['seconds_since_last_event'])} ago"
    return said + (f", about {_duration(status['seconds_left'])} left" if status["seconds_left"] is not None else "")


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


def main(argv: list[str] | None = None) -> int:
    """The command; exit status 0, or 2 where there is no study or its files are damaged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="folder of a study, or its place in an object store")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of sentences and a table")
    parser.add_argument("--export-optuna", metavar="FILE", type=Path, help="write the study as an Optuna journal")
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    try:
        place = open_place(options.study)
        follower = Follower(place.folder)
        follower.update()
        study = load_study(place.folder)
        if options.export_optuna:
            exported = export_optuna(study, options.export_optuna)
            print(f"{_count(exported, 'trial')} as an Optuna journal: {options.export_optuna}")
            return 0
    except (ResultsError, OSError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    status = study_status(place, study, follower)
    if options.json:
        print(json.dumps(status))
        return 0
    print("\n".join(sentences(status)), end="\n\n")
    print_front(study)
    return 0


if __name__ == "__main__":
    sys.exit(main())
