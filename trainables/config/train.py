"""Configuration of the training of a student or a teacher (`TrainConfig`)."""

import math
from dataclasses import dataclass

DEVICES = ("auto", "cpu", "cuda")
MAX_THREADS = 1024
SCHEDULES = ("cosine", "jku")
SAMPLING = ("uniform", "class", "device", "class_device")
FIRST_SHARE = 0.3  # share of the clips in the first epoch of a curriculum
AMP = ("auto", "off", "bf16", "fp16")


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
    warmup_cap: float = 1.0  # largest share of the steps that warmup_steps may take (above 0, at most 1)
    schedule: str = "cosine"  # learning-rate schedule: cosine, or jku (rise, constant, linear fall, constant)
    rampdown_start: float = 1 / 3  # schedule jku: share of the steps before the learning rate falls (0 to 1)
    rampdown: float = 0.56  # schedule jku: share of the steps in which the learning rate falls (0 to 1)
    last_lr: float = 0.005  # schedule jku: final learning rate divided by the peak learning rate (0 to 1)
    sampling: str = "uniform"  # clips of an epoch: uniform (each once), or drawn to balance class, device, class_device
    curriculum: float = 0.0  # share of dense training before all clips are used (0 to 1; 0: all from the start)
    accumulate: int = 1  # number of batches whose gradients are accumulated for one optimiser step (at least 1)
    amp: str = "auto"  # mixed precision (autocast): off, bf16, fp16 (CUDA only), or auto (bf16 on CUDA, off on a CPU)
    cuda_graph: bool = False  # on a GPU, record the training step and repeat it, where that is possible (see the log)
    label_smoothing: float = 0.0  # label smoothing of the cross-entropy (0 to below 1; 0: off)
    ema_decay: float = 0.0  # decay of the weights' moving average, which is deployed instead (0 to below 1; 0: off)
    soup: int = 0  # number of best epochs of a stage whose weights are averaged at its end (0: off, the last epoch)
    device: str = "auto"  # device of the training: auto (CUDA if available, else CPU), cpu or cuda
    threads: int = 1  # number of CPU threads of a trial (at least 1)

    def __post_init__(self):
        for name, known in (("device", DEVICES), ("schedule", SCHEDULES), ("amp", AMP), ("sampling", SAMPLING)):
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
            ("warmup_cap", 0 < self.warmup_cap <= 1, "a share above 0 and at most 1"),
            ("soup", self.soup >= 0, "0 (off) or a number of epochs"),
            ("accumulate", self.accumulate >= 1, "at least 1 batch"),
            ("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 0, "null, or a number of steps >= 0"),
        ):
            if not valid:
                raise ValueError(f"train.{name}={getattr(self, name)}: expected {expected}")
        if self.curriculum and self.sampling != "uniform":
            raise ValueError(
                f"train.curriculum={self.curriculum}, train.sampling={self.sampling!r}: expected only one of the two, "
                "because both decide which clips an epoch has: set train.curriculum=0 or train.sampling=uniform"
            )
        for name in ("rampdown_start", "rampdown", "last_lr", "curriculum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: expected a share in [0, 1]")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: expected a number in [0, 1)")

    def share_of_clips(self, epoch: int) -> float:
        """Return the share of the clips from which dense training draws in `epoch` (from 0), with `curriculum`.

        The clips are those with the highest device entropy (`Clips.device_entropy`). The share grows linearly.
        """
        progress = epoch / (self.curriculum * self.epochs) if self.curriculum else 1.0
        return min(1.0, FIRST_SHARE + (1 - FIRST_SHARE) * progress)

    def epoch_steps(self, n_clips: int) -> int:
        """Return the number of optimiser steps in one epoch of `n_clips` clips."""
        return math.ceil(math.ceil(n_clips / self.batch_size) / self.accumulate)


def enough_epochs(config: TrainConfig, n_clips: int) -> int:
    """Return the number of epochs in which a network is trained on `n_clips` clips.

    This is `config.epochs`, but at least the number of epochs in which `config.min_steps` optimiser steps are reached.
    """
    return max(config.epochs, math.ceil(config.min_steps / config.epoch_steps(n_clips)))
