"""The callback that writes a study down as its results arrive, and tells the terminal.

The journal comes first, in the same step as the result; tables and info.json follow from it. Where the storage is away
or full, the driver waits for it instead of losing what it knows.
"""

import csv
import io
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray.tune as rt
from ray.tune.experiment import Trial
from rich.console import Console
from rich.markup import escape

from trainables.ray_trainables import RESERVED
from trainables.records import EXPERIMENTS, FIGURES, point_row, write_info, write_rows
from tune.gauges import RunningFront
from tune.journal import Journal, StudyLog, TrialLog, patiently

CURVE = (
    *("stage", "epoch", "epochs", "train_loss", "val_loss", "val_macro_avg_acc", "val_ece", "train_macro_avg_acc"),
    *("macs", "params", "sparsity", "seconds"),
)  # columns of results.csv
HOPELESS = 3  # trials that fail for one reason, before any other has done better, end the study
_LOG = logging.getLogger(__name__)


class StudyWriter(rt.Callback):
    """Journals every result, keeps results.csv, points.csv and info.json true, and prints a line a point.

    `mirror` is called at every step, and with True at the end: it may copy the folder elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        n_trials: int,
        console: Console,
        mirror: Callable[[bool], None] = lambda last: None,
    ):
        self.folder, self.journal, self.n_trials = folder, journal, n_trials
        self.hopeless: str | None = None  # why the study is to be stopped
        self._console, self._mirror = console, mirror
        self._front = RunningFront(journal.log)
        self._started = time.monotonic()
        self._ended = self._ended_before = journal.log.n_ended
        self._any_point = any(t.points for t in journal.log.trials.values())
        self._failures: list[str] = []  # of this driver, while no point has been measured
        self._stale, self._table_at, self._table_took = True, 0.0, 0.0  # of points.csv

    def __getstate__(self) -> dict[str, Any]:  # Ray pickles callbacks with its snapshots, of which we use none
        return {}

    def on_trial_result(self, iteration, trials, trial: Trial, result: dict[str, Any], **info) -> None:
        name = trial.config["trial"]
        log = self.journal.log.trials[name]
        if log.ended:  # Ray says "done" twice of a trial that was restored after its last epoch
            return
        if result.get("restored_epochs") is not None:
            self._add("restore", trial=name, epochs=result["restored_epochs"])
        changed = {k: trial.config[k] for k, v in log.values.items() if trial.config[k] != v}
        if changed:  # by population based training
            self._add("change", trial=name, values=changed)
        event = {k: result.get(k) for k in CURVE} | {"done": bool(result["done"]), "finished": result.get("finished")}
        event["epochs"] = result.get("epochs", 0)
        if result.get("failure"):
            event["failure"] = result["failure"]
        points = result.get("points") or []
        measured = points[-1] if len(points) > len(log.points) else None
        if measured:
            event["point"] = measured
        self._add("result", trial=name, **event)
        if not log.failure:
            append_row(self.folder / EXPERIMENTS / name / "results.csv", {k: event[k] for k in CURVE})
        if measured or log.ended:
            self._write_info(trial, log, points)
        if measured:
            self._any_point = True
            self._tell_point(trial, measured, len(points))
        if log.ended:
            self._trial_ended(log)

    def on_trial_complete(self, iteration, trials, trial: Trial, **info) -> None:
        self._end(trial, "stopped early", None)

    def on_trial_error(self, iteration, trials, trial: Trial, **info) -> None:
        self._end(trial, "failed", crash_of(trial))

    def on_step_end(self, iteration, trials, **info) -> None:
        due = self._table_at + max(1.0, 20 * self._table_took)  # at most a twentieth of the time goes into tables
        if self._stale and time.monotonic() > due:
            self.write_table()
        patiently(lambda: self._mirror(False), self._warn)

    def on_experiment_end(self, trials, **info) -> None:
        self.write_table()
        patiently(lambda: self._mirror(True), self._warn)

    def write_table(self) -> None:
        """points.csv of all trials."""
        started = time.monotonic()
        patiently(lambda: write_points(self.folder, self.journal.log), self._warn)
        self._stale, self._table_at = False, time.monotonic()
        self._table_took = self._table_at - started

    def _add(self, event: str, **values: Any) -> None:
        self.journal.add(event, **values)
        self._stale = True

    def _end(self, trial: Trial, status: str, failure: str | None) -> None:
        """The end of a trial of which no result has told it."""
        log = self.journal.log.trials[trial.config["trial"]]
        if not log.ended:
            self._add("end", trial=log.name, status=status, failure=failure)
            self._write_info(trial, log, log.points)
            self._trial_ended(log)

    def _trial_ended(self, log: TrialLog) -> None:
        self._ended += 1
        if log.status != "complete":
            reason = f": {escape(str(log.failure))}" if log.failure else ""
            told = f"{log.name} {log.status} after {log.epochs} epochs{reason}"
            self._tell(f"[red]{told}[/red]" if log.status == "failed" else told)
        if log.status == "failed" and not self._any_point:
            self._failures.append(re.sub(r"\d+", "#", str(log.failure)))  # the same but for its numbers
            least = min(HOPELESS, self.n_trials)
            if len(self._failures) >= least and len(set(self._failures[-least:])) == 1:
                self.hopeless = str(log.failure)

    def _write_info(self, trial: Trial, log: TrialLog, points: list[dict[str, Any]]) -> None:
        content = info_of(log, points, trial.config)
        patiently(lambda: write_info(self.folder / EXPERIMENTS / log.name, content), self._warn)

    def _tell_point(self, trial: Trial, point: dict[str, Any], n_points: int) -> None:
        mark = "" if point["feasible"] else " [yellow]over the limits[/yellow]"
        steps = len(trial.config["prune.ratios"]) or trial.config.get("prune.n_steps") or 0
        self._tell(
            f"{trial.config['trial']} step {point['step']}/{steps}: {point['val_macro_avg_acc']:6.1%} validation, "
            f"{point['macs'] / 1e6:6.2f} M MACs, {point['params'] / 1e3:5.1f} k params{mark}",
            ending=int(n_points == steps + 1),
        )

    def _tell(self, text: str, ending: int = 0) -> None:
        elapsed, ended = time.monotonic() - self._started, self._ended + ending
        here = ended - self._ended_before
        eta = f", about {elapsed / here * (self.n_trials - ended) / 60:.0f} min left" if here > 0 else ""
        self._console.print(
            f"[dim]{elapsed / 60:5.1f} min[/dim] {text} [dim]| {ended}/{self.n_trials} trials, "
            f"front {len(self._front.update())}{eta}[/dim]",
            highlight=False,
            soft_wrap=True,
        )

    def _warn(self, text: str) -> None:
        self._console.print(f"[yellow]{escape(text)}[/yellow]", highlight=False, soft_wrap=True)


class Hopeless(rt.Stopper):
    """Ends a study in which nothing but one failure happens."""

    def __init__(self, writer: StudyWriter):
        self._writer = writer

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._writer.hopeless is not None


def info_of(trial: TrialLog, points: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """A trial's info.json."""
    return {
        "trial_id": trial.name,
        "config_id": trial.config_id,
        "replicate": trial.replicate,
        "status": trial.status,
        "failure": trial.failure,
        "sampled": trial.values,
        "points": points,
        "last_result": trial.last,
        "epochs_repeated": trial.repeated,
        "config": {k: v for k, v in config.items() if k not in RESERVED},
    }


