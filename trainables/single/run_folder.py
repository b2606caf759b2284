"""The folder of a single run: its files, how to find it, its lock.

A single run trains without Ray; it was started by run_training.py (kind train) or progressive_prune.py (kind prune).
A run of kind prune also has base.ckpt/ (the student to prune), prune_steps.csv, and a folder for each control run.

<storage>/experiments/<id>/     one folder per run; <id> is also the id of the W&B run
  info.json                       kind (train or prune), status, command, configuration, versions, sizes, metrics
  results.csv                     one row per epoch: the learning curves of training and validation
  points.csv                      one row per measured network
  step0/ step1/ ...               the deployed network (branches fused) before pruning, after prune step 1, ...
  last.ckpt/                      the last network in its training form (with branches), which can be pruned
  state/                          the state from which a killed run continues
"""

import importlib.metadata
import logging
import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.files import locked, make_folder, read_json
from data.untrusted import linked_out, printable
from trainables.config.schema import TrialConfig
from trainables.outputs.records import EXPERIMENTS, now, write_info

LAST = "last.ckpt"
_LOG = logging.getLogger(__name__)


class RunError(RuntimeError):
    """A run cannot be started, found or continued, or an option of a command is invalid."""


class Run:
    """A single run (training without Ray): its `folder`, and the content of its info.json as the dict `info`."""

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
        """Return a new run in the folder `<storage>/experiments`; its id is `run_id`, or random if `run_id` is empty.

        `kind` is train or prune. `command` is the command line, which info.json records. The folder of the run is
        created later, by the first call of `update` or `lock`.
        """
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
        """Return the run with the id `run_id` in `<storage>/experiments`, or else the run in the folder `run_id`.

        Raise RunError if there is no such run, if its info.json is damaged, if a symbolic link leads out of its folder,
        or if the folder is a trial of a study.
        """
        runs = storage.expanduser().resolve() / EXPERIMENTS
        folder = runs / run_id
        if not (folder / "info.json").is_file():
            folder = Path(run_id).expanduser().resolve()
        check_links(folder, "info.json")
        try:
            run = Run(folder, read_json(folder / "info.json"))
        except FileNotFoundError as error:
            there = ", ".join(r.id for r in newest_runs(storage)[:8]) or "none yet"
            raise RunError(
                f"no run {run_id!r} in {runs}; expected a run's id (the newest: {there}) or the path of its folder: "
                "correct the id, or give the --storage with which the run was started"
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(f"no run can be read in {folder}: {error}, or start a new run") from error
        if "kind" not in run.info:
            raise RunError(
                f"{folder} is a trial of a study (no key 'kind' in its info.json); expected a run of run_training.py "
                "or progressive_prune.py: to measure the networks of a study, use python tune/evaluate.py"
            )
        return run

    def update(self, **figures: Any) -> None:
        """Add the entries `figures` to `info`, replacing entries of the same key, and write info.json."""
        self.info |= figures
        write_info(self.folder, self.info)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock in a `with` block, so that one process at a time writes to the run's folder.

        Raise RunError at once if another process holds the lock.
        """
        make_folder(self.folder)
        try:
            with locked(self.folder / ".lock", wait=False):
                yield
        except BlockingIOError as error:
            raise RunError(
                f"run {self.id} in {self.folder} is locked by another process; expected one process for each run: wait "
                "until that process ends"
            ) from error


def newest_runs(storage: Path, kind: str | None = None) -> list[Run]:
    """Return the runs of run_training.py and progressive_prune.py in `<storage>/experiments`, newest first.

    `kind` selects the runs of one kind (train or prune); None: all runs. A run whose info.json is damaged is left out,
    with a warning.
    """
    found = []
    for path in (storage.expanduser().resolve() / EXPERIMENTS).glob("*/info.json"):
        try:
            run = Run(path.parent, read_json(path))
        except (OSError, ValueError) as error:
            _LOG.warning("%s", printable(f"the run in {path.parent} is left out: {error}"))
            continue
        if "kind" in run.info and kind in (None, run.info["kind"]):  # a study's trials have no kind
            found.append(run)
    return sorted(found, key=lambda r: str(r.info.get("created")), reverse=True)


def find_checkpoint(storage: Path, name: str) -> Path:
    """Return the folder of the student checkpoint that the command-line argument `name` selects.

    The result depends on what `name` is:
    - the folder of a checkpoint: this folder
    - the id (in `storage`) or the folder of a run: the last network of this run, in training form
    - `last.ckpt`, if the working directory has no file or folder of this name: the last network of the newest finished
      run of run_training.py in `storage`, in training form

    Raise RunError if there is no such checkpoint, or if a symbolic link leads out of its run, trial or study.
    """
    path = Path(name).expanduser()
    if (path / "student.json").is_file():
        return checked_checkpoint(path)
    if path.name == LAST and not path.exists() and len(path.parts) == 1:
        runs = [r for r in newest_runs(storage, "train") if (r.folder / LAST).is_dir()]
        if not runs:
            raise RunError(
                f"there is no folder {LAST} in {Path.cwd()} and no finished training run in {storage / EXPERIMENTS}; "
                "expected one of the two: train a student with python trainables/run_training.py, or give the "
                "--storage with which one was trained"
            )
        return checked_checkpoint(runs[0].folder / LAST)
    folder = path if path.is_dir() else Run.find(storage, name).folder
    for candidate in (folder / LAST, folder):
        if (candidate / "student.json").is_file():
            return checked_checkpoint(candidate)
    raise RunError(
        f"{folder} has no student checkpoint; expected the file student.json or {LAST}/student.json in this folder: "
        "give a finished run, or the folder of a checkpoint"
    )


def checked_checkpoint(folder: Path) -> Path:
    """Return the path of the checkpoint `folder` without symbolic links.

    Raise RunError if a symbolic link leads out of the checkpoint or out of the run, trial or study that contains it.
    """
    folder = Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100 - `resolve` would follow links out of a study
    step, trial, _, study = (folder, *folder.parents, *3 * [folder])[:4]
    check_links(step, "student.json")
    check_links(trial, "info.json")
    check_links(study, "study.json")
    return folder.resolve()


def check_links(folder: Path, sign: str) -> None:
    """Raise RunError if a symbolic link leads out of `folder`; any folder is accepted that has no file named `sign`."""
    if (folder / sign).exists() and (problem := linked_out(folder)):
        raise RunError(problem)


def shown(path: Path) -> str:
    """Return `path` as text for a message: relative to the working directory if it is inside it, else unchanged."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
