"""The parts of the training loop: one epoch, the average of the weights, prediction. They keep no state of their own.

The random draws of an epoch come from a generator seeded by (seed, stage, epoch), so an epoch gives the same result
whether or not the run was restored just before it.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from data.augment import AugmentConfig, Draws, Mix, augment_features, augment_waveforms, draw_mixup, draw_waveforms
from data.features import LogMel
from trainables.config.train import AMP, TrainConfig
from trainables.inputs.clips import Clips


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer finite."""


def batches(n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffle range(n) and divide it into batches of at most `batch_size` and nearly equal size (no tiny last one)."""
    return np.array_split(rng.permutation(n), max(1, math.ceil(n / batch_size)))


class WeightAverage:
    """Exponential moving average of a network's weights: `network <- d * network + (1 - d) * model` after each step.

    d = min(decay, (1 + t) / (10 + t)), where t is the number of earlier steps; so the average of a short training is
    not dominated by the initial weights. BN statistics are averaged like the weights; counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.network, self.decay = copy.deepcopy(model), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights of `model` after step number `step` (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.network.state_dict().values(), model.state_dict().values(), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        means, news = [mean for mean, _ in moving], [new for _, new in moving]
        torch._foreach_lerp_(means, news, share)  # type: ignore[attr-defined]  # one call for all tensors
        for mean, new in pairs:
            if not mean.is_floating_point():
                mean.copy_(new)


@dataclass(frozen=True)
class TeacherOutput:
    """The output of the teachers for one batch, in online distillation."""

    logits: torch.Tensor  # [B, C], of the ensemble
    features: torch.Tensor | None = None  # [B, D], of the single teacher whose features are distilled; None: not used


Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]  # (logits, labels, teacher logits)
BatchTeacher = Callable[[np.ndarray, Draws, Mix | None], TeacherOutput]  # (clip indices, draws, mixup)


@dataclass(frozen=True)
class Epoch:
    """How to train one epoch of a student, a teacher or a quantised network."""

    front_end: LogMel
    augment: AugmentConfig
    train: TrainConfig
    loss_of: Loss
    lr_of: Callable[[int], float]  # learning rate of the epoch's i-th step
    rng: np.random.Generator
    impulses: torch.Tensor | None = None  # [K, L] device impulse responses; None: augment.dir_p is 0
    teachers: BatchTeacher | None = None  # computes teacher logits of the augmented batch; None: use `Clips.teacher`
    feature_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None  # (student's, teacher's features)
    after_step: Callable[[int], None] | None = None  # called with the number of each step, from 0
    where: str = "the epoch"  # name of the epoch in messages


@dataclass(frozen=True)
class EpochResult:
    """Loss and accuracies on the augmented training clips of an epoch, each predicted with the weights of its step."""

    loss: float
    acc: float  # share of the clips
    macro_avg_acc: float  # mean over the classes


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, clips: Clips, epoch: Epoch) -> EpochResult:
    """Train one pass over `clips`; in step i, the learning rate is `epoch.lr_of(i)`, times a group's `lr_scale` if set.

    One step accumulates the gradients of `accumulate` batches, weighted by their numbers of clips, so that it equals a
    step on one large batch (except for batch normalisation). Raise TrainingDiverged if a loss or gradient is not
    finite: at once on a CPU, at the end of the epoch on a GPU, where a check at each step would wait for the device.
    """
    device = next(model.parameters()).device
    # a new scaler each epoch, so no state has to be restored; a scale of 2^12 seldom overflows and is then halved
    scaler = GradScaler(device.type, init_scale=2.0**12, enabled=epoch.train.amp == "fp16")
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = torch.zeros((), device=device)
    classes: list[tuple[torch.Tensor, torch.Tensor]] = []  # predicted and true classes of each batch
    unchecked: list[torch.Tensor] = []  # loss and gradient norm of the steps that are not checked yet
    parts = batches(len(clips.rows), epoch.train.batch_size, epoch.rng)
    steps = [parts[i : i + epoch.train.accumulate] for i in range(0, len(parts), epoch.train.accumulate)]
    for i, step in enumerate(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        for picked in step:
            part, logits, labels = _batch_loss(model, clips, picked, epoch, device)
            classes.append((logits.detach().argmax(dim=1), labels))
            share = len(picked) / sum(len(p) for p in step)
            loss += part.detach() * share
            total += part.detach() * len(picked)
            scaler.scale(part * share).backward()
        for group in optimizer.param_groups:
            group["lr"] = epoch.lr_of(i) * group.get("lr_scale", 1.0)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        unchecked.append(torch.stack([loss, norm]))
        if (device.type == "cpu" and not scaler.is_enabled()) or i + 1 == len(steps):
            _check_finite(torch.stack(unchecked).cpu().numpy(), i + 1 - len(unchecked), len(steps), epoch)
            unchecked.clear()
        scaler.step(optimizer)
        scaler.update()
        if epoch.after_step:
            epoch.after_step(i)
    predicted, true = (torch.cat(t).cpu().numpy() for t in zip(*classes, strict=True))
    right, present = np.bincount(true[predicted == true], minlength=true.max() + 1), np.bincount(true)
    accuracies = right[present > 0] / present[present > 0]
    return EpochResult((total / len(clips.rows)).item(), float((predicted == true).mean()), float(accuracies.mean()))


def _batch_loss(
    model: nn.Module, clips: Clips, picked: np.ndarray, epoch: Epoch, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loss, logits `[B, C]` and labels `[B]` of the clips `picked`; with mixup, the label of larger weight."""
    rate, n_impulses = epoch.front_end.config.sample_rate, 0 if epoch.impulses is None else len(epoch.impulses)
    draws = draw_waveforms(epoch.augment, rate, clips.devices[picked], n_impulses, epoch.rng)
    mix = draw_mixup(epoch.augment, len(picked), epoch.rng, device)
    waveforms = augment_waveforms(clips.cache.batch(clips.rows[picked], device), draws, rate, epoch.impulses)  # [B, S]
    x = epoch.front_end(waveforms)
    x = augment_features(mix(x) if mix else x, epoch.augment, epoch.rng)  # [B, 1, F, T]
    labels = torch.from_numpy(clips.labels[picked]).to(device)
    teacher = None if clips.teacher is None else clips.teacher[picked].to(device)
    output = epoch.teachers(picked, draws, mix) if epoch.teachers else None
    with torch.autocast(device.type, AMP[epoch.train.amp], enabled=epoch.train.amp != "off"):
        features = None
        if epoch.feature_loss:
            features = model.features(x.to(memory_format=torch.channels_last))  # type: ignore[operator]
            logits = model.classifier(features).mean(dim=(2, 3))  # type: ignore[operator]
        else:
            logits = model(x.to(memory_format=torch.channels_last))
    logits = logits.float()
    loss = epoch.loss_of(logits, labels, output.logits if output else teacher)
    if mix:  # trainables/engine/losses.py explains why losses are mixed
        other = output.logits if output else None if teacher is None else teacher[mix.partner]
        loss = mix.lam * loss + (1 - mix.lam) * epoch.loss_of(logits, labels[mix.partner], other)
        labels = labels if mix.lam >= 0.5 else labels[mix.partner]
    if features is not None and epoch.feature_loss:
        assert output is not None
        assert output.features is not None
        loss = loss + epoch.feature_loss(features.float().mean(dim=(2, 3)), output.features)
    return loss, logits, labels


def _check_finite(values: np.ndarray, first: int, n_steps: int, epoch: Epoch) -> None:
    """Raise TrainingDiverged for the first step whose loss or gradient norm (`values [steps, 2]`) is not finite.

    With fp16, a step whose gradients overflow is skipped and the scale is halved; an epoch of only such steps has
    diverged.
    """
    bad = ~np.isfinite(values)
    if epoch.train.amp == "fp16" and not bad[:, 1].all():
        bad[:, 1] = False
    if bad.any():
        step = int(bad.any(axis=1).argmax())
        what, value = ("loss", values[step, 0]) if bad[step, 0] else ("gradient's norm", values[step, 1])
        raise TrainingDiverged(f"{epoch.where}: the {what} is {value} at step {first + step + 1} of {n_steps}")


@torch.no_grad()
def predict(model: nn.Module, clips: Clips, front_end: LogMel, batch_size: int = 64) -> torch.Tensor:
    """Return the logits `[N, C]` of `clips` on the CPU, predicted in evaluation mode without augmentation."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    logits = []
    for start in range(0, len(clips.rows), batch_size):
        x = front_end(clips.cache.batch(clips.rows[start : start + batch_size], device))
        logits.append(model(x.to(memory_format=torch.channels_last)).float().cpu())
    model.train(training)
    return torch.cat(logits)
