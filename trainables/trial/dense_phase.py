"""Dense parents: trials that differ only in pruning share one dense training, which is done once.

    for record in run_shared(trial, study / "parents"): ...      # as run_trial(trial), record for record, bit for bit

A parent is a folder named by the hash of all that shapes the dense stage. After each of its epochs one of the trials
that want it leaves there, in one atomic write,

    <parents>/<key>/state-0003/      that trial's state after epoch 3 (`Trial.save`), sealed with the records so far

and the others take the record from it. A trial trains an epoch under the parent's lock, for no longer than that epoch:
the operating system releases it when the process dies, and whoever comes next goes on from the newest whole state. So
no trial ever waits for one that is paused or has ended. The weights are taken over at the end of the stage only;
until then a trial that has taken records stands `in_parent`.

A trial that has its own weights and finds a parent that is behind (deleted, or of other code) trains on alone. The
folder may be deleted when no study runs: all that is lost is work that is then done again.
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
KEPT = 2  # newest states: a damaged one falls back to the one before
# keys of a configuration that do not shape dense training, or whose content the key holds in their place
_FREE_PARTS = ("prune.", "data.", "teacher.")
_FREE = (
    *("limits.macs", "limits.bytes", "augment.dir_dir"),
    *("distill.teacher_ckpts", "distill.ensemble", "distill.teacher_weights"),
)


def run_shared(trial: Trial, parents: Path, code: str | None = None) -> Iterator[Record]:
    """Like `run_trial(trial)`, with the dense stage of the parent below `parents`, trained where nobody has yet.

    `code` tells the version of what is run (none: `code_hash()`). `seconds` of a record taken over are those of the
    trial that trained. A trial on a base has no dense stage, and one that adopted a state has a history of its own.
    """
    if trial.stage == 0 and not trial.start.from_base and trial.weights is not Weights.ADOPTED:
        yield from _dense_stage(trial, Parent(parents / parent_key(trial, code or code_hash())))
    yield from run_trial(trial)


def parent_key(trial: Trial, code: str) -> str:
    """Equal for trials whose dense stage is equal, bit for bit on one kind of device."""
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
    """One trial's view of a parent's folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = folder / "lock"
        self.records: list[dict[str, Any]] = []  # of the newest whole state, when last looked at
        self.state: Path | None = None  # that state
        self._looked_at = ""  # name of the newest state then
        make_folder(folder)

    def look(self) -> int:
        """Epochs that can be taken over. Cheap: only a new state is read."""
        newest = self._states()[:1]
        if newest and newest[0].name != self._looked_at:
            self.read()
        return len(self.records)

    def read(self) -> int:
        """As `look`, of what is whole on disk at this moment."""
        states = self._states()
        self._looked_at = states[0].name if states else ""
        self.state, self.records = None, []
        for state in states:
            try:
                self.state, self.records = state, check_seal(state)["records"]
                break
            except SealError:  # damaged, or just being removed: an older one may be whole
                continue
        return len(self.records)

    def publish(self, trial: Trial, record: Record) -> None:
        """Leave the state after `record` here; for who holds the lock, and whose state follows `self.records`."""
        records = [*self.records, asdict(record)]
        state = self.folder / f"state-{record.epochs:04d}"

        def write(temporary: Path) -> None:
            trial.save(temporary)
            seal(temporary, records=records)

        remove_temporary(self.folder, "state-")  # of killed processes: we hold the lock
        replace_folder(state, write)
        self.state, self.records, self._looked_at = state, records, state.name
        for old in self._states()[KEPT:]:
            shutil.rmtree(old)

    def take_over(self, trial: Trial) -> None:
        """Bring `trial` to where the newest whole state stands; for who holds the lock and has just read it."""
        assert self.state is not None
        sizes = trial.sizes  # of its own prune steps
        trial.load(self.state, adopt=_free_keys(trial))
        trial.sizes, trial.weights = sizes, Weights.OWN

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*"), key=lambda state: (len(state.name), state.name), reverse=True)


def _dense_stage(trial: Trial, parent: Parent) -> Iterator[Record]:
    """The records of stage 0 that are left; ends early where the trial has to go on alone."""
    n_epochs = trial.stage_epochs(0)
    holds = 0 if not trial.epochs else None  # the parent's epoch whose state `trial` has in memory
    while trial.stage == 0:
        wanted = trial.epoch + 1
        if parent.look() < wanted or wanted == n_epochs:
            try:
                with locked(parent.lock, wait=False):
                    known = parent.read()  # while nobody else writes
                    if known < trial.epoch and trial.weights is not Weights.SHARED:
                        return
                    if known < wanted:
                        record = _train(trial, parent, wanted, has_state=holds == known)
                        holds = wanted
                    else:
                        record, holds = _take(trial, parent, wanted, n_epochs), None
            except BlockingIOError:  # another trains this epoch
                time.sleep(POLL_S)
                continue
        else:
            record, holds = _take(trial, parent, wanted, n_epochs), None
        yield record


def _train(trial: Trial, parent: Parent, wanted: int, has_state: bool) -> Record:
    """Train and publish the epochs up to `wanted`; more than one where the newest state has got lost."""
    if not has_state and parent.state:
        parent.take_over(trial)
    elif not has_state:
        trial.begin_again()
    while True:
        record = next(run_trial(trial))
        parent.publish(trial, record)
        if record.epochs == wanted:
            return record


def _take(trial: Trial, parent: Parent, wanted: int, n_epochs: int) -> Record:
    """Stand where `wanted` was trained: after the last epoch with weights and point, before it by number alone."""
    if trial.epochs == 0:
        start_stage(trial)
    values = parent.records[wanted - 1]
    if wanted < n_epochs:
        trial.epoch = trial.epochs = wanted
        trial.weights, trial.optimizer, trial.average = Weights.SHARED, None, None
        return Record(**values)
    parent.take_over(trial)
    point = Point(**values["point"])
    point = replace(point, feasible=trial.config.limits.allow(point.macs, point.params))
    trial.points = []
    trial.stage = 0
    trial.end_stage(point, deploy(trial.network, trial.config.limits.precision))
    return Record(**values | {"point": point, "finished": trial.stage == trial.n_stages})
