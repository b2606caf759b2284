"""`TrainConfig`: how a network is trained, whoever it is; the learning rate that follows, and the machine's part."""

import math
from dataclasses import dataclass

import torch

DEVICES = ("auto", "cpu", "cuda")
SCHEDULES = ("cosine", "jku")
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """Dense training: AdamW with linear warm-up and cosine decay, as the DCASE 2024 baseline."""

    epochs: int = 150
    min_steps: int = 0  # a study raises the epochs until there are as many steps: small data sets need more epochs
    batch_size: int = 256
    lr: float = 5e-3  # peak learning rate
    weight_decay: float = 1e-4
    warmup: float = 0.1  # share of the steps with rising learning rate
    warmup_steps: int | None = None  # the same in steps, of dense training; none: `warmup` holds
    schedule: str = "cosine"  # cosine, or jku: exponential rise, constant, linear fall, constant
    rampdown_start: float = 1 / 3  # jku: share of the steps before the fall
    rampdown: float = 0.56  # jku: share of the steps that the fall takes
    last_lr: float = 0.005  # jku: final rate over peak rate
    accumulate: int = 1  # batches whose gradients make one step
    amp: str = "off"  # autocast of the network: off, bf16, fp16 (CUDA only)
    label_smoothing: float = 0.0  # of the cross-entropy
    ema_decay: float = 0.0  # moving average of the weights, which is then what counts; 0: off
    device: str = "auto"  # auto: CUDA where there is one
    threads: int = 1  # CPU threads of a trial

    def __post_init__(self):
        for name, known in (("device", DEVICES), ("schedule", SCHEDULES), ("amp", tuple(AMP))):
            if getattr(self, name) not in known:
                raise ValueError(f"train.{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        if self.epochs < 1 or self.batch_size < 2 or self.threads < 1 or self.min_steps < 0:
            raise ValueError(
                f"train.epochs={self.epochs}, train.batch_size={self.batch_size}, train.threads={self.threads}, "
                f"train.min_steps={self.min_steps}: expected epochs and threads >= 1, a batch of 2 at least (batch "
                "normalisation) and no negative number of steps"
            )
        if not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf or not 0 <= self.warmup < 1:
            raise ValueError(
                f"train.lr={self.lr}, train.weight_decay={self.weight_decay}, train.warmup={self.warmup}: "
                "expected a finite lr above 0, a finite weight decay >= 0, warm-up in [0, 1)"
            )
        if self.accumulate < 1 or (self.warmup_steps is not None and self.warmup_steps < 0):
            raise ValueError(
                f"train.accumulate={self.accumulate}, train.warmup_steps={self.warmup_steps}: expected at least one "
                "batch a step and no negative number of steps"
            )
        for name in ("rampdown_start", "rampdown", "last_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: expected a share in [0, 1]")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: expected a number in [0, 1)")

    def epoch_steps(self, n_clips: int) -> int:
        """Steps of the optimiser in one epoch of `n_clips` clips."""
        return math.ceil(math.ceil(n_clips / self.batch_size) / self.accumulate)


def enough_epochs(config: TrainConfig, n_clips: int) -> int:
    """`config.epochs`, or as many as `config.min_steps` asks for on `n_clips` clips."""
    return max(config.epochs, math.ceil(config.min_steps / config.epoch_steps(n_clips)))
