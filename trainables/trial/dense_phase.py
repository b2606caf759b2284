"""Shared dense phases: trials that differ only in pruning train their common dense phase once.

    for record in run_shared(trial, study / "parents"): ...      # the same records as run_trial(trial), bit for bit

The shared dense phase is called the parent. It is a folder, named by the hash of everything that determines its
result. After each epoch, the trial that trained it writes its state there, atomically:

    <parents>/<key>/state-0003/      that trial's state after epoch 3 (`Trial.save`), sealed with the records so far

The other trials read the record of the epoch from this state. A trial holds the parent's lock while it trains one
epoch, and no longer. The operating system releases the lock when the process dies; the next trial continues from the
newest valid state. So no trial waits for one that is paused or has ended. A trial loads the weights only at the end of
the stage; while it has only read records, its `weights` are `Weights.SHARED`.

A trial that has its own weights continues alone if the parent is behind it (deleted, or written by other code). The
folder may be deleted when no study is running; the only loss is that the epochs are trained again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from data.files import SealError, check_seal, locked, make_folder, remove_temporary, replace_folder, seal
from trainables.engine.deployment import deploy
from trainables.inputs.code import code_hash
from trainables.outputs.records import Point, Record
from trainables.teachers.logits import folder_hash
from trainables.trial.stages import run_trial, start_stage
from trainables.trial.start import Weights
from trainables.trial.trial import Trial

POLL_S = 0.1
KEPT = 2  # number of newest states kept: if one is damaged, the one before it is used
# configuration keys that do not affect dense training, or whose content is hashed in their place
_FREE_PARTS = ("prune.", "data.", "teacher.")
_FREE = (
    *("limits.macs", "limits.bytes", "augment.dir_dir"),
    *("distill.teacher_ckpts", "distill.ensemble", "distill.teacher_weights"),
)


def run_shared(trial: Trial, parents: Path, code: str | None = None) -> Iterator[Record]:
    """Yield the records of `run_trial(trial)`, with the dense phase shared through a folder in `parents`.

    Epochs that no trial has trained yet are trained here. `code` is the version of the running code (None:
    `code_hash()`). `seconds` of a shared record is the time of the trial that trained the epoch. The dense phase is
    not shared by a trial that prunes a given base (it has none), nor by one that adopted another trial's state.
    """
    if trial.stage == 0 and not trial.start.from_base and trial.weights is not Weights.ADOPTED:
        yield from _dense_stage(trial, Parent(parents / parent_key(trial, code or code_hash())))
    yield from run_trial(trial)


def parent_key(trial: Trial, code: str) -> str:
    """Return a key that is equal for trials with equal dense phases (bit for bit on one kind of device)."""
    data = trial.data
    shaping: dict[str, Any] = {k: v for k, v in trial.config.flat().items() if k not in _free_keys(trial)}
    shaping |= {"code": code, "torch": torch.__version__, "device": trial.device.type, "clips": trial.clips_hash}
    shaping["widths"] = asdict(trial.start.widths) if trial.start.widths else None
    shaping["impulses"] = _tensor_hash(trial.impulses)
    shaping["teacher"] = _tensor_hash(data.train.teacher)
    if data.online:
        folders = [folder_hash(Path(teacher)) for teacher in trial.config.distill.teacher_ckpts]
        shaping["online"] = [folders, data.online.method, list(data.online.weights)]
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:16]


def _free_keys(trial: Trial) -> list[str]:
    return [k for k in trial.config.flat() if k.startswith(_FREE_PARTS) or k in _FREE]


def _tensor_hash(x: torch.Tensor | None) -> str | None:
    if x is None:
        return None
    x = x.cpu().contiguous()
    return hashlib.sha256(f"{x.dtype} {list(x.shape)}".encode() + x.numpy().tobytes()).hexdigest()


class Parent:
    """The folder of a shared dense phase, as one trial reads and writes it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = folder / "lock"
        self.records: list[dict[str, Any]] = []  # records of the newest valid state when the folder was last read
        self.state: Path | None = None  # folder of that state; None: there was none
        self._newest_read = ""  # name of the newest state, valid or not, when the folder was last read
        make_folder(folder)

    def refresh(self) -> int:
        """Return the number of epochs in the folder. This is cheap: files are read only if there is a new state."""
        newest = self._states()[:1]
        if newest and newest[0].name != self._newest_read:
            self.read()
        return len(self.records)

    def read(self) -> int:
        """Read the newest valid state in the folder and return the number of epochs that it has records of."""
        states = self._states()
        self._newest_read = states[0].name if states else ""
        self.state, self.records = None, []
        for state in states:
            try:
                self.state, self.records = state, check_seal(state)["records"]
                break
            except SealError:  # damaged, or just being removed: an older state may be valid
                continue
        return len(self.records)

    def publish(self, trial: Trial, record: Record) -> None:
        """Write the state of `trial`, which has just trained the epoch of `record`, to the folder.

        The caller must hold the lock, and `record` must be of the epoch after the last one in `self.records`.
        """
        records = [*self.records, asdict(record)]
        state = self.folder / f"state-{record.epochs:04d}"

        def write(temporary: Path) -> None:
            trial.save(temporary)
            seal(temporary, records=records)

        remove_temporary(self.folder, "state-")  # left by killed processes; no other is writing: we hold the lock
        replace_folder(state, write)
        self.state, self.records, self._newest_read = state, records, state.name
        for old in self._states()[KEPT:]:
            shutil.rmtree(old)

    def take_over(self, trial: Trial) -> None:
        """Load the newest valid state into `trial`. The caller must hold the lock and have called `read` since."""
        assert self.state is not None
        sizes = trial.sizes  # sizes of this trial's own prune steps
        trial.load(self.state, adopt=_free_keys(trial))
        trial.sizes, trial.weights = sizes, Weights.OWN

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*"), key=lambda state: (len(state.name), state.name), reverse=True)


