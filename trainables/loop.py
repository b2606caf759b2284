"""The training loop's parts: schedule, one epoch, evaluation. Plain functions of their arguments.

Every random draw of an epoch comes from (seed, stage, epoch), so an epoch is the same whether the run was restored
just before it or not.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from data.augment import AugmentConfig, augment_features, augment_waveforms
from data.cache import WaveformCache
from data.features import LogMel

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainConfig:
    """Dense training: AdamW with linear warm-up and cosine decay, as the DCASE 2024 baseline."""

    epochs: int = 150
    min_steps: int = 0  # a study raises the epochs until there are as many steps: small data sets need more epochs
    batch_size: int = 256
    lr: float = 5e-3  # peak learning rate
    weight_decay: float = 1e-4
    warmup: float = 0.1  # share of the steps with rising learning rate
    device: str = "auto"  # auto: CUDA where there is one
    threads: int = 1  # CPU threads of a trial

    def __post_init__(self):
        if self.device not in DEVICES:
            raise ValueError(f"train.device={self.device!r}: expected one of {', '.join(DEVICES)}")
        if self.epochs < 1 or self.batch_size < 2 or self.threads < 1 or self.min_steps < 0:
            raise ValueError(
                f"train.epochs={self.epochs}, train.batch_size={self.batch_size}, train.threads={self.threads}, "
                f"train.min_steps={self.min_steps}: expected epochs and threads >= 1, a batch of 2 at least (batch "
                "normalisation) and no negative number of steps"
            )
        if not self.lr > 0 or self.weight_decay < 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"train.lr={self.lr}, train.weight_decay={self.weight_decay}, train.warmup={self.warmup}: "
                "expected lr above 0, weight decay >= 0, warm-up in [0, 1)"
            )


def enough_epochs(config: TrainConfig, n_clips: int) -> int:
    """`config.epochs`, or as many as `config.min_steps` asks for on `n_clips` clips."""
    return max(config.epochs, math.ceil(config.min_steps / math.ceil(n_clips / config.batch_size)))


class TrainingDiverged(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Clips:
    """The clips of one part: rows of the waveform cache with labels, devices and cached teacher logits."""

    cache: WaveformCache
    rows: np.ndarray  # [N]
    labels: np.ndarray  # [N]
    devices: np.ndarray  # [N]
    teacher: torch.Tensor | None = None  # [N, C]


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; ValueError when `cuda` is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device='cuda', but PyTorch sees no CUDA device on this machine; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def set_up_process(threads: int) -> None:
    """Threads, and glibc told to keep large blocks: mapping each activation anew costs half of a CPU epoch."""
    torch.set_num_threads(threads)
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library: nothing to tell it
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    for option, value in (
        (m_mmap_threshold, 1 << 30),
        (m_trim_threshold, (1 << 31) - 1),
        (m_top_pad, 1 << 28),
    ):
        libc.mallopt(option, value)


def learning_rate(step: int, n_steps: int, peak: float, warmup: float) -> float:
    """Linear rise over `warmup * n_steps`, then cosine to 0."""
    rise = warmup * n_steps
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, n_steps - rise)))


def batches(n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A shuffled division of range(n) into nearly equal batches of at most `batch_size`: no tiny last one."""
    return np.array_split(rng.permutation(n), max(1, math.ceil(n / batch_size)))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clips: Clips,
    front_end: LogMel,
    augment: AugmentConfig,
    loss_of: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor],
    lr_of: Callable[[int], float],
    batch_size: int,
    rng: np.random.Generator,
) -> float:
    """One pass over `clips`; the mean loss. `lr_of(i)` is the rate of the epoch's i-th step.

    TrainingDiverged when a loss is not finite.
    """
    device = next(model.parameters()).device
    model.train()
    total = torch.zeros((), device=device)
    parts = batches(len(clips.rows), batch_size, rng)
    for i, picked in enumerate(parts):
        waveforms = clips.cache.batch(clips.rows[picked], device)  # [B, S]
        waveforms = augment_waveforms(waveforms, augment, front_end.config.sample_rate, rng)
        x = augment_features(front_end(waveforms), augment, rng)  # [B, 1, F, T]
        labels = torch.from_numpy(clips.labels[picked]).to(device)
        teacher = None if clips.teacher is None else clips.teacher[picked].to(device)
        loss = loss_of(model(x.to(memory_format=torch.channels_last)), labels, teacher)
        if device.type == "cpu" and not torch.isfinite(loss):  # on a GPU once an epoch, below: no wait each step
            raise TrainingDiverged(f"the loss is {loss.item()} at step {i + 1} of {len(parts)}")
        for group in optimizer.param_groups:
            group["lr"] = lr_of(i)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(picked)
    mean = (total / len(clips.rows)).item()
    if not math.isfinite(mean):
        raise TrainingDiverged(f"the mean loss of the epoch is {mean}")
    return mean


@torch.no_grad()
def predict(model: nn.Module, clips: Clips, front_end: LogMel, batch_size: int = 64) -> torch.Tensor:
    """Logits `[N, C]` on the CPU, in evaluation mode, without augmentation."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    logits = []
    for start in range(0, len(clips.rows), batch_size):
        x = front_end(clips.cache.batch(clips.rows[start : start + batch_size], device))
        logits.append(model(x.to(memory_format=torch.channels_last)).float().cpu())
    model.train(training)
    return torch.cat(logits)
