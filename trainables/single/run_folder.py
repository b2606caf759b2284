"""What the single-run commands share: words to a configuration, a run's folder, progress, errors in one line.

<storage>/experiments/<id>/     one folder a run; <id> is the W&B run's id, too
  info.json                       kind, status, command, configuration, versions, figures
  results.csv                     one row an epoch: the learning curves of training and validation
  points.csv                      one row a measured network
  step0/ step1/ ...               deployed networks;  last.ckpt/ the training form, to go on with
  state/                          what a killed run goes on from
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
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


class RunError(RuntimeError):
    """A run that cannot be started, found or continued."""


class Run:
    """One run's folder and its `info.json`, which is written again at each change."""

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
        """A fresh folder; nothing is written before the first `update`."""
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
        """The run called `run_id`, or at that path; RunError lists those that are there."""
        runs = storage.expanduser().resolve() / EXPERIMENTS
        folder = runs / run_id
        if not (folder / "info.json").is_file():
            folder = Path(run_id).expanduser().resolve()
        try:
            run = Run(folder, json.loads((folder / "info.json").read_text()))
        except FileNotFoundError as error:
            there = ", ".join(r.id for r in newest_runs(storage)[:8]) or "none yet"
            raise RunError(f"no run {run_id!r} in {runs} (newest: {there})") from error
        except json.JSONDecodeError as error:
            raise RunError(f"{folder / 'info.json'} is damaged: {error}") from error
        if "kind" not in run.info:
            raise RunError(f"{folder} is a study's trial and no single run: tune/evaluate.py measures a study's front")
        return run

    def update(self, **figures: Any) -> None:
        self.info |= figures
        write_info(self.folder, self.info)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """RunError when another process works on this run."""
        make_folder(self.folder)
        try:
            with locked(self.folder / ".lock", wait=False):
                yield
        except BlockingIOError as error:
            raise RunError(f"another process works on run {self.id} ({self.folder})") from error


def newest_runs(storage: Path, kind: str | None = None) -> list[Run]:
    """Runs of `storage`, the newest first; of one `kind`, where it is given."""
    found = [
        Run(path.parent, json.loads(path.read_text()))
        for path in (storage.expanduser().resolve() / EXPERIMENTS).glob("*/info.json")
    ]
    found = [r for r in found if "kind" in r.info and kind in (None, r.info["kind"])]  # a study's trials have none
    return sorted(found, key=lambda r: r.info["created"], reverse=True)


def find_checkpoint(storage: Path, name: str) -> Path:
    """The student checkpoint `name`: a folder, a run's id, or `last.ckpt` for the newest training run's."""
    path = Path(name).expanduser()
    if (path / "student.json").is_file():
        return path.resolve()
    if path.name == LAST and not path.exists() and len(path.parts) == 1:
        runs = [r for r in newest_runs(storage, "train") if (r.folder / LAST).is_dir()]
        if not runs:
            raise RunError(
                f"no {LAST} here and no finished training run in {storage / EXPERIMENTS}: "
                "train one with python trainables/run_training.py"
            )
        return runs[0].folder / LAST
    folder = path if path.is_dir() else Run.find(storage, name).folder
    for candidate in (folder / LAST, folder):
        if (candidate / "student.json").is_file():
            return candidate.resolve()
    raise RunError(f"{folder} holds no student checkpoint ({LAST}/student.json)")


def shown(path: Path) -> str:
    """A path as a person would type it from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
