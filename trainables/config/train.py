"""`TrainConfig`: how a network is trained, whoever it is; the learning rate that follows, and the machine's part."""

import ctypes
import math
from collections.abc import Callable
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


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; ValueError when `cuda` is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device='cuda', but PyTorch sees no CUDA device on this machine; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def training_device(config: TrainConfig) -> torch.device:
    """Where `config` is trained; ValueError when it cannot be there."""
    device = pick_device(config.device)
    if config.amp == "fp16" and device.type != "cuda":
        raise ValueError("train.amp='fp16' needs a CUDA device: its scaled gradients have no CPU form; use bf16 or off")
    return device


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


def jku_factor(step: int, rise: float, start: float, length: float, last: float) -> float:
    """The share of the peak rate that the JKU recipes give a step:

        exp(-5 (1 - step / rise)^2) while rising;  1 - (1 - last) * (step - start) / length while falling

    and their product where both hold: `exp_warmup_linear_down` of PaSST (Koutini et al. 2022) and CPJKU's DCASE 2022
    and 2023 code, the rise being that of Laine and Aila 2017. That code counts epochs, here everything is in steps; as
    there, the rise begins at half a unit.
    """
    up = math.exp(-5 * (1 - max(step, 0.5) / rise) ** 2) if step < rise else 1.0
    fallen = min(max(step - start, 0) / length, 1.0) if length else float(step > start)
    return up * (1 - (1 - last) * fallen)


def schedule(config: TrainConfig, n_steps: int, peak: float | None = None) -> Callable[[int], float]:
    """The learning rate of each of `n_steps` steps: of dense training, or with another `peak` of retraining, whose
    warm-up is always the share `warmup`. ValueError when the warm-up would not end."""
    warmup = config.warmup
    if peak is None and config.warmup_steps is not None:
        if config.warmup_steps >= n_steps:
            raise ValueError(
                f"train.warmup_steps={config.warmup_steps}: the training has {n_steps} steps, so the rate would never "
                "reach its peak; lower it, or train for more epochs"
            )
        warmup = config.warmup_steps / n_steps
    top = config.lr if peak is None else peak
    if config.schedule == "cosine":
        return lambda step: learning_rate(step, n_steps, top, warmup)
    shape = (warmup * n_steps, config.rampdown_start * n_steps, config.rampdown * n_steps, config.last_lr)
    return lambda step: top * jku_factor(step, *shape)
