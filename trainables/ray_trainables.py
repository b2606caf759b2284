"""The two Ray Trainables: they run `trial.stages.run_trial`, one epoch per step.

A Ray config is the flat TrialConfig plus these keys, which are not part of it:

    trial        name of the trial
    study_dir    folder of the study
    remote       instead of study_dir, the URI of a study in an object store: deployed networks are copied there
    checkpoints  path or URI of the folder of all drivers' checkpoints
    parents      folder of shared dense phases; without it, each trial trains its own
    generation   number of the driver's lease on a study in an object store; a worker of a driver that lost its lease
                 writes no network
    adopt        keys in which a checkpoint may differ from the trial's configuration (population based training)
    fingerprint  fingerprint of the driver's data (`DataFingerprint.as_dict`): actors compare it with that of the data
                 they load, and open the waveform cache without reading each file
    code         `code_hash()` of the driver: an actor that runs other code refuses to train

A trial continues from its newest valid checkpoint, on any machine and with any driver. Actors are reused:
`reset_config` starts a new trial. It keeps only the read-only clips of the last trial, if the new one uses the same.
"""

import gc
import logging
import shutil
import tempfile
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.tune as rt
import torch
from pyarrow.fs import FileType

from ascmodels.checkpoint import load_tensors
from ascmodels.compress.groups import PruningError
from data.files import SealError, check_seal, seal
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.loop import TrainingDiverged
from trainables.inputs.code import check_code
from trainables.inputs.fingerprint import DataFingerprint
from trainables.outputs.records import EXPERIMENTS, Record, point_dict
from trainables.outputs.storage import KEPT, Store, TrialCheckpoints
from trainables.outputs.tracking import Tracker
from trainables.trial.data import TrialData, data_key, load_trial_data
from trainables.trial.dense_phase import run_shared
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial

RESERVED = ("trial", "study_dir", "remote", "checkpoints", "parents", "adopt", "fingerprint", "code", "generation")
_LOG = logging.getLogger(__name__)


