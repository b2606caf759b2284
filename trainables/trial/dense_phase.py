"""Shared dense phases: trials that differ only in pruning train their dense phase (stage 0) only once.

Trials with the same dense phase share one folder, called their parent. Its name, the key, is a hash of everything that
determines the result of this phase. Each epoch is trained by one of these trials, which then saves its state in the
parent with an atomic rename:

    <parents>/<key>/state-0003/      state of that trial after epoch 3 (`Trial.save`), and the records of epochs 1 to 3

The other trials read the record of the epoch instead of training it. A trial locks the parent to train one epoch, and
unlocks it after the epoch. If the process of this trial dies, the operating system releases the lock, and another trial
continues from the newest valid state. So no trial waits for a trial that is paused or has ended. A trial that only
reads records has no weights (`Weights.SHARED`) until it loads those of the last epoch of the stage.

A trial that was restored from a checkpoint with weights may have more epochs than its parent, because the parent was
deleted, or because the code changed and with it the key. Such a trial trains the rest of the stage without its parent.
Parents may be deleted when no study is running: the next trials train their epochs again.
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

from ascmodels.checkpoint import CheckpointError
from data.files import locked, make_folder, remove_temporary, replace_folder
from data.seals import SealError, check_seal, seal
from trainables.engine.deployment import deploy
from trainables.inputs.code import code_hash
from trainables.outputs.records import Record
from trainables.outputs.restored import restored_record
from trainables.teachers.logits import folder_hash
from trainables.trial.stages import run_trial, start_stage
from trainables.trial.start import Weights
from trainables.trial.trial import Trial

POLL_S = 0.1  # seconds between two attempts to lock a parent
KEPT = 2  # number of newest states kept: if one is damaged, the one before it is used
# configuration keys that `parent_key` leaves out: dense training does not depend on them, or `parent_key` hashes what
# they refer to (clips, teacher logits, impulse responses)
_FREE_PARTS = ("prune.", "data.", "teacher.")
_FREE = (
    *("limits.macs", "limits.bytes", "augment.dir_dir"),
    *("distill.teacher_ckpts", "distill.ensemble", "distill.teacher_weights"),
)


def run_shared(trial: Trial, parents: Path, code: str | None = None) -> Iterator[Record]:
    """Train `trial` and yield its records like `run_trial`, but share its dense phase with other trials.

    `parents` is the folder that contains the shared dense phases. `trial` trains the dense epochs that no other trial
    has trained. The records of the other epochs are copied, with the `seconds` of the trial that trained them. `code`
    is a hash of the running code; None: `code_hash()`.

    Two kinds of trials share no dense phase: a trial that prunes a given student has no dense phase, and a trial that
    adopted the state of another trial (population based training) has weights of another configuration.
    """
    if trial.stage == 0 and not trial.start.from_base and trial.weights is not Weights.ADOPTED:
        yield from _dense_stage(trial, Parent(parents / parent_key(trial, code or code_hash())))
    yield from run_trial(trial)


def parent_key(trial: Trial, code: str) -> str:
    """Return a hash of everything that determines the result of the dense phase of `trial`.

    Trials with equal hashes get equal weights, bit for bit on the same kind of device. `code` is the hash of the code,
    which is a part of the hashed values.
    """
    data = trial.data
    shaping: dict[str, Any] = {k: v for k, v in trial.config.flat().items() if k not in _free_keys(trial)}
    shaping |= {"code": code, "torch": torch.__version__, "device": trial.device.type, "clips": trial.clips_hash}
    widths = trial.start.first_widths
    shaping["widths"] = asdict(widths) if widths else None
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
    """One trial's view of a parent, the folder of its shared dense phase: the newest valid state, and its records.

    Each trial has its own `Parent` object; the folder is common to the trials. `state` and `records` are those of the
    last time that this trial read or wrote the folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = folder / "lock"
        self.records: list[dict[str, Any]] = []  # records of the newest valid state when the folder was last read
        self.state: Path | None = None  # folder of that state; None: there was none
        self._newest_read = ""  # name of the newest state, valid or not, when the folder was last read
        make_folder(folder)

    def refresh(self) -> int:
        """Call `read` if a new state was saved in the folder; return the number of epochs of the newest valid state.

        This may be called often: without a new state, no file is opened.
        """
        newest = self._states()[:1]
        if newest and newest[0].name != self._newest_read:
            self.read()
        return len(self.records)

    def read(self) -> int:
        """Set `state` to the newest valid state and `records` to its records; return the number of its epochs.

        A state is a folder such as state-0003. It is valid if its seal.json is valid (`check_seal`) and contains one
        record for each epoch. Without a valid state, `state` is None, `records` is empty, and the number is 0.
        """
        states = self._states()
        self._newest_read = states[0].name if states else ""
        self.state, self.records = None, []
        for state in states:
            try:
                records: Any = check_seal(state).get("records")
            except SealError:  # damaged, or removed at this moment: try the next older state
                continue
            if _are_records(records, state.name):
                self.state, self.records = state, records
                break
        return len(self.records)

    def publish(self, trial: Trial, record: Record) -> None:
        """Save the state and the records of `trial` in the folder, so that other trials can use its last epoch.

        `record` is the record of this epoch, which `trial` has just trained. It must be the epoch after the last one in
        `self.records`. The caller must hold the lock of this folder (`self.lock`).
        """
        records = [*self.records, asdict(record)]
        state = self.folder / f"state-{record.epochs:04d}"

        def write(temporary: Path) -> None:
            trial.save(temporary)
            seal(temporary, records=records)

        remove_temporary(self.folder, "state-")  # of killed processes: the lock excludes live ones
        replace_folder(state, write)
        self.state, self.records, self._newest_read = state, records, state.name
        for old in self._states()[KEPT:]:
            shutil.rmtree(old)

    def take_over(self, trial: Trial) -> None:
        """Load the newest valid state of this shared dense phase into `trial`, which then continues from it.

        Afterwards, `trial` has the weights itself, so `trial.weights` is `Weights.OWN`. The caller must hold
        `self.lock`, and must have called `read` since it acquired this lock.
        """
        assert self.state is not None
        sizes = trial.sizes  # sizes of this trial's own prune steps
        trial.load(self.state, adopt=_free_keys(trial))
        trial.sizes, trial.weights = sizes, Weights.OWN

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*"), key=lambda state: (len(state.name), state.name), reverse=True)


