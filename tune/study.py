"""A study's folder: its manifest, its lock, and the callback that writes every trial down as results arrive.

<study>/study.json            what was asked, on what data, by which code; status and counts
<study>/points.csv            one row a measured network
<study>/experiments/<trial>/  info.json and step0/, step1/ ...: the deployed networks
<study>/ray/                  Ray's own files: snapshots, checkpoints, result.json and progress.csv of each trial
"""

import json
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray.tune as rt
from ray.tune.experiment import Trial
from rich.console import Console
from rich.markup import escape

from analysis.front import pareto_mask
from ascmodels.checkpoint import replace_folder, replace_text
from data.files import locked
from trainables.ray_trainables import RESERVED
from trainables.records import EXPERIMENTS, FIGURES, point_row, write_info, write_rows
from tune.search import OBJECTIVES, read_searcher

KEPT = "ray-snapshot"  # folder of a study: the last of Ray's snapshots that was whole


class StudyError(RuntimeError):
    """A study that cannot be started, found or continued."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """`study.json` of a study's folder; StudyError when there is none or it is damaged."""
    try:
        return json.loads((folder / "study.json").read_text())
    except FileNotFoundError as error:
        raise StudyError(f"no study in {folder}: study.json is missing") from error
    except json.JSONDecodeError as error:
        raise StudyError(f"{folder / 'study.json'} is damaged: {error}") from error


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    replace_text(folder / "study.json", json.dumps(manifest, indent=1))


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a study, whose folder need not exist yet; StudyError when another driver runs it."""
    try:
        with locked(folder.with_name(f".{folder.name}.lock"), wait=False):
            yield
    except BlockingIOError as error:
        raise StudyError(f"the study in {folder} is being run by another process; wait for it or stop it") from error


def status_of(trial: Trial, result: dict[str, Any], ended: bool = False) -> str:
    """complete, stopped early, failed or running, from a trial's latest result and what Ray knows of it."""
    if trial.status == Trial.ERROR or "failure" in result:
        return "failed"
    if result.get("finished"):
        return "complete"
    return "stopped early" if ended or trial.status == Trial.TERMINATED else "running"


def failure_of(trial: Trial, result: dict[str, Any]) -> str | None:
    """Why a trial failed, in a line."""
    if "failure" in result:
        return result["failure"]
    if trial.status == Trial.ERROR and trial.error_file and Path(trial.error_file).is_file():
        lines = [line for line in Path(trial.error_file).read_text().splitlines() if line.strip()]
        return lines[-1] if lines else "unknown error"
    return None


def snapshot_files(results: Path) -> list[Path] | None:
    """Ray's newest snapshot in `results` - trials, search state, searcher - if all of it can be read, else None.

    Ray rewrites these files in place, so a kill can leave them empty or torn.
    """
    newest = max(results.glob("experiment_state-*.json"), default=None)
    if newest is None:
        return None
    session = newest.stem.removeprefix("experiment_state-")
    pickles = [results / f"search_gen_state-{session}.json", results / f"searcher-state-{session}.pkl"]
    try:
        json.loads(newest.read_text())
        for path in pickles:
            pickle.loads(path.read_bytes())
    except (OSError, ValueError, EOFError, pickle.UnpicklingError):
        return None
    return [newest, *pickles]


class _Changed(Exception):
    """Ray wrote the snapshot while it was being copied."""


def keep_snapshot(results: Path, kept: Path) -> None:
    """Copy the newest snapshot to `kept` (replaced whole) where it is new, whole and untouched by Ray meanwhile."""

    def stamps(files: list[Path]) -> dict[str, int]:
        return {f.name: f.stat().st_mtime_ns for f in files}

    files = snapshot_files(results)
    if files is None or (kept.is_dir() and stamps(list(kept.iterdir())) == stamps(files)):
        return
    before = stamps(files)

    def write(beside: Path) -> None:
        for file in files:
            shutil.copy2(file, beside)
        if stamps(files) != before or snapshot_files(beside) is None:
            raise _Changed

    with suppress(_Changed):  # the next step tries again
        replace_folder(kept, write)


def mend_snapshot(results: Path, kept: Path) -> bool:
    """Whether Ray can restore from `results`, after a snapshot that a kill tore was replaced by the kept copy."""
    while snapshot_files(results) is None:
        newest = max(results.glob("experiment_state-*.json"), default=None)
        if newest is None:
            return False
        session = newest.stem.removeprefix("experiment_state-")
        for torn in results.glob(f"*-{session}.*"):
            torn.unlink()
        for file in snapshot_files(kept) or []:
            shutil.copy2(file, results)
    return True