def _dense_stage(trial: Trial, parent: Parent) -> Iterator[Record]:
    """Yield the remaining records of stage 0; stop early if the trial has to continue alone."""
    n_epochs = trial.stage_epochs(0)
    loaded = 0 if not trial.epochs else None  # epoch of the parent whose state `trial` has in memory; None: of no epoch
    while trial.stage == 0:
        epoch = trial.epoch + 1
        if parent.refresh() < epoch or epoch == n_epochs:
            try:
                with locked(parent.lock, wait=False):
                    published = parent.read()  # no other trial writes now
                    if published < trial.epoch and trial.weights is not Weights.SHARED:
                        return
                    if published < epoch:
                        record = _train(trial, parent, epoch, has_state=loaded == published)
                        loaded = epoch
                    else:
                        record, loaded = _take_record(trial, parent, epoch, n_epochs), None
            except BlockingIOError:  # another trial trains this epoch
                time.sleep(POLL_S)
                continue
        else:
            record, loaded = _take_record(trial, parent, epoch, n_epochs), None
        yield record


def _train(trial: Trial, parent: Parent, epoch: int, has_state: bool) -> Record:
    """Train and publish the epochs up to `epoch`: more than one if the newest state has been lost.

    `has_state` tells that `trial` has the newest state of `parent` in memory already. The caller must hold the lock.
    """
    if not has_state and parent.state:
        parent.take_over(trial)
    elif not has_state:
        trial.reset()
    while True:
        record = next(run_trial(trial))
        parent.publish(trial, record)
        if record.epochs == epoch:
            return record


def _take_record(trial: Trial, parent: Parent, epoch: int, n_epochs: int) -> Record:
    """Advance the trial to `epoch`, which another trial has trained, and return the record of this epoch.

    In the last epoch of the stage, the trial also loads the parent's weights and gets its point; before, only the
    position changes.
    """
    if trial.epochs == 0:
        start_stage(trial)
    values = parent.records[epoch - 1]
    if epoch < n_epochs:
        trial.epoch = trial.epochs = epoch
        trial.weights, trial.optimizer, trial.average = Weights.SHARED, None, None
        return Record(**values)
    parent.take_over(trial)
    point = Point(**values["point"])
    point = replace(point, feasible=trial.config.limits.allow(point.macs, point.params))
    trial.points = []
    trial.stage = 0
    trial.end_stage(point, deploy(trial.network, trial.config.limits.precision))
    return Record(**values | {"point": point, "finished": trial.stage == trial.n_stages})
