"""The two Ray Trainables: thin drivers of `trial.run_trial`, one epoch a step.

A Ray config is the flat TrialConfig plus `trial` (its name) and `study_dir`. Actors are reused: `reset_config` starts
a new trial and keeps nothing of the last one but the read-only clips, where the new one uses the same.
"""

import gc
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.tune as rt
import torch

from ascmodels.pruning import PruningError
from trainables.clips import TrialData
from trainables.config import ConfigError, TrialConfig
from trainables.loop import TrainingDiverged
from trainables.records import EXPERIMENTS, Record, point_dict
from trainables.tracking import Tracker
from trainables.trial import Trial, data_key, load_trial_data, run_trial

RESERVED = ("trial", "study_dir")  # config entries that are not the trial's own


class KDTrainable(rt.Trainable):
    """Trains a dense student by knowledge distillation."""

    prunes = False

    def setup(self, config: dict[str, Any]) -> None:
        self._data: tuple[str, TrialData] | None = None
        self._tracker: Tracker | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            record = next(self._records, None)
        except (TrainingDiverged, PruningError) as error:  # it would happen again: a result, not a crash to be retried
            return self._last | {"done": True, "finished": False, "failure": str(error)}
        if record is None:  # restored after its last epoch
            return self._last | {"done": True}
        self._last = self._result(record)
        if self._tracker:
            self._track(record)
        return self._last

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self._trial.save(Path(checkpoint_dir))
        torch.save(self._last, Path(checkpoint_dir) / "result.pt")

    def load_checkpoint(self, checkpoint: Any) -> None:
        self._trial.load(Path(checkpoint))
        self._last = torch.load(Path(checkpoint) / "result.pt", weights_only=True)
        self._records = run_trial(self._trial)

    def cleanup(self) -> None:
        self._end()

    def _begin(self, config: dict[str, Any]) -> None:
        values = {k: v for k, v in config.items() if k not in RESERVED}
        trial_config = TrialConfig.from_flat(values)
        if trial_config.prune.rounds and not self.prunes:
            raise ConfigError("KDTrainable trains dense students; pruning needs PruneTrainable")
        key = data_key(trial_config)
        if self._data is None or self._data[0] != key:
            self._data = (key, load_trial_data(trial_config))
        study_dir = Path(config.get("study_dir") or tempfile.mkdtemp(prefix="asc-tune-"))
        name = config.get("trial", "trial")
        self._trial = Trial(trial_config, self._data[1], study_dir / EXPERIMENTS / name)
        self._records: Iterator[Record] = run_trial(self._trial)
        self._last: dict[str, Any] = {}
        self._tracker = Tracker(study_dir, f"{study_dir.name}-{name}", name, study_dir.name, values)

    def _end(self) -> None:
        if self._tracker:
            self._tracker.finish()
        self._tracker = None
        del self._trial, self._records
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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
    """Trains a dense student, then prunes and retrains it step by step."""

    prunes = True