class StudyWriter(rt.Callback):
    """Writes points.csv and info.json whenever a trial measures a point or ends, and tells the terminal."""

    def __init__(self, folder: Path, parameters: list[str], num_samples: int, console: Console | None = None):
        self.folder, self.parameters, self.num_samples = folder, parameters, num_samples
        self.started = self._kept_at = 0.0
        self._console = console
        self._latest: dict[str, dict[str, Any]] = {}  # of this run: Ray updates last_result after its callbacks
        self._ended_before: int | None = None

    def __getstate__(self) -> dict[str, Any]:  # Ray pickles callbacks; a terminal cannot be
        return self.__dict__ | {"_console": None, "_latest": {}}

    def latest(self, trial: Trial) -> dict[str, Any]:
        return self._latest.get(trial.trial_id) or trial.last_result or {}

    def setup(self, *args, **info) -> None:
        self.started, self._ended_before = time.monotonic(), None  # of this run: a resumed study counts anew

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        if self._ended_before is None:
            self._ended_before = sum(t.is_finished() for t in trials)
        points, known = result.get("points", []), self.latest(trial).get("points", [])
        self._latest[trial.trial_id] = result
        if len(points) > len(known):
            self.write(trials, trial)
            self._tell_point(trials, trial, points[-1], ending=int(result["finished"]))

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self.write(trials, trial)
        result = self.latest(trial)
        status = status_of(trial, result, ended=True)
        if status != "complete":
            epochs = result.get("epochs", 0)
            reason = escape(f": {failure_of(trial, result)}") if status == "failed" else ""
            self._tell(trials, f"{trial.config['trial']} {status} after {epochs} epochs{reason}", ending=1)

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        self.write(trials, trial)
        self._tell(
            trials, f"[red]{trial.config['trial']} failed: {escape(str(failure_of(trial, self.latest(trial))))}[/red]"
        )

    def on_step_end(self, iteration, trials, **info) -> None:
        if time.monotonic() - self._kept_at > 1:
            self._kept_at = time.monotonic()
            keep_snapshot(self.folder / "ray", self.folder / KEPT)

    def on_experiment_end(self, trials, **info) -> None:
        self.write(trials, *trials)
        rejected = read_searcher(self.folder)["rejected"]
        counts = dict(Counter(status_of(t, self.latest(t)) for t in trials)) | {"rejected": sum(rejected.values())}
        write_manifest(self.folder, read_manifest(self.folder) | {"trials": counts, "rejected_reasons": rejected})

    def write(self, trials: list[Trial], *changed: Trial) -> None:
        """points.csv of all trials, info.json of the changed ones."""
        write_rows(
            self.folder / "points.csv", [row for t in trials for row in self._rows(t)], ["trial_id", *FIGURES, "status"]
        )
        for trial in changed:
            config = {k: v for k, v in trial.config.items() if k not in RESERVED}
            result = self.latest(trial)
            info = {
                "trial_id": trial.config["trial"],
                "ray_trial_id": trial.trial_id,
                "status": status_of(trial, result),
                "failure": failure_of(trial, result),
                "sampled": {k: config[k] for k in self.parameters},
                "points": result.get("points", []),
                "last_result": {k: v for k, v in result.items() if k not in ("points", "config")},
                "config": config,
            }
            write_info(self.folder / EXPERIMENTS / trial.config["trial"], info)

    def _rows(self, trial: Trial) -> list[dict[str, Any]]:
        name = trial.config["trial"]
        sampled = {k: trial.config[k] for k in self.parameters}
        result = self.latest(trial)
        points = result.get("points", [])
        return [point_row(name, status_of(trial, result), f"{EXPERIMENTS}/{name}", p, sampled) for p in points]

    def _tell_point(self, trials: list[Trial], trial: Trial, point: dict[str, Any], ending: int) -> None:
        mark = "" if point["feasible"] else " [yellow]over the limits[/yellow]"
        steps = len(trial.config["prune.ratios"]) or trial.config.get("prune.n_steps") or 0
        self._tell(
            trials,
            f"{trial.config['trial']} step {point['step']}/{steps}: {point['val_macro_avg_acc']:6.1%} validation, "
            f"{point['macs'] / 1e6:6.2f} M MACs, {point['params'] / 1e3:5.1f} k params{mark}",
            ending,
        )

    def _tell(self, trials: list[Trial], text: str, ending: int = 0) -> None:
        if self._console is None:
            self._console = Console()
        ended = ending + sum(t.is_finished() for t in trials)
        elapsed = time.monotonic() - self.started
        here = ended - (self._ended_before or 0)
        eta = f", about {elapsed / here * (self.num_samples - ended) / 60:.0f} min left" if here > 0 else ""
        self._console.print(
            f"[dim]{elapsed / 60:5.1f} min[/dim] {text} [dim]| {ended}/{self.num_samples} trials, "
            f"front {self._front_size(trials)}{eta}[/dim]",
            highlight=False,
            soft_wrap=True,
        )

    def _front_size(self, trials: list[Trial]) -> int:
        points = [p for t in trials for p in self.latest(t).get("points", []) if p["feasible"]]
        values = [[p[name] for name in OBJECTIVES] for p in points]
        return int(pareto_mask(values, list(OBJECTIVES.values())).sum()) if values else 0
