"""`TrainConfig`: how a student or a teacher is trained, and for how many epochs."""

import math
from dataclasses import dataclass

import torch

DEVICES = ("auto", "cpu", "cuda")
SCHEDULES = ("cosine", "jku")
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """Training with AdamW; by default with linear warm-up and cosine decay, as in the DCASE 2024 baseline."""

    epochs: int = 150  # epochs of dense training
    min_steps: int = 0  # least number of optimiser steps; `epochs` is raised to reach it on small data sets
    batch_size: int = 256  # clips per batch
    lr: float = 5e-3  # peak learning rate
    weight_decay: float = 1e-4  # weight decay of AdamW
    warmup: float = 0.1  # share of the optimiser steps in which the learning rate rises, in [0, 1)
    warmup_steps: int | None = None  # warm-up of dense training in optimiser steps; null: `warmup` decides
    schedule: str = "cosine"  # learning-rate schedule: cosine, or jku (rise, constant, linear fall, constant)
    rampdown_start: float = 1 / 3  # schedule jku: share of the steps before the learning rate falls
    rampdown: float = 0.56  # schedule jku: share of the steps in which the learning rate falls
    last_lr: float = 0.005  # schedule jku: final learning rate divided by the peak
    accumulate: int = 1  # number of batches whose gradients make one optimiser step
    amp: str = "off"  # mixed precision (autocast) of the network: off, bf16, or fp16 (CUDA only)
    label_smoothing: float = 0.0  # label smoothing of the cross-entropy, in [0, 1)
    ema_decay: float = 0.0  # decay of the moving average of the weights, which is then validated and deployed; 0: off
    device: str = "auto"  # auto (CUDA if there is a GPU), cpu or cuda
    threads: int = 1  # number of CPU threads of a trial

    def __post_init__(self):
        for name, known in (("device", DEVICES), ("schedule", SCHEDULES), ("amp", tuple(AMP))):
            if getattr(self, name) not in known:
                raise ValueError(f"train.{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        if self.epochs < 1 or self.batch_size < 2 or self.threads < 1 or self.min_steps < 0:
            raise ValueError(
                f"train.epochs={self.epochs}, train.batch_size={self.batch_size}, train.threads={self.threads}, "
                f"train.min_steps={self.min_steps}: expected epochs and threads >= 1, batch_size >= 2 (batch "
                "normalisation needs it) and min_steps >= 0"
            )
        if not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf or not 0 <= self.warmup < 1:
            raise ValueError(
                f"train.lr={self.lr}, train.weight_decay={self.weight_decay}, train.warmup={self.warmup}: "
                "expected a finite lr above 0, a finite weight_decay >= 0, a warmup in [0, 1)"
            )
        if self.accumulate < 1 or (self.warmup_steps is not None and self.warmup_steps < 0):
            raise ValueError(
                f"train.accumulate={self.accumulate}, train.warmup_steps={self.warmup_steps}: expected "
                "accumulate >= 1, and warmup_steps null or >= 0"
            )
        for name in ("rampdown_start", "rampdown", "last_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: expected a share in [0, 1]")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: expected a number in [0, 1)")

    def epoch_steps(self, n_clips: int) -> int:
        """Return the number of optimiser steps in one epoch of `n_clips` clips."""
        return math.ceil(math.ceil(n_clips / self.batch_size) / self.accumulate)


def enough_epochs(config: TrainConfig, n_clips: int) -> int:
    """Return `config.epochs`, or the larger number that gives `config.min_steps` steps on `n_clips` clips."""
    return max(config.epochs, math.ceil(config.min_steps / config.epoch_steps(n_clips)))
