"""Augmentation of batches: time roll on waveforms, Freq-MixStyle and masks on log-mels.

Randomness comes from the NumPy generator that is passed in, so a batch depends on its seed only, on any device.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths of the DCASE 2024 baseline; 0 switches an augmentation off."""

    roll_s: float = 0.1  # time roll of up to this many seconds either way
    freq_mask: int = 48  # mel bins masked at most
    time_mask: int = 0  # frames masked at most
    mixstyle_p: float = 0.4  # share of the batches with Freq-MixStyle
    mixstyle_alpha: float = 0.3  # of its Beta(alpha, alpha)

    def __post_init__(self):
        if not 0 <= self.mixstyle_p <= 1:
            raise ValueError(f"augment.mixstyle_p={self.mixstyle_p}: expected a probability")
        for name in ("roll_s", "freq_mask", "time_mask"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name}={getattr(self, name)}: expected 0 or more")
        if not self.mixstyle_alpha > 0:
            raise ValueError(f"augment.mixstyle_alpha={self.mixstyle_alpha}: expected a number above 0")


def augment_waveforms(
    x: torch.Tensor, config: AugmentConfig, sample_rate: int, rng: np.random.Generator
) -> torch.Tensor:
    """Roll each clip of `x [B, S]` by its own number of samples."""
    limit = round(config.roll_s * sample_rate)
    if not limit:
        return x
    shifts = torch.from_numpy(rng.integers(-limit, limit + 1, size=(len(x), 1))).to(x.device)
    positions = (torch.arange(x.shape[1], device=x.device) - shifts) % x.shape[1]
    return x.gather(1, positions)


def augment_features(x: torch.Tensor, config: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """Freq-MixStyle, then frequency and time masks, on log-mels `x [B, 1, F, T]`."""
    if rng.random() < config.mixstyle_p:
        x = freq_mixstyle(x, config.mixstyle_alpha, rng)
    x = mask(x, 2, config.freq_mask, rng)
    return mask(x, 3, config.time_mask, rng)


def freq_mixstyle(x: torch.Tensor, alpha: float, rng: np.random.Generator) -> torch.Tensor:
    """Mix each clip's statistics per frequency with those of another clip of the batch, `x [B, 1, F, T]`.

    Schmid et al. 2022 (DCASE), after MixStyle (Zhou et al. 2021): devices colour the spectrum, so mixing the mean and
    deviation of each mel bin trains for devices not heard.
    """
    mean = x.mean(dim=(1, 3), keepdim=True)  # [B, 1, F, 1]
    std = (x.var(dim=(1, 3), keepdim=True) + 1e-6).sqrt()
    lam = torch.from_numpy(rng.beta(alpha, alpha, size=(len(x), 1, 1, 1))).to(x)
    other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    mixed_mean = lam * mean + (1 - lam) * mean[other]
    mixed_std = lam * std + (1 - lam) * std[other]
    return (x - mean) / std * mixed_std + mixed_mean


def mask(x: torch.Tensor, dim: int, longest: int, rng: np.random.Generator) -> torch.Tensor:
    """Set a band of 0 to `longest` bins along `dim` of each clip to 0 (SpecAugment, Park et al. 2019)."""
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
