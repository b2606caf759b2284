"""Configuration of the training of a student or a teacher (`TrainConfig`)."""

import math
from dataclasses import dataclass

import torch

DEVICES = ("auto", "cpu", "cuda")
MAX_THREADS = 1024
SCHEDULES = ("cosine", "jku")
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training with AdamW. The default learning-rate schedule is that of the DCASE 2024 baseline."""

    epochs: int = 150  # number of epochs of dense training (at least 1)
    min_steps: int = 0  # least number of optimiser steps, reached by raising epochs (0: off; ignored if you set epochs)
    batch_size: int = 256  # number of clips per batch (at least 2)
    lr: float = 5e-3  # peak learning rate of dense training (above 0)
    weight_decay: float = 1e-4  # weight decay of AdamW (0 or more)
    warmup: float = 0.1  # share of the optimiser steps in which the learning rate rises (0 to below 1)
    warmup_steps: int | None = None  # optimiser steps of warm-up in dense training (0 or more); null: use warmup
    schedule: str = "cosine"  # learning-rate schedule: cosine, or jku (rise, constant, linear fall, constant)
    rampdown_start: float = 1 / 3  # schedule jku: share of the steps before the learning rate falls (0 to 1)
    rampdown: float = 0.56  # schedule jku: share of the steps in which the learning rate falls (0 to 1)
    last_lr: float = 0.005  # schedule jku: final learning rate divided by the peak learning rate (0 to 1)
    accumulate: int = 1  # number of batches whose gradients are accumulated for one optimiser step (at least 1)
    amp: str = "off"  # mixed precision (autocast) of the network: off, bf16, or fp16 (CUDA only)
    label_smoothing: float = 0.0  # label smoothing of the cross-entropy (0 to below 1; 0: off)
    ema_decay: float = 0.0  # decay of the weights' moving average, which is deployed instead (0 to below 1; 0: off)
    device: str = "auto"  # device of the training: auto (CUDA if available, else CPU), cpu or cuda
    threads: int = 1  # number of CPU threads of a trial (at least 1)

    def __post_init__(self):
        for name, known in (("device", DEVICES), ("schedule", SCHEDULES), ("amp", tuple(AMP))):
            if getattr(self, name) not in known:
                raise ValueError(f"train.{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        for name, valid, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 2, "at least 2 clips, because of batch normalisation"),
            ("threads", 1 <= self.threads <= MAX_THREADS, f"1 to {MAX_THREADS}"),
            ("min_steps", self.min_steps >= 0, "0 (off) or more optimiser steps"),
            ("lr", 0 < self.lr < math.inf, "a finite learning rate above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number >= 0"),
            ("warmup", 0 <= self.warmup < 1, "a share in [0, 1)"),
            ("accumulate", self.accumulate >= 1, "at least 1 batch"),
            ("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 0, "null, or a number of steps >= 0"),
        ):
            if not valid:
                raise ValueError(f"train.{name}={getattr(self, name)}: expected {expected}")
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
    """Return the number of epochs in which a network is trained on `n_clips` clips.

    This is `config.epochs`, but at least the number of epochs in which `config.min_steps` optimiser steps are reached.
    """
    return max(config.epochs, math.ceil(config.min_steps / config.epoch_steps(n_clips)))
