"""Augmentation of training batches.

Waveforms: device impulse response (DIR) augmentation and time roll. Log-mels: mixup, Freq-MixStyle, frequency and time
masks. All random numbers come from the NumPy generator that the caller passes, so they are the same on CPU and GPU.

For DIR augmentation, roll and mixup, the random numbers are drawn first (objects of `Draws` and `Mix`) and applied
later: a teacher that runs during the training of the student must receive the same augmented clips, at its own sample
rate.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torchaudio.functional import fftconvolve

LONGEST_ROLL_S = 60
LARGEST_ALPHA = 1_000_000  # parameter of a Beta distribution: from here on, all weights are 0.5
DIR_DEVICE = "a"  # TAU recording device whose clips are convolved with the impulse response of another device


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of each augmentation. The defaults are those of the DCASE 2024 baseline."""

    roll_s: float = 0.1  # largest circular time shift in seconds, in both directions (0: off)
    freq_mask: int = 48  # largest number of masked mel bins per clip (0: off)
    time_mask: int = 0  # largest number of masked frames per clip (0: off)
    mixstyle_p: float = 0.4  # probability that a batch gets Freq-MixStyle (0 to 1; 0: off)
    mixstyle_alpha: float = 0.3  # alpha of Freq-MixStyle's Beta(alpha, alpha) distribution (above 0)
    mixup_alpha: float = 0.0  # alpha of mixup's Beta(alpha, alpha) distribution (0: no mixup)
    dir_p: float = 0.0  # probability that a clip of device a is convolved with an impulse response (0: off)
    dir_dir: str | None = None  # folder of device impulse responses (WAV files), required if dir_p > 0; null: none

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "dir_dir" and not math.isfinite(value):
                raise ValueError(f"augment.{item.name}={value}: expected a finite number; correct the value")
        for name in ("mixstyle_p", "dir_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"augment.{name}={getattr(self, name)}: expected a probability from 0 to 1; set 0 to turn this off"
                )
        for name in ("roll_s", "freq_mask", "time_mask", "mixup_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name}={getattr(self, name)}: expected 0 or more; set 0 to turn this off")
        if self.roll_s > LONGEST_ROLL_S:
            raise ValueError(
                f"augment.roll_s={self.roll_s}: expected at most {LONGEST_ROLL_S} s (a clip has 1 s); lower the value"
            )
        for name in ("mixstyle_alpha", "mixup_alpha"):
            if getattr(self, name) > LARGEST_ALPHA:
                raise ValueError(
                    f"augment.{name}={getattr(self, name)}: expected at most {LARGEST_ALPHA:,}; lower the value"
                )
        if not self.mixstyle_alpha > 0:
            raise ValueError(
                f"augment.mixstyle_alpha={self.mixstyle_alpha}: expected a number above 0; to turn Freq-MixStyle off, "
                "set augment.mixstyle_p=0"
            )
        if self.dir_p and not self.dir_dir:
            raise ValueError(
                f"augment.dir_p={self.dir_p} needs impulse responses: name a folder of WAV files with augment.dir_dir "
                "(`python -m data.impulse FOLDER` writes a synthetic set), or set augment.dir_p to 0"
            )
        if self.dir_dir:  # absolute, because trials run in other working directories
            object.__setattr__(self, "dir_dir", str(Path(self.dir_dir).expanduser().resolve()))


@dataclass(frozen=True)
class Draws:
    """Random numbers of the waveform augmentations of one batch; they can be applied at any sample rate."""

    shifts: np.ndarray | None  # [B] roll of each clip in seconds; None: no roll
    impulses: np.ndarray | None  # [B] index of the impulse response (-1: clip not convolved); None: no DIR augmentation


@dataclass(frozen=True)
class Mix:
    """Random numbers of mixup for one batch. `mix(x)` returns `lam * x + (1 - lam) * x[partner]` for `x [B, ...]`."""

    lam: float  # weight of each clip itself
    partner: torch.Tensor  # [B] index of the clip of the same batch that is mixed into each clip

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.lam * x + (1 - self.lam) * x[self.partner]