def _are_records(found: Any, state: str) -> bool:
    """Return whether `found`, read from the folder named `state`, is a list with one valid record for each epoch.

    The epochs are those from 1 to the number in the name, e.g. 1 to 3 for state-0003.
    """
    try:
        records = [restored_record(record) for record in found]
    except (LookupError, TypeError, ValueError):
        return False
    return f"state-{len(records):04d}" == state and [r.epochs for r in records] == list(range(1, len(records) + 1))


def _dense_stage(trial: Trial, parent: Parent) -> Iterator[Record]:
    """Yield the records of the remaining epochs of stage 0 of `trial`; `parent` is its shared dense phase.

    `trial` trains the epochs that are not saved in `parent`, and copies the records of the others. If `trial` was
    restored from a checkpoint with weights and has trained more epochs than `parent` has saved, nothing can be shared:
    return before the end of the stage. The caller must then train the rest with `run_trial`.
    """
    n_epochs = trial.stage_epochs(0)
    loaded = 0 if not trial.epochs else None  # epoch of the parent's state that `trial` has in memory; None: none
    while trial.stage == 0:
        epoch = trial.epoch + 1
        if parent.refresh() < epoch or epoch == n_epochs:
            try:
                with locked(parent.lock, wait=False):
                    published = parent.read()  # again, now that the lock excludes other writers
                    if published < trial.epoch and trial.weights is not Weights.SHARED:
                        return
                    if published < epoch:
                        record = _train(trial, parent, epoch, has_state=loaded == published)
                        loaded = epoch
                    else:
                        record, loaded = _take_record(trial, parent, epoch, n_epochs), None
            except BlockingIOError:  # another trial holds the lock, because it trains this epoch
                time.sleep(POLL_S)
                continue
        else:
            record, loaded = _take_record(trial, parent, epoch, n_epochs), None
        yield record


def _train(trial: Trial, parent: Parent, epoch: int, has_state: bool) -> Record:
    """Train `trial` to `epoch` from the newest valid state in `parent`, its shared dense phase.

    Return the record of `epoch`. Each trained epoch is saved in `parent`. Usually it is only one; it is several if the
    newest states of `parent` were lost. `has_state` is True if `trial` has the newest valid state in memory, so that
    the state need not be loaded. The caller must hold `parent.lock`.
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
    """Advance `trial` to `epoch`, which another trial trained and saved in `parent`; return the record of `epoch`.

    Before epoch `n_epochs`, the last one of the stage, `trial` loads no weights. At the last epoch, `trial` loads the
    weights from `parent`, saves the deployed network, and stores the point of this network in `trial.points`.
    """
    if trial.epochs == 0:
        start_stage(trial)
    record = restored_record(parent.records[epoch - 1])
    if epoch < n_epochs:
        trial.epoch = trial.epochs = epoch
        trial.weights, trial.optimizer, trial.average = Weights.SHARED, None, None
        return record
    if record.point is None:
        raise CheckpointError(
            f"{parent.state} has no measured network of epoch {epoch}, the last one of the dense stage; expected one: "
            f"delete {parent.folder}, then the dense stage is trained again"
        )
    parent.take_over(trial)
    point = replace(record.point, feasible=trial.config.limits.allow(record.point.macs, record.point.params))
    trial.points = []
    trial.stage = 0
    trial.end_stage(point, deploy(trial.network, trial.config.limits.precision))
    return replace(record, point=point, finished=trial.stage == trial.n_stages)
