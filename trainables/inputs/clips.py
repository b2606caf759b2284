"""The training and validation clips of a trial, read from the waveform cache, and the number of epochs for them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data import tau
from data.cache import WaveformCache, open_cache
from data.holdout import hold_out
from trainables.config.schema import TrialConfig
from trainables.config.train import enough_epochs


@dataclass(frozen=True)
class Clips:
    """The clips for training, validation or test: rows of the waveform cache, labels, devices, teacher logits."""

    cache: WaveformCache
    rows: np.ndarray  # [N]
    labels: np.ndarray  # [N]
    devices: np.ndarray  # [N]
    teacher: torch.Tensor | None = None  # [N, C], cached teacher logits


@dataclass(frozen=True)
class SplitClips:
    """The training and the validation clips of a split; `notes` describe what is unusual about the data."""

    train: Clips
    validation: Clips
    notes: tuple[str, ...]


def read_parts(config: TrialConfig):
    """Return the data set's root folder, and its training split divided into training and validation (`HoldOut`)."""
    root = tau.dataset_root(config.data.dataset_dir)
    split = tau.read_split(
        root, f"split{config.data.subset}", config.data.split_dir, Path(config.data.cache_dir) / "split_setup"
    )
    return root, hold_out(split, config.data.validation_share, config.seed)


def load_clips(config: TrialConfig, sample_rate: int, progress: bool = False, content: str | None = None) -> SplitClips:
    """Return the training and validation clips at `sample_rate` Hz, without teacher logits.

    `content` is the content digest of the waveforms (`WaveformCache.content`), if it is known: then a cache with this
    content is opened without reading the WAV files.
    """
    root, parts = read_parts(config)
    names = [*parts.train.filename, *parts.validation.filename]
    cache_dir = Path(config.data.cache_dir)
    d = config.data
    cache = open_cache(root, names, sample_rate, cache_dir, d.skip_broken, progress, d.num_workers, content)
    notes = parts.notes + tuple(f"left out: {reason}" for reason in cache.skipped.values())
    train, validation = clips_of(parts.train, cache, "training"), clips_of(parts.validation, cache, "validation")
    return SplitClips(train, validation, notes)


def clips_of(table: pd.DataFrame, cache: WaveformCache, part: str) -> Clips:
    """Return the clips of `table` (from `tau.read_split`), except broken ones that `cache` has skipped.

    Raise DatasetError, which names the `part`, if no clip of a scene is left.
    """
    table = table.loc[~table.filename.isin(list(cache.skipped))]
    rows = cache.rows(list(table.filename))
    clips = Clips(cache, rows, table.label.to_numpy(), table.device.to_numpy(dtype=str))
    check_all_scenes(clips, part)
    return clips


def filenames(clips: Clips) -> list[str]:
    """Return the clips' filenames, relative to the data set, in the clips' order."""
    return [clips.cache.filenames[row] for row in clips.rows]


def check_all_scenes(clips: Clips, part: str) -> None:
    """Raise DatasetError if a scene has no clip in `clips`: a mean over nine classes would be another metric."""
    absent = [scene for label, scene in enumerate(tau.SCENES) if label not in clips.labels]
    if absent:
        raise tau.DatasetError(
            f"the {part} part has no readable clip of scene {', '.join(absent)}; expected at least one: restore the "
            "skipped files, or choose a larger subset"
        )


def with_enough_epochs(config: TrialConfig, n_train: int) -> TrialConfig:
    """Return `config` with more epochs, if `n_train` clips need them for `min_steps` of student and teacher.

    The epochs of retraining after pruning grow in proportion to those of the student.
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
