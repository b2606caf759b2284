"""Augmentation of training batches.

Waveforms: device impulse response (DIR) augmentation and time roll. Log-mels: mixup, frequency and time masks,
Freq-MixStyle. As in the DCASE 2024 baseline, a masked band is silent, and Freq-MixStyle comes after the masks.

`draw_epoch` draws all random numbers of an epoch before its first step, from a NumPy generator, and moves them to the
device of the training at once. So they are the same on CPU and GPU, and no step waits for a copy from the CPU.
`augment_waveforms` and `augment_features` apply the numbers of one batch (`Draws`). A teacher that runs during the
training of the student applies them, too, at its own sample rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchaudio.functional import fftconvolve

from data.config.augment import AugmentConfig
from data.config.frontend import FrontEndConfig

DIR_DEVICE = "a"  # TAU recording device whose clips are convolved with the impulse response of another device


@dataclass(frozen=True)
class Mix:
    """Random numbers with which each of B clips is mixed with another clip of its batch.

    `mix(x)` returns `weight * x + (1 - weight) * x[partner]` for `x [B, ...]`.
    """

    weight: torch.Tensor  # weight of the clip itself: a scalar for the whole batch, or [B]
    partner: torch.Tensor  # [B] index of the other clip in the batch

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.view([-1] + [1] * (x.dim() - 1))
        return weight * x + (1 - weight) * x[self.partner]


@dataclass(frozen=True)
class Draws:
    """Random numbers of the augmentations of one batch of B clips. None: the batch does not get this augmentation.

    The tensors are on the device of the training. `impulses` selects clips, so it stays on the CPU.
    """

    shifts: torch.Tensor | None = None  # [B] roll of each clip in seconds, float64
    impulses: np.ndarray | None = None  # [B] index of the impulse response; -1: the clip is not convolved
    mixup: Mix | None = None  # one weight for the batch
    mixstyle: Mix | None = None  # a weight for each clip
    mel_bands: torch.Tensor | None = None  # [B, 2] first masked mel bin, and the bin after the last one
    frame_bands: torch.Tensor | None = None  # [B, 2] first masked frame, and the frame after the last one


def draw_epoch(
    config: AugmentConfig,
    front_end: FrontEndConfig,
    devices: Sequence[np.ndarray],
    n_impulses: int,
    rng: np.random.Generator,
    device: torch.device | str = "cpu",
) -> list[Draws]:
    """Return the random numbers of the augmentations `config` for each batch of an epoch, as tensors on `device`.

    `devices` has, for each batch, the TAU recording device of each of its clips ("a", "s1", ...): only clips of device
    a get an impulse response. `n_impulses` is the number of impulse responses to choose from. Each roll is a whole
    number of samples at the sample rate of `front_end`. Mixup (Zhang et al. 2018) has one weight from
    Beta(mixup_alpha, mixup_alpha) for each batch, Freq-MixStyle one from Beta(mixstyle_alpha, mixstyle_alpha) for each
    clip.
    """
    numbers = [len(batch) for batch in devices]
    n, parts = sum(numbers), len(numbers)

    def to_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    def by_batch(values: np.ndarray) -> Sequence[torch.Tensor]:
        return to_device(values).split(numbers)

    def partners() -> Sequence[torch.Tensor]:
        return by_batch(np.concatenate([rng.permutation(number) for number in numbers]))

    draws: dict[str, Sequence[Any]] = {}
    limit = round(config.roll_s * front_end.sample_rate)
    if limit:
        draws["shifts"] = by_batch(rng.integers(-limit, limit + 1, size=n) / front_end.sample_rate)
    if config.dir_p:
        convolved = (rng.random(n) < config.dir_p) & (np.concatenate(devices) == DIR_DEVICE)
        chosen = np.where(convolved, rng.integers(n_impulses, size=n), -1)
        draws["impulses"] = np.split(chosen, np.cumsum(numbers)[:-1])
    if config.mixup_alpha:
        weights = to_device(rng.beta(config.mixup_alpha, config.mixup_alpha, size=parts).astype(np.float32))
        draws["mixup"] = list(map(Mix, weights, partners()))
    if config.mixstyle_p:
        styled = rng.random(parts) < config.mixstyle_p
        weights = by_batch(rng.beta(config.mixstyle_alpha, config.mixstyle_alpha, size=n).astype(np.float32))
        mixes = map(Mix, weights, partners())
        draws["mixstyle"] = [mix if on else None for mix, on in zip(mixes, styled, strict=True)]
    if config.freq_mask:
        draws["mel_bands"] = by_batch(_bands(n, front_end.n_mels, config.freq_mask, rng))
    if config.time_mask:
        draws["frame_bands"] = by_batch(_bands(n, front_end.frames, config.time_mask, rng))
    return [Draws(**{name: values[i] for name, values in draws.items()}) for i in range(parts)]


def _bands(n: int, size: int, longest: int, rng: np.random.Generator) -> np.ndarray:
    """Return `n` random bands [n, 2] of at most `longest` of `size` positions: first position, position after last."""
    widths = rng.uniform(0, min(longest, size), size=n)
    starts = (rng.uniform(size=n) * (size - widths)).astype(np.int64)
    return np.stack([starts, starts + widths.astype(np.int64)], axis=1)


def augment_waveforms(
    x: torch.Tensor, draws: Draws, sample_rate: int, impulses: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the waveforms `x [B, S]` after DIR augmentation and time roll, in this order.

    For each clip, `draws` has the roll and the index of its impulse response in `impulses` [K responses, L samples].
    `impulses` is needed only if DIR augmentation is on. `x` and `impulses` are at `sample_rate` Hz.

    DIR: Morocutti et al. 2023, "Device-robust acoustic scene classification via impulse response augmentation". As in
    their code, only clips of device a are convolved, and the tail after the end of the clip is cut.
    """
    if draws.impulses is not None and (draws.impulses >= 0).any():
        assert impulses is not None
        rows = torch.from_numpy(np.flatnonzero(draws.impulses >= 0)).to(x.device)
        chosen = torch.from_numpy(draws.impulses[draws.impulses >= 0]).to(x.device)
        x = x.index_copy(0, rows, fftconvolve(x[rows], impulses[chosen])[:, : x.shape[1]])
    if draws.shifts is None:
        return x
    shifts = (draws.shifts * sample_rate).round().long()
    if x.device.type == "cpu":  # seven times as fast as `gather`; on a GPU it would wait for the shifts
        return torch.stack([clip.roll(shift) for clip, shift in zip(x, shifts.tolist(), strict=True)])
    positions = (torch.arange(x.shape[1], device=x.device) - shifts[:, None]) % x.shape[1]
    return x.gather(1, positions)


