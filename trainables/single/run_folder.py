"""The folder of a single run: its files, how to find it, its lock.

<storage>/experiments/<id>/     one folder per run; <id> is also the id of the W&B run
  info.json                       kind, status, command, configuration, versions, figures
  results.csv                     one row per epoch: the learning curves of training and validation
  points.csv                      one row per measured network
  step0/ step1/ ...               deployed networks;  last.ckpt/ the training form, for pruning or more training
  state/                          the state from which a killed run continues
"""

import importlib.metadata
import json
import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.files import locked, make_folder
from trainables.config.schema import TrialConfig
from trainables.outputs.records import EXPERIMENTS, now, write_info

LAST = "last.ckpt"
INTERRUPTED = 130  # exit status after Ctrl-C, as in shells


class RunError(RuntimeError):
    """A run cannot be started, found or continued, or an option is invalid."""


class Run:
    """The folder of one run and its `info.json`, which is rewritten at each change."""

    def __init__(self, folder: Path, info: dict[str, Any]):
        self.folder, self.info = folder, info

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def config(self) -> TrialConfig:
        return TrialConfig.from_flat(self.info["config"])

    @staticmethod
    def new(storage: Path, kind: str, config: TrialConfig, command: Sequence[str], run_id: str = "") -> "Run":
        """Return a new run, with a random id if `run_id` is empty. Nothing is written before the first `update`."""
        folder = storage.expanduser().resolve() / EXPERIMENTS / (run_id or secrets.token_hex(4))
        return Run(
            folder,
            {
                "id": folder.name,
                "kind": kind,
                "status": "new",
                "created": now(),
                "command": shlex.join(command),
                "versions": {p: importlib.metadata.version(p) for p in ("torch", "torchaudio", "torch-pruning")},
                "config": config.flat(),
            },
        )

    @staticmethod
    def find(storage: Path, run_id: str) -> "Run":
        """Return the run with the id or the path `run_id`; RunError lists the existing runs if there is none."""
        runs = storage.expanduser().resolve() / EXPERIMENTS
        folder = runs / run_id
        if not (folder / "info.json").is_file():
            folder = Path(run_id).expanduser().resolve()
        try:
            run = Run(folder, json.loads((folder / "info.json").read_text()))
        except FileNotFoundError as error:
            there = ", ".join(r.id for r in newest_runs(storage)[:8]) or "none yet"
            raise RunError(
                f"no run {run_id!r} in {runs}; expected the path of a run's folder, or an id (newest first: {there}): "
                "correct it, or give the folder of the runs with --storage"
            ) from error
        except json.JSONDecodeError as error:
            raise RunError(
                f"{folder / 'info.json'} is damaged: {error}; expected JSON: restore the file, or start a new run"
            ) from error
        if "kind" not in run.info:
            raise RunError(
                f"{folder} is a trial of a study (no key 'kind' in its info.json); expected a run of run_training.py "
                "or progressive_prune.py: measure a study with tune/evaluate.py"
            )
        return run

    def update(self, **figures: Any) -> None:
        """Add `figures` to `info` and write info.json."""
        self.info |= figures
        write_info(self.folder, self.info)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this run; RunError if another process holds it."""
        make_folder(self.folder)
        try:
            with locked(self.folder / ".lock", wait=False):
                yield
        except BlockingIOError as error:
            raise RunError(
                f"run {self.id} is locked by another process, which uses {self.folder}: wait until that process ends"
            ) from error


def newest_runs(storage: Path, kind: str | None = None) -> list[Run]:
    """Return the runs of `storage`, newest first; if `kind` is given, only those of this kind."""
    found = [
        Run(path.parent, json.loads(path.read_text()))
        for path in (storage.expanduser().resolve() / EXPERIMENTS).glob("*/info.json")
    ]
    found = [r for r in found if "kind" in r.info and kind in (None, r.info["kind"])]  # a study's trials have no kind
    return sorted(found, key=lambda r: r.info["created"], reverse=True)


def find_checkpoint(storage: Path, name: str) -> Path:
    """Return the folder of a student checkpoint. `name` is a folder, a run's id, or `last.ckpt`.

    `last.ckpt` is the checkpoint of the newest finished training run.
    """
    path = Path(name).expanduser()
    if (path / "student.json").is_file():
        return path.resolve()
    if path.name == LAST and not path.exists() and len(path.parts) == 1:
        runs = [r for r in newest_runs(storage, "train") if (r.folder / LAST).is_dir()]
        if not runs:
            raise RunError(
                f"there is no folder {LAST} in {Path.cwd()} and no finished training run in {storage / EXPERIMENTS}; "
                "expected one of them: train a student with python trainables/run_training.py"
            )
        return runs[0].folder / LAST
    folder = path if path.is_dir() else Run.find(storage, name).folder
    for candidate in (folder / LAST, folder):
        if (candidate / "student.json").is_file():
            return candidate.resolve()
    raise RunError(
        f"{folder} has no student checkpoint; expected student.json or {LAST}/student.json in it: give a finished run "
        "or the folder of a checkpoint"
    )


def shown(path: Path) -> str:
    """Return a path as a user would type it: relative to the working directory if it is inside, else absolute."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
