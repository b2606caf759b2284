"""The training loop's parts: schedule, one epoch, evaluation. Plain functions of their arguments.

Every random draw of an epoch comes from (seed, stage, epoch), so an epoch is the same whether the run was restored
just before it or not.
"""

import copy
import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from data.augment import AugmentConfig, Draws, Mix, augment_features, augment_waveforms, draw_mixup, draw_waveforms
from data.cache import WaveformCache
from data.features import LogMel

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


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer finite."""


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


def batches(n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A shuffled division of range(n) into nearly equal batches of at most `batch_size`: no tiny last one."""
    return np.array_split(rng.permutation(n), max(1, math.ceil(n / batch_size)))


class WeightAverage:
    """Exponential moving average of a network's weights: `network <- d * network + (1 - d) * model` after each step.

    d = min(decay, (1 + t) / (10 + t)) with t the steps before, so that a short training is not held at its start.
    BN statistics are averaged like the weights (they belong to them); counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.network, self.decay = copy.deepcopy(model), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After the `step`-th step (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.network.state_dict().values(), model.state_dict().values(), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        means, news = [mean for mean, _ in moving], [new for _, new in moving]
        torch._foreach_lerp_(means, news, share)  # type: ignore[attr-defined]  # all tensors at once
        for mean, new in pairs:
            if not mean.is_floating_point():
                mean.copy_(new)


@dataclass(frozen=True)
class Heard:
    """What the teachers say of one batch."""

    logits: torch.Tensor  # [B, C]
    features: torch.Tensor | None = None  # [B, D], of the one teacher whose features are distilled


Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]  # of logits, labels, teacher logits
Listener = Callable[[np.ndarray, Draws, Mix | None], Heard]  # of the clips picked and what was drawn for them


@dataclass(frozen=True)
class Epoch:
    """How one epoch is trained, whoever trains: student, teacher, quantised network."""

    front_end: LogMel
    augment: AugmentConfig
    train: TrainConfig
    loss_of: Loss
    lr_of: Callable[[int], float]  # of the epoch's i-th step
    rng: np.random.Generator
    impulses: torch.Tensor | None = None  # [K, L] device impulse responses, where augment.dir_p asks for them
    teachers: Listener | None = None  # who hear the batch as it is augmented, in the place of `Clips.teacher`
    feature_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None  # of student's, teacher's features
    after_step: Callable[[int], None] | None = None  # told the number of each step, from 0
    where: str = "the epoch"  # its name in messages


@dataclass(frozen=True)
class EpochResult:
    """Means over the epoch, of the network as it was at each step and of clips as they were augmented."""

    loss: float
    acc: float  # share of the clips
    macro_avg_acc: float  # mean over the classes


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, clips: Clips, epoch: Epoch) -> EpochResult:
    """One pass over `clips`. A group's rate is `lr_of(i)`, times its `lr_scale` where it has one.

    `accumulate` batches make one step; each counts by its clips, so that a step is that of one large batch (batch
    normalisation aside). TrainingDiverged when a loss or gradient is not finite: at once on a CPU, at the end of the
    epoch on a GPU, which would have to wait at each step.
    """
    device = next(model.parameters()).device
    # made anew each epoch, so that there is no state to restore; 2^12 seldom overflows, and halves itself if it does
    scaler = GradScaler(device.type, init_scale=2.0**12, enabled=epoch.train.amp == "fp16")
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = torch.zeros((), device=device)
    told: list[tuple[torch.Tensor, torch.Tensor]] = []  # predicted and true classes of each batch
    seen: list[torch.Tensor] = []  # loss and gradient norm of the steps not looked at yet
    parts = batches(len(clips.rows), epoch.train.batch_size, epoch.rng)
    steps = [parts[i : i + epoch.train.accumulate] for i in range(0, len(parts), epoch.train.accumulate)]
    for i, step in enumerate(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        for picked in step:
            part, logits, labels = _batch_loss(model, clips, picked, epoch, device)
            told.append((logits.detach().argmax(dim=1), labels))
            share = len(picked) / sum(len(p) for p in step)
            loss += part.detach() * share
            total += part.detach() * len(picked)
            scaler.scale(part * share).backward()
        for group in optimizer.param_groups:
            group["lr"] = epoch.lr_of(i) * group.get("lr_scale", 1.0)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        seen.append(torch.stack([loss, norm]))
        if (device.type == "cpu" and not scaler.is_enabled()) or i + 1 == len(steps):
            _check_finite(torch.stack(seen).cpu().numpy(), i + 1 - len(seen), len(steps), epoch)
            seen.clear()
        scaler.step(optimizer)
        scaler.update()
        if epoch.after_step:
            epoch.after_step(i)
    predicted, true = (torch.cat(t).cpu().numpy() for t in zip(*told, strict=True))
    right, present = np.bincount(true[predicted == true], minlength=true.max() + 1), np.bincount(true)
    accuracies = right[present > 0] / present[present > 0]
    return EpochResult((total / len(clips.rows)).item(), float((predicted == true).mean()), float(accuracies.mean()))


def _batch_loss(
    model: nn.Module, clips: Clips, picked: np.ndarray, epoch: Epoch, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, logits `[B, C]` and labels `[B]` of the clips `picked`; with mixup, each clip's heavier label."""
    rate, n_impulses = epoch.front_end.config.sample_rate, 0 if epoch.impulses is None else len(epoch.impulses)
    draws = draw_waveforms(epoch.augment, rate, clips.devices[picked], n_impulses, epoch.rng)
    mix = draw_mixup(epoch.augment, len(picked), epoch.rng, device)
    waveforms = augment_waveforms(clips.cache.batch(clips.rows[picked], device), draws, rate, epoch.impulses)  # [B, S]
    x = epoch.front_end(waveforms)
    x = augment_features(mix(x) if mix else x, epoch.augment, epoch.rng)  # [B, 1, F, T]
    labels = torch.from_numpy(clips.labels[picked]).to(device)
    teacher = None if clips.teacher is None else clips.teacher[picked].to(device)
    heard = epoch.teachers(picked, draws, mix) if epoch.teachers else None
    with torch.autocast(device.type, AMP[epoch.train.amp], enabled=epoch.train.amp != "off"):
        features = None
        if epoch.feature_loss:
            features = model.features(x.to(memory_format=torch.channels_last))  # type: ignore[operator]
            logits = model.classifier(features).mean(dim=(2, 3))  # type: ignore[operator]
        else:
            logits = model(x.to(memory_format=torch.channels_last))
    logits = logits.float()
    loss = epoch.loss_of(logits, labels, heard.logits if heard else teacher)
    if mix:  # why losses are mixed: trainables/distill.py
        other = heard.logits if heard else None if teacher is None else teacher[mix.partner]
        loss = mix.lam * loss + (1 - mix.lam) * epoch.loss_of(logits, labels[mix.partner], other)
        labels = labels if mix.lam >= 0.5 else labels[mix.partner]
    if features is not None and epoch.feature_loss:
        assert heard is not None
        assert heard.features is not None
        loss = loss + epoch.feature_loss(features.float().mean(dim=(2, 3)), heard.features)
    return loss, logits, labels


def _check_finite(seen: np.ndarray, first: int, n_steps: int, epoch: Epoch) -> None:
    """TrainingDiverged names the first step whose loss or gradient norm (`seen [steps, 2]`) is not finite.

    With fp16 a step whose gradients overflow is left out and its scale halved; an epoch of such steps has diverged.
    """
    bad = ~np.isfinite(seen)
    if epoch.train.amp == "fp16" and not bad[:, 1].all():
        bad[:, 1] = False
    if bad.any():
        step = int(bad.any(axis=1).argmax())
        what, value = ("loss", seen[step, 0]) if bad[step, 0] else ("gradient's norm", seen[step, 1])
        raise TrainingDiverged(f"{epoch.where}: the {what} is {value} at step {first + step + 1} of {n_steps}")


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