def augment_features(x: torch.Tensor, draws: Draws, silence: float) -> torch.Tensor:
    """Return log-mels `x [B, 1, F, T]` after mixup, frequency mask, time mask and Freq-MixStyle, in this order.

    `silence` is the log-mel of a silent bin (`LogMel.silence`), which masked bins get. The baseline masks the mel power
    before its logarithm, with the same result.
    """
    if draws.mixup:
        x = draws.mixup(x)
    if draws.mel_bands is not None:
        x = mask(x, 2, draws.mel_bands, silence)
    if draws.frame_bands is not None:
        x = mask(x, 3, draws.frame_bands, silence)
    return freq_mixstyle(x, draws.mixstyle) if draws.mixstyle else x


def freq_mixstyle(x: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Return log-mels `x [B, 1, F, T]` with the mean and standard deviation of each mel bin mixed between clips.

    `mix` mixes the statistics of each clip with those of another clip. A recording device changes these statistics, so
    mixing them makes the network robust to unseen devices. Schmid et al. 2022 (DCASE), based on MixStyle (Zhou et al.
    2021).
    """
    mean = x.mean(dim=(1, 3), keepdim=True)  # [B, 1, F, 1]
    std = (x.var(dim=(1, 3), keepdim=True) + 1e-6).sqrt()
    return (x - mean) / std * mix(std) + mix(mean)


def mask(x: torch.Tensor, dim: int, bands: torch.Tensor, silence: float) -> torch.Tensor:
    """Return log-mels `x [B, 1, F, T]` with one band of each clip set to `silence` (SpecAugment, Park et al. 2019).

    `dim` is the masked dimension: 2 (frequency) or 3 (time). `bands [B, 2]` has, for each clip, the first masked
    position and the position after the last one.
    """
    shape = [1, 1, 1, 1]
    shape[dim] = x.shape[dim]
    position = torch.arange(x.shape[dim], device=x.device).view(shape)
    first, end = bands.view(-1, 2, 1, 1, 1).unbind(1)
    return x.masked_fill((position >= first) & (position < end), silence)
