"""The batches of an epoch: which clips are in them, in which order, and the random numbers of their augmentation."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.augment import Draws, draw_epoch
from data.config.augment import AugmentConfig
from data.config.frontend import FrontEndConfig
from trainables.config.train import TrainConfig
from trainables.inputs.clips import Clips
from trainables.inputs.device_clips import Ahead


@dataclass(frozen=True)
class Batch:
    """B training clips and the random numbers of their augmentation. The tensors are on the device of the training."""

    picked: np.ndarray  # [B] positions of the clips in the training clips
    rows: torch.Tensor | np.ndarray  # [B] rows of the clips in the waveform cache, as `read` expects them
    read: Callable[[Any], torch.Tensor]  # from `rows` to the waveforms [B, S]
    labels: torch.Tensor  # [B]
    teacher: torch.Tensor | None  # [B, C] cached logits of the teachers
    draws: Draws


def batches(n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the indices 0 to n - 1, shuffled and divided into batches of at most `batch_size`.

    The sizes of the batches differ by at most 1, so there is no tiny last batch.
    """
    return np.array_split(rng.permutation(n), max(1, math.ceil(n / batch_size)))


def balanced(clips: Clips, sampling: str, rng: np.random.Generator) -> np.ndarray:
    """Draw the positions `[N]` of the clips of one epoch with replacement, so that all groups are equally frequent.

    The groups of the N `clips` are their classes, devices, or pairs of both (`train.sampling`).
    """
    parts = [clips.labels.astype(str)] if "class" in sampling else []
    parts += [clips.devices] if "device" in sampling else []
    names = [" ".join(group) for group in zip(*parts, strict=True)]
    _, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
    share = 1 / sizes[group]
    return rng.choice(len(names), size=len(names), p=share / share.sum())


def hardest(clips: Clips, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the positions `[N]` of the clips of one epoch from the `share` of N clips with the highest device entropy.

    Each of these clips is drawn equally often (the numbers differ by at most 1), so an epoch has as many clips as ever.
    """
    assert clips.device_entropy is not None
    n = len(clips.rows)
    allowed = np.argsort(-clips.device_entropy, kind="stable")[: max(1, math.ceil(share * n))]
    return np.concatenate([rng.permutation(allowed) for _ in range(math.ceil(n / len(allowed)))])[:n]


def steps_of_epoch(
    clips: Clips,
    augment: AugmentConfig,
    front_end: FrontEndConfig,
    n_impulses: int,
    train: TrainConfig,
    rng: np.random.Generator,
    device: torch.device,
    stack: ExitStack,
    share: float = 1.0,
) -> list[list[Batch]]:
    """Return the batches of each optimiser step of an epoch. `stack` closes what reads their waveforms.

    The order of the clips and all random numbers are drawn here from `rng` and copied to `device`, so no step waits
    for them. `n_impulses` is the number of device impulse responses. With `share` below 1, the epoch has only this
    share of the clips (`hardest`).
    """
    picks = batches(len(clips.rows), train.batch_size, rng)
    if share < 1 or train.sampling != "uniform":
        drawn = hardest(clips, share, rng) if share < 1 else balanced(clips, train.sampling, rng)
        picks = [drawn[picked] for picked in picks]
    order, sizes = np.concatenate(picks), [len(picked) for picked in picks]
    draws = draw_epoch(augment, front_end, [clips.devices[picked] for picked in picks], n_impulses, rng, device)
    labels = torch.from_numpy(clips.labels[order]).to(device).split(sizes)
    teacher: Sequence[torch.Tensor | None] = [None] * len(picks)
    if clips.teacher is not None:
        teacher = clips.teacher[order].to(device).split(sizes)
    rows: Sequence[Any] = [clips.rows[picked] for picked in picks]
    if resident := clips.resident_on(device):
        rows, read = torch.from_numpy(clips.rows[order]).to(device).split(sizes), resident.batch
    elif device.type == "cpu":
        read = clips.cache.batch
    else:
        read = stack.enter_context(closing(Ahead(clips.cache, rows, device))).batch
    parts = [
        Batch(picked, row, read, label, logits, drawn)
        for picked, row, label, logits, drawn in zip(picks, rows, labels, teacher, draws, strict=True)
    ]
    return [parts[i : i + train.accumulate] for i in range(0, len(parts), train.accumulate)]