class KDTrainable(rt.Trainable):
    """Train a dense student by knowledge distillation."""

    prunes = False

    def setup(self, config: dict[str, Any]) -> None:
        self._data: tuple[str, TrialData] | None = None
        self._tracker: Tracker | None = None
        self._broken: Exception | None = None
        self._private: Path | None = None  # local folder of this actor, for studies in an object store
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        try:
            self._end()
            self._begin(new_config)
        except Exception as error:  # raised at the first step: Ray retries it there, but not here
            self._broken = error
        return True

    def __repr__(self) -> str:
        """Return the study and the trial, for Ray's list of actors (which keeps the name of the first trial)."""
        return getattr(self, "_label", type(self).__name__)

    def step(self) -> dict[str, Any]:
        if self._broken:
            raise self._broken
        try:
            record = next(self._records, None)
        except (TrainingDiverged, PruningError) as error:  # deterministic: a result, no retry
            return self._failed(str(error))
        except torch.OutOfMemoryError as error:
            return self._failed(f"out of GPU memory: {str(error).splitlines()[0]}")
        if record is None:  # restored after its last epoch
            return self._reported(self._last | {"done": True, "trained": False})
        self._last = self._result(record)
        self._curve.append({k: v for k, v in asdict(record).items() if k not in ("point", "finished")})
        if self._tracker:
            self._track(record)
        if record.point and self._store:
            if self._generation and self._store.generation() > self._generation:
                raise RuntimeError(f"a newer driver has taken over the study in {self._store.uri}: this worker stops")
            name = f"{EXPERIMENTS}/{self._trial.folder.name}/{record.point.checkpoint}"
            self._store.push(self._trial.folder / record.point.checkpoint, name)
        return self._reported(self._last)

    def _reported(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return `result`; after a restore, the first one also has the number of epochs and the learning curve so far.

        The driver needs the curve, because an earlier driver that was killed may not have written its last epochs.
        """
        restored, self._restored_epochs = self._restored_epochs, None
        return result if restored is None else result | {"restored_epochs": restored, "curve": list(self._curve)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        folder = Path(checkpoint_dir)
        self._trial.save(folder)
        torch.save(self._last | {"curve": self._curve}, folder / "result.pt")
        seal(folder)
        if self._checkpoints:
            self._checkpoints.clear(KEPT - 1)  # Ray then moves this checkpoint there, too

    def restore(self, checkpoint_path: Any) -> None:
        """Restore the checkpoint that Ray chose; if it no longer exists, load this trial's newest checkpoint.

        Ray itself would fail the trial. In population based training, the chosen checkpoint belongs to another trial,
        which may have trained on and removed it.
        """
        if self._broken:
            raise self._broken
        checkpoint = checkpoint_path.checkpoint
        if checkpoint.filesystem.get_file_info(checkpoint.path).type == FileType.NotFound:
            _LOG.warning(
                "%s: checkpoint %s does not exist any more; loading the newest valid checkpoint of this trial",
                self._trial.folder.name,
                checkpoint.path,
            )
            self._load_newest()
        else:
            super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load the checkpoint that Ray chose: the newest it knows, or one to adopt (population based training).

        If it is damaged, load the newest valid one instead.
        """
        try:
            check_seal(Path(checkpoint))
            self._load(Path(checkpoint))
        except SealError as error:
            _LOG.warning("%s: %s; loading the newest valid checkpoint of this trial", self._trial.folder.name, error)
            self._load_newest()

    def cleanup(self) -> None:
        if not self._broken:
            self._end()
        if self._private:
            shutil.rmtree(self._private, ignore_errors=True)

    def _begin(self, config: dict[str, Any]) -> None:
        check_code(config.get("code"))
        values = {k: v for k, v in config.items() if k not in RESERVED}
        trial_config = TrialConfig.from_flat(values)
        if trial_config.prune.rounds and not self.prunes:
            raise ConfigError(
                f"prune.* defines {trial_config.prune.rounds} prune steps, but {type(self).__name__} expects 0; "
                "pruning needs PruneTrainable: use it, or remove these keys"
            )
        key = data_key(trial_config)
        if self._data is None or self._data[0] != key:
            given = config.get("fingerprint")
            known = DataFingerprint.from_dict(given) if given else None
            self._data = (key, load_trial_data(trial_config, known=known))
        name, remote = config.get("trial", "trial"), config.get("remote")
        if remote:
            # readable by this user only; the name is new, so a link planted by another user is never followed
            self._private = self._private or Path(tempfile.mkdtemp(prefix="asc-tune-"))
            study_dir = self._private / remote.rpartition("/")[2]
        else:
            study_dir = Path(config.get("study_dir") or tempfile.mkdtemp(prefix="asc-tune-"))
        self._adopt = config.get("adopt") or ()
        self._parents = Path(config["parents"]) if config.get("parents") else None
        self._store = Store(remote) if remote else None
        self._generation: int | None = config.get("generation")
        root = config.get("checkpoints")
        self._checkpoints = TrialCheckpoints(root, name) if root else None
        self._last: dict[str, Any] = {}
        self._curve: list[dict[str, Any]] = []  # the records so far, without points
        self._restored_epochs: int | None = None  # epochs of the restored checkpoint, until a result has reported them
        self._label = f"{study_dir.name}/{name}"
        self._new_trial = lambda: Trial(trial_config, self._data[1], study_dir / EXPERIMENTS / name)  # type: ignore[index]
        self._load_newest()
        self._tracker = Tracker(study_dir, f"{study_dir.name}-{name}", name, study_dir.name, values)

    def _start(self) -> None:
        self._trial, self._curve = self._new_trial(), []
        records = run_shared(self._trial, self._parents) if self._parents else run_trial(self._trial)
        self._records: Generator[Record, None, None] = records  # type: ignore[assignment]

    def _load_newest(self) -> None:
        found = self._checkpoints and self._checkpoints.load_newest(self._load, _LOG.warning)
        if not found:  # start a new trial: loading a damaged checkpoint may have changed parts of the current one
            self._start()

    def _load(self, folder: Path) -> bool:
        self._start()
        self._trial.load(folder, adopt=self._adopt)
        self._last = load_tensors(folder / "result.pt")
        self._curve = self._last.pop("curve", [])  # checkpoints of earlier versions have no curve
        self._restored_epochs = self._trial.epochs
        return True

    def _end(self) -> None:
        if self._tracker:
            self._tracker.finish()
            if self._store:
                for path in self._tracker.files():
                    self._store.push(path, f"wandb/{path.name}")
        self._tracker = None
        self._records.close()
        if self._checkpoints:
            self._checkpoints.clear(KEPT if self._adopt else 1)  # another trial may be about to adopt one
        del self._trial, self._records, self._new_trial
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _failed(self, reason: str) -> dict[str, Any]:
        return self._reported(self._last | {"done": True, "finished": False, "failure": reason})

    def _result(self, record: Record) -> dict[str, Any]:
        values = {k: v for k, v in asdict(record).items() if k != "point"}
        points = [point_dict(p) for p in self._trial.points]
        return values | {"points": points, "training_iteration": record.epochs, "done": record.finished}

    def _track(self, record: Record) -> None:
        assert self._tracker is not None
        self._tracker.log({k: v for k, v in self._last.items() if k not in ("points", "done")}, record.epochs)
        if record.point:
            flat = point_dict(record.point)
            self._tracker.summary({f"step{record.point.step}/{k}": v for k, v in flat.items()})


class PruneTrainable(KDTrainable):
    """Train a dense student, then prune and retrain it step by step."""

    prunes = True
