"""Augmentation of batches: impulse responses and time roll on waveforms; mixup, Freq-MixStyle and masks on log-mels.

All random numbers come from the NumPy generator that is passed in, so a batch depends only on its seed, on any device.
The random draws for the waveforms are returned (`Draws`, `Mix`), so that a teacher receives the same augmented clip as
the student.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torchaudio.functional import fftconvolve

DIR_DEVICE = "a"  # recording device whose clips are convolved with the response of another device


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths of the augmentations; the defaults are those of the DCASE 2024 baseline, and 0 means off."""

    roll_s: float = 0.1  # largest time roll in seconds, in both directions (0: off)
    freq_mask: int = 48  # largest number of masked mel bins per clip (0: off)
    time_mask: int = 0  # largest number of masked frames per clip (0: off)
    mixstyle_p: float = 0.4  # share of the batches with Freq-MixStyle (0 to 1; 0: off)
    mixstyle_alpha: float = 0.3  # alpha of Freq-MixStyle's Beta(alpha, alpha) distribution (above 0)
    mixup_alpha: float = 0.0  # alpha of mixup's Beta(alpha, alpha) distribution (0: no mixup)
    dir_p: float = 0.0  # share of device-a clips convolved with a device impulse response (0 to 1; 0: off)
    dir_dir: str | None = None  # folder of device impulse responses (WAV files), required if dir_p > 0; null: none

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "dir_dir" and not math.isfinite(value):
                raise ValueError(f"augment.{item.name}={value}: expected a finite number")
        for name in ("mixstyle_p", "dir_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name}={getattr(self, name)}: expected a probability from 0 to 1")
        for name in ("roll_s", "freq_mask", "time_mask", "mixup_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name}={getattr(self, name)}: expected 0 or more")
        if not self.mixstyle_alpha > 0:
            raise ValueError(f"augment.mixstyle_alpha={self.mixstyle_alpha}: expected a number above 0")
        if self.dir_p and not self.dir_dir:
            raise ValueError(
                f"augment.dir_p={self.dir_p} needs impulse responses: name a folder of WAV files with augment.dir_dir "
                "(--dir_dir; `python -m data.impulse FOLDER` writes a synthetic set), or set augment.dir_p to 0"
            )
        if self.dir_dir:  # absolute, because trials run in other working directories
            object.__setattr__(self, "dir_dir", str(Path(self.dir_dir).expanduser().resolve()))


@dataclass(frozen=True)
class Draws:
    """Random draws for the waveforms of one batch, valid at any sample rate."""

    shifts: np.ndarray | None  # [B] roll in seconds; None: no roll
    impulses: np.ndarray | None  # [B] index of the impulse response, -1: not convolved; None: no DIR augmentation


@dataclass(frozen=True)
class Mix:
    """Mixup of one batch: `lam` times each clip plus 1 - `lam` times its partner."""

    lam: float
    partner: torch.Tensor  # [B] index of each clip's partner in the batch

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.lam * x + (1 - self.lam) * x[self.partner]


def draw_waveforms(
    config: AugmentConfig, sample_rate: int, devices: np.ndarray, n_impulses: int, rng: np.random.Generator
) -> Draws:
    """Draw roll and impulse response of each clip in a batch recorded by `devices [B]`.

    The roll is an integer number of samples at `sample_rate`.
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
    """Apply device impulse responses (`impulses [K, L]`), then roll, to waveforms `x [B, S]`.

    DIR: Morocutti et al. 2023, "Device-robust acoustic scene classification via impulse response augmentation". As in
    their code, only clips of device a are convolved, the tail after the end of the clip is cut, and the roll follows.
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
    """Draw mixup (Zhang et al. 2018) of `n` clips: one weight from Beta(alpha, alpha) and permuted partners.

    Return None if mixup is off.
    """
    if not config.mixup_alpha:
        return None
    lam = float(rng.beta(config.mixup_alpha, config.mixup_alpha))
    return Mix(lam, torch.from_numpy(rng.permutation(n)).to(device))


def augment_features(x: torch.Tensor, config: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """Apply Freq-MixStyle, then frequency and time masks, to log-mels `x [B, 1, F, T]`."""
    if rng.random() < config.mixstyle_p:
        x = freq_mixstyle(x, config.mixstyle_alpha, rng)
    x = mask(x, 2, config.freq_mask, rng)
    return mask(x, 3, config.time_mask, rng)


def freq_mixstyle(x: torch.Tensor, alpha: float, rng: np.random.Generator) -> torch.Tensor:
    """Mix each clip's statistics per frequency with those of another clip of the batch, `x [B, 1, F, T]`.

    Schmid et al. 2022 (DCASE), based on MixStyle (Zhou et al. 2021). Recording devices colour the spectrum, so mixing
    mean and standard deviation of each mel bin makes the network robust to unseen devices.
    """
    mean = x.mean(dim=(1, 3), keepdim=True)  # [B, 1, F, 1]
    std = (x.var(dim=(1, 3), keepdim=True) + 1e-6).sqrt()
    lam = torch.from_numpy(rng.beta(alpha, alpha, size=(len(x), 1, 1, 1))).to(x)
    other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    mixed_mean = lam * mean + (1 - lam) * mean[other]
    mixed_std = lam * std + (1 - lam) * std[other]
    return (x - mean) / std * mixed_std + mixed_mean


def mask(x: torch.Tensor, dim: int, longest: int, rng: np.random.Generator) -> torch.Tensor:
    """Set a band of at most `longest` bins along `dim` of each clip to 0 (SpecAugment, Park et al. 2019)."""
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
