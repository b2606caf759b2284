"""The two Ray Trainables: KDTrainable (no pruning) and PruneTrainable. Each call of `step` trains one epoch of a trial.

The `config` of a Trainable is a flat TrialConfig (dotted key -> value) plus these keys.

    trial        name of the trial
    study_dir    folder of the study
    remote       URI of a study in an object store, instead of study_dir; deployed networks are copied to it
    checkpoints  path or URI of the folder with the checkpoints that all drivers of the study wrote
    checkpoint_interval  a checkpoint is saved after an epoch if a kill before the next one would otherwise lose more
                 than this number of seconds, and after the last epoch; 0 or missing: after each epoch
    widths       widths (`ascmodels.students.Widths` as dicts) of the network in each stage; without this key, they
                 follow from the pruning plan
    parents      folder of shared dense phases (trial/dense_phase.py); without this key, no dense phase is shared
    generation   number of the driver's lease on a study in an object store. If the newest lease has a higher number,
                 the worker stops before it copies a network.
    adopt        configuration keys in which a trial may differ from the checkpoint that it restores (population based
                 training)
    fingerprint  `DataFingerprint.as_dict` of the driver's data: an actor opens the waveform cache without hashing the
                 WAV files, and raises DatasetError if its clips differ from the fingerprint
    wandb        W&B mode of the study's runs; without this key, each actor chooses it
    code         `code_hash()` of the driver; an actor that runs other code raises ConfigError

A trial continues from its newest valid checkpoint, on any machine and with any driver. Ray reuses actors:
`reset_config` starts another trial in the same actor. The actor keeps its loaded data if the new trial needs the same.
"""

import gc
import logging
import shutil
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.tune as rt
import torch
from pyarrow.fs import FileType
from ray.tune.result import SHOULD_CHECKPOINT

from ascmodels.checkpoint import CheckpointError, load_tensors
from ascmodels.config.prune import PruningError
from ascmodels.students import Widths
from data.seals import SealError, check_seal, seal
from data.tau import DatasetError
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.device import out_of_memory
from trainables.engine.loop import TrainingDiverged
from trainables.inputs.code import check_code
from trainables.inputs.fingerprint import DataFingerprint
from trainables.outputs.records import EXPERIMENTS, Record, point_dict, study_label
from trainables.outputs.storage import KEPT, Store, TrialCheckpoints
from trainables.outputs.tracking import Tracker
from trainables.trial.data import TrialData, data_key, load_trial_data
from trainables.trial.dense_phase import run_shared
from trainables.trial.stages import run_trial
from trainables.trial.start import Start
from trainables.trial.trial import Trial

RESERVED = (
    *("trial", "study_dir", "remote", "checkpoints", "checkpoint_interval", "parents", "adopt", "fingerprint", "code"),
    *("generation", "wandb", "widths"),
)
# errors that are the same in a new process; a resume of the study, after their cause was removed, retries the trial
LASTING = (CheckpointError, ConfigError, DatasetError)
_LOG = logging.getLogger(__name__)