def catch_up(folder: Path, events: Sequence[dict[str, Any]], log: StudyLog, config: dict[str, Any]) -> None:
    """What a driver that was killed after its last event had no time to write: points.csv, and that trial's info.json.
    `config` is what the study's trials share."""
    write_points(folder, log)
    last = next((e for e in reversed(events) if e["event"] in ("result", "end")), None)
    if last and (last.get("point") or log.trials[last["trial"]].ended):
        trial = log.trials[last["trial"]]
        told = (e["point"] for e in events if e.get("trial") == trial.name and e.get("point"))
        points = list({p["step"]: p for p in reversed(list(told))}.values())[::-1]  # the first of a step counts
        whole = config | trial.values | {"replicate": trial.replicate}
        write_info(folder / EXPERIMENTS / trial.name, info_of(trial, points, whole))


def write_points(folder: Path, log: StudyLog) -> None:
    """points.csv of all trials."""
    rows = [row for trial in log.trials.values() for row in rows_of(trial)]
    write_rows(folder / "points.csv", rows, ["trial_id", "config_id", "replicate", *FIGURES, "status"])


def rows_of(trial: TrialLog) -> list[dict[str, Any]]:
    """A trial's rows of points.csv."""
    ids = {"trial_id": trial.name, "config_id": trial.config_id, "replicate": trial.replicate}
    folder = f"{EXPERIMENTS}/{trial.name}"
    return [ids | point_row(trial.name, trial.status, folder, point, trial.values) for point in trial.points]


def crash_of(trial: Trial) -> str:
    """Why Ray gave a trial up, in a line."""
    if trial.error_file and Path(trial.error_file).is_file():
        lines = [line for line in Path(trial.error_file).read_text().splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return "unknown error"


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One more line of a csv, after what is whole of it; none where its last line is of the same epoch or a later."""

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            stream.seek(0)
            whole, end, torn = stream.read().rpartition(b"\n")
            if torn:
                stream.truncate(len(whole) + len(end))
            rows = list(csv.DictReader(io.StringIO(whole.decode())))
            if rows and int(rows[-1]["epochs"]) >= row["epochs"]:  # trained again after a kill
                return
            text = io.StringIO()
            writer = csv.DictWriter(text, list(row), lineterminator="\n")
            if not end:
                writer.writeheader()
            writer.writerow(row)
            stream.write(text.getvalue().encode())

    patiently(write, _LOG.warning)