def draw_waveforms(
    config: AugmentConfig, sample_rate: int, devices: np.ndarray, n_impulses: int, rng: np.random.Generator
) -> Draws:
    """Return a random time roll and a random device impulse response for each clip of a batch.

    `devices [B]` holds the TAU recording device of each clip ("a", "s1", ...); only clips of device a get an impulse
    response. `n_impulses` is the number of impulse responses to choose from. Each roll, in seconds, is a whole number
    of samples at `sample_rate` Hz.
    """
    shifts, impulses, n = None, None, len(devices)
    limit = round(config.roll_s * sample_rate)
    if limit:
        shifts = rng.integers(-limit, limit + 1, size=n) / sample_rate
    if config.dir_p:
        convolved = (rng.random(n) < config.dir_p) & (devices == DIR_DEVICE)
        impulses = np.where(convolved, rng.integers(n_impulses, size=n), -1)
    return Draws(shifts, impulses)


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
    shifts = torch.from_numpy(np.rint(draws.shifts * sample_rate).astype(np.int64)).to(x.device)[:, None]
    positions = (torch.arange(x.shape[1], device=x.device) - shifts) % x.shape[1]
    return x.gather(1, positions)


def draw_mixup(config: AugmentConfig, n: int, rng: np.random.Generator, device: torch.device | str) -> Mix | None:
    """Return the random numbers of mixup (Zhang et al. 2018) for a batch of `n` clips; None if mixup is off.

    All clips share one weight from Beta(mixup_alpha, mixup_alpha). Each clip is mixed with a random clip of the batch.
    `device` is the torch device of the tensors that will be mixed.
    """
    if not config.mixup_alpha:
        return None
    lam = float(rng.beta(config.mixup_alpha, config.mixup_alpha))
    return Mix(lam, torch.from_numpy(rng.permutation(n)).to(device))


def augment_features(x: torch.Tensor, config: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """Return log-mels `x [B, 1, F, T]` after Freq-MixStyle, the frequency mask and the time mask, in this order.

    `config` has the probability of Freq-MixStyle and the largest sizes of the masks.
    """
    if rng.random() < config.mixstyle_p:
        x = freq_mixstyle(x, config.mixstyle_alpha, rng)
    x = mask(x, 2, config.freq_mask, rng)
    return mask(x, 3, config.time_mask, rng)


def freq_mixstyle(x: torch.Tensor, alpha: float, rng: np.random.Generator) -> torch.Tensor:
    """Return log-mels `x [B, 1, F, T]` with the mean and standard deviation of each mel bin mixed between clips.

    The statistics of each clip are mixed with those of a random clip of the batch, with one weight per clip from
    Beta(alpha, alpha). A recording device changes these statistics, so mixing them makes the network robust to unseen
    devices. Schmid et al. 2022 (DCASE), based on MixStyle (Zhou et al. 2021).
    """
    mean = x.mean(dim=(1, 3), keepdim=True)  # [B, 1, F, 1]
    std = (x.var(dim=(1, 3), keepdim=True) + 1e-6).sqrt()
    lam = torch.from_numpy(rng.beta(alpha, alpha, size=(len(x), 1, 1, 1))).to(x)
    other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    mixed_mean = lam * mean + (1 - lam) * mean[other]
    mixed_std = lam * std + (1 - lam) * std[other]
    return (x - mean) / std * mixed_std + mixed_mean


def mask(x: torch.Tensor, dim: int, longest: int, rng: np.random.Generator) -> torch.Tensor:
    """Return log-mels `x [B, 1, F, T]` with one random band per clip set to 0 (SpecAugment, Park et al. 2019).

    `dim` is the masked dimension: 2 (frequency) or 3 (time). The band is at most `longest` mel bins or frames wide.
    """
    if not longest:
        return x
    size = x.shape[dim]
    widths = rng.uniform(0, min(longest, size), size=len(x))
    starts = (rng.uniform(size=len(x)) * (size - widths)).astype(np.int64)
    ends = starts + widths.astype(np.int64)
    shape = [len(x), 1, 1, 1]
    first = torch.from_numpy(starts).to(x.device).view(shape)
    last = torch.from_numpy(ends).to(x.device).view(shape)
    position_shape = [1, 1, 1, 1]
    position_shape[dim] = size
    position = torch.arange(size, device=x.device).view(position_shape)
    return x.masked_fill((position >= first) & (position < last), 0.0)