class KDTrainable(rt.Trainable):
    """Ray Trainable that trains a student without pruning, with distillation if the configuration uses a teacher."""

    prunes = False

    def setup(self, config: dict[str, Any]) -> None:
        self._data: tuple[str, TrialData] | None = None
        self._tracker: Tracker | None = None
        self._broken: Exception | None = None
        self._wandb: str | None = None  # W&B mode of this actor's newest run; None before the first
        self._private: Path | None = None  # local folder of this actor, for studies in an object store
        try:
            self._begin(config)
        except LASTING as error:
            self._broken = error

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        broken, self._broken = self._broken, None
        try:
            if not broken:
                self._end()
            self._begin(new_config)
        except Exception as error:  # raised later by `step`, because Ray retries only a failed step
            self._broken = error
        return True

    def __repr__(self) -> str:
        """Return `<study>/<trial>` for Ray's list of actors. For a reused actor, Ray shows the first trial only."""
        return getattr(self, "_label", type(self).__name__)

    def step(self) -> dict[str, Any]:
        if isinstance(self._broken, LASTING):
            return self._crashed(self._broken)
        if self._broken:
            raise self._broken
        began = time.monotonic()
        try:
            record = next(self._records, None)
        except LASTING as error:
            return self._crashed(error)
        except (TrainingDiverged, PruningError) as error:  # deterministic: no retry, the trial fails
            return self._failed(str(error))
        except torch.OutOfMemoryError as error:
            return self._failed(out_of_memory(error) or str(error))
        if record is None:  # restored after its last epoch
            return self._reported(self._last | {"done": True, "trained": False})
        self._last = self._result(record)
        self._epoch_s = time.monotonic() - began
        self._curve.append({k: v for k, v in asdict(record).items() if k not in ("point", "finished")})
        if self._tracker:
            self._track(record)
        if record.point and self._store:
            if self._generation and self._store.generation() > self._generation:
                raise RuntimeError(
                    f"a newer driver has taken over the study in {self._store.uri} (its lease has a higher number than "
                    f"{self._generation}, that of this worker's driver): this worker stops, the newer driver continues"
                )
            name = f"{EXPERIMENTS}/{self._trial.folder.name}/{record.point.checkpoint}"
            self._store.push(self._trial.folder / record.point.checkpoint, name)
        return self._reported(self._last)

    def _reported(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return `result` with the key `should_checkpoint`: whether Ray saves a checkpoint after this result.

        The first result after a restore also has the keys `restored_epochs` and `curve`. `restored_epochs` is the
        number of epochs in the restored checkpoint. `curve` is the learning curve from the first epoch (one dict for
        each epoch). The driver needs the curve, because an earlier driver may have been killed before it wrote the last
        epochs to disk.
        """
        unsaved_s = time.monotonic() - self._saved_at + self._epoch_s  # after the next epoch, if it takes as long
        due = "failure" not in result and (result["done"] or unsaved_s > self._checkpoint_interval)
        result = result | {SHOULD_CHECKPOINT: due}
        restored, self._restored_epochs = self._restored_epochs, None
        return result if restored is None else result | {"restored_epochs": restored, "curve": list(self._curve)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self._broken:  # Ray saves a checkpoint at the end of each trial, also of one that could not begin
            return
        folder = Path(checkpoint_dir)
        self._trial.save(folder)
        torch.save(self._last | {"curve": self._curve}, folder / "result.pt")
        seal(folder)
        self._saved_at = time.monotonic()
        if self._checkpoints:
            self._checkpoints.clear(KEPT - 1)  # Ray adds the new one afterwards

    def restore(self, checkpoint_path: Any) -> None:
        """Restore the checkpoint that Ray chose; if it does not exist, load this trial's newest valid checkpoint.

        Ray's own method is never called: it unpickles a file `_dict_checkpoint.pkl` of the checkpoint, which executes
        code that others may have put there, and a missing checkpoint lets the trial fail. In population based training,
        Ray chooses the checkpoint of another trial, which may have deleted the checkpoint meanwhile.
        """
        if self._broken:  # `step` reports it
            return
        checkpoint = checkpoint_path.checkpoint
        missing = checkpoint.filesystem.get_file_info(checkpoint.path).type == FileType.NotFound
        if missing or not self._checkpoints:
            _LOG.warning(
                "trial %s: checkpoint %s does not exist any more; loading the newest valid checkpoint of this trial",
                self._trial.folder.name,
                checkpoint.path,
            )
            self._load_newest()
        else:
            with self._checkpoints.opened(checkpoint.path) as folder:
                self.load_checkpoint(folder)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load the checkpoint in the folder `checkpoint`; if it is invalid, this trial's newest valid checkpoint.

        In population based training, Ray may choose the checkpoint of another trial.
        """
        try:
            check_seal(Path(checkpoint))
            self._load(Path(checkpoint))
        except SealError as error:
            name = self._trial.folder.name
            _LOG.warning("trial %s: %s; loading the newest valid checkpoint of this trial", name, error)
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
                f"the keys prune.* define {trial_config.prune.rounds} prune steps; expected 0, because "
                f"{type(self).__name__} does not prune: use PruneTrainable, or remove prune.ratios and prune.n_steps"
            )
        key = data_key(trial_config)
        if self._data is None or self._data[0] != key:
            given = config.get("fingerprint")
            known = DataFingerprint.from_dict(given) if given else None
            self._data = (key, load_trial_data(trial_config, known=known))
        name, remote = config.get("trial", "trial"), config.get("remote")
        if remote:
            # `mkdtemp` picks a new name and lets only this user read: other users cannot put a link there in advance
            self._private = self._private or Path(tempfile.mkdtemp(prefix="asc-tune-"))
            study_dir = self._private / remote.rpartition("/")[2]
        else:
            study_dir = Path(config.get("study_dir") or tempfile.mkdtemp(prefix="asc-tune-"))
        self._checkpoint_interval = config.get("checkpoint_interval") or 0.0
        self._saved_at, self._epoch_s = time.monotonic(), 0.0  # of the newest checkpoint; duration of the newest epoch
        self._adopt = config.get("adopt") or ()
        self._parents = Path(config["parents"]) if config.get("parents") else None
        self._store = Store(remote) if remote else None
        self._generation: int | None = config.get("generation")
        root = config.get("checkpoints")
        self._checkpoints = TrialCheckpoints(root, name) if root else None
        self._last: dict[str, Any] = {}
        self._curve: list[dict[str, Any]] = []  # the records so far, without points
        self._restored_epochs: int | None = None  # epochs of the restored checkpoint; None after they are reported
        study = study_label(remote or str(study_dir))
        self._label = f"{study}/{name}"
        start = Start(plan=tuple(Widths(**widths) for widths in config.get("widths") or ()))
        self._new_trial = lambda: Trial(trial_config, self._data[1], study_dir / EXPERIMENTS / name, start)  # type: ignore[index]
        self._load_newest()
        mode = self._wandb or config.get("wandb")
        self._tracker = Tracker(study_dir, f"{study}-{name}", name, study, values, mode=mode)
        self._wandb = self._tracker.mode  # if W&B's server has failed, the next trials do not wait for it again

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
            self._checkpoints.clear(KEPT if self._adopt else 1)  # other trials may adopt them
        del self._trial, self._records, self._new_trial
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @staticmethod
    def _crashed(error: Exception) -> dict[str, Any]:
        """Return the result that ends the trial without a retry by Ray: `error` would occur again in a new process."""
        return {"done": True, "finished": False, "crash": str(error)}

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
    """Ray Trainable that trains a student, then prunes and retrains it step by step."""

    prunes = True
