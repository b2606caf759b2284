"""The training and validation clips of a trial.

The waveforms are read from the waveform cache (data/cache.py), the labels from the csv files of the data set.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data import tau
from data.cache import WaveformCache, open_cache
from data.config.dataset import DataConfig
from data.holdout import hold_out
from trainables.config.schema import ConfigError, TrialConfig
from trainables.config.train import enough_epochs
from trainables.inputs.device_clips import ResidentWaveforms


@dataclass(frozen=True)
class Clips:
    """N clips for training, validation or test: their waveforms (rows of `cache`), labels and recording devices.

    `teacher` and `device_entropy` are there if the training needs them.
    """

    cache: WaveformCache
    rows: np.ndarray  # [N] row of each clip in `cache`
    labels: np.ndarray  # [N] index of each clip's scene in `tau.SCENES`
    devices: np.ndarray  # [N] name of each clip's recording device
    teacher: torch.Tensor | None = None  # [N, C] cached logits of the teachers' ensemble; None: not needed
    device_entropy: np.ndarray | None = None  # [N] in nats, from a classifier of devices; None: not needed
    resident: ResidentWaveforms | None = None  # all waveforms of `cache` in the memory of a GPU; None: not there

    def resident_on(self, device: torch.device) -> ResidentWaveforms | None:
        """Return `resident` if it is on `device`, else None: a network may also be on the CPU of a machine with GPU."""
        return self.resident if self.resident and self.resident.samples.device.type == device.type else None

    def waveforms(self, picked: np.ndarray | slice, device: torch.device) -> torch.Tensor:
        """Return the waveforms of the clips at the positions `picked`, as float32 `[B, S]` in [-1, 1] on `device`."""
        rows, resident = self.rows[picked], self.resident_on(device)
        return resident.batch(torch.from_numpy(rows).to(device)) if resident else self.cache.batch(rows, device)


@dataclass(frozen=True)
class SplitClips:
    """The clips of the training split, divided into training and validation clips, and `notes` about this division.

    With data.validation_share=0 there are no validation clips.
    """

    train: Clips
    validation: Clips
    notes: tuple[str, ...]  # messages for the user: skipped files, scenes that could not be divided by location


def read_parts(config: TrialConfig):
    """Return (folder of the data set, tables of its training and validation clips).

    The tables are in a `HoldOut`. They are read from the csv file of the training split that `config.data.subset`
    selects, and divided by recording location. The WAV files are not opened.
    """
    root = tau.dataset_root(config.data.dataset_dir)
    split = tau.read_split(
        root, f"split{config.data.subset}", config.data.split_dir, Path(config.data.cache_dir) / "split_setup"
    )
    return root, hold_out(split, config.data.validation_share, config.seed)


def load_clips(config: TrialConfig, sample_rate: int, progress: bool = False, content: str | None = None) -> SplitClips:
    """Return the training and validation clips, resampled to `sample_rate` Hz, without teacher logits.

    `content` is the hash of the WAV files (`WaveformCache.content`) that another process has computed. With it, an
    existing waveform cache is opened without reading the WAV files; None computes the hash. `progress` shows progress
    bars.
    """
    root, parts = read_parts(config)
    names = [*parts.train.filename, *parts.validation.filename]
    cache_dir = Path(config.data.cache_dir)
    d = config.data
    cache = open_cache(root, names, sample_rate, cache_dir, d.skip_broken, progress, d.num_workers, content)
    notes = parts.notes + tuple(f"left out: {reason}" for reason in cache.skipped.values())
    train = clips_of(parts.train, cache, "training")
    validation = clips_of(parts.validation, cache, "validation") if d.validation_share else _no_clips(cache)
    return SplitClips(train, validation, notes)


def _no_clips(cache: WaveformCache) -> Clips:
    none = np.zeros(0, dtype=np.int64)
    return Clips(cache, none, none, none.astype(str))


def clips_of(table: pd.DataFrame, cache: WaveformCache, part: str) -> Clips:
    """Return the clips listed in `table` (from `tau.read_split`), except the broken clips that `cache` left out.

    Raise DatasetError if a scene has no clips left. `part` is the name of the clips in the error message: "training",
    "validation" or "test".
    """
    table = table.loc[~table.filename.isin(list(cache.skipped))]
    rows = cache.rows(list(table.filename))
    clips = Clips(cache, rows, table.label.to_numpy(), table.device.to_numpy(dtype=str))
    check_all_scenes(clips, part)
    return clips


def check_validated(config: TrialConfig, why: str) -> None:
    """Raise ConfigError if `config` holds out no validation clips. `why` is the clause after "but" in the message."""
    if not config.data.validation_share:
        raise ConfigError(
            f"data.validation_share=0, but {why}; expected a share above 0: leave data.validation_share out (default: "
            f"{DataConfig.validation_share:g})"
        )


def filenames(clips: Clips) -> list[str]:
    """Return the filenames of `clips`, relative to the data set's folder, in the order of the clips."""
    return [clips.cache.filenames[row] for row in clips.rows]


def check_all_scenes(clips: Clips, part: str) -> None:
    """Raise DatasetError if a scene has no clip in `clips`, because the macro average accuracy needs all ten scenes.

    `part` is the name of the clips in the error message: "training", "validation" or "test".
    """
    absent = [scene for label, scene in enumerate(tau.SCENES) if label not in clips.labels]
    if absent:
        raise tau.DatasetError(
            f"the {part} clips include no readable clip of {', '.join(absent)}; expected at least one of each scene: "
            "restore the broken files" + ("" if part == "test" else ", or choose a larger data.subset")
        )


def with_enough_epochs(config: TrialConfig, n_train: int) -> TrialConfig:
    """Return `config` with enough epochs for the least number of optimiser steps (`min_steps`), on `n_train` clips.

    If `train.epochs` gives fewer than `train.min_steps` steps on `n_train` training clips, it is raised, and
    `prune.epochs` is multiplied by the same factor and rounded up. `teacher.train.epochs` is raised in the same way.
    In the returned configuration, both `min_steps` are 0.
    """
    train, teacher = config.train, config.teacher.train
    epochs = enough_epochs(train, n_train)
    retraining = math.ceil(config.prune.epochs * epochs / train.epochs)
    return replace(
        config,
        train=replace(train, epochs=epochs, min_steps=0),
        prune=replace(config.prune, epochs=retraining),
        teacher=replace(config.teacher, train=replace(teacher, epochs=enough_epochs(teacher, n_train), min_steps=0)),
    )
