"""The parts of the training loop: one epoch of training, the moving average of the weights, and prediction.

An `Epoch` has the settings of one epoch, and the generator of all its random draws. A trial seeds this generator with
(training seed, stage, epoch). So the result of an epoch does not change if the trial was restored from a checkpoint
just before it.
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
    """Raised if a training has diverged: a training or validation loss, a gradient norm or a logit is not finite."""


def batches(n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the indices 0 to n - 1, shuffled and divided into batches of at most `batch_size`.

    The sizes of the batches differ by at most 1, so there is no tiny last batch.
    """
    return np.array_split(rng.permutation(n), max(1, math.ceil(n / batch_size)))


class WeightAverage:
    """Exponential moving average of the weights of `model`, which is being trained.

    The attribute `network` is a copy of `model` with the averaged weights. `update` changes it after each optimiser
    step: average <- d * average + (1 - d) * weights, with d = min(`decay`, (1 + t) / (10 + t)) and the number t of
    earlier steps. d is smaller in the first steps: otherwise the initial weights would dominate the average of a short
    training. BN statistics are averaged like the weights; integer tensors (counters) are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.network, self.decay = copy.deepcopy(model), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights that `model` has after optimiser step number `step` (counted from 0)."""
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
    """Output of the teachers of online distillation for one augmented batch of B clips."""

    logits: torch.Tensor  # [B, C] logits of the ensemble
    features: torch.Tensor | None = None  # [B, D] features of the single teacher; None: features are not distilled


# from the logits [B, C], the labels [B] and the teacher logits [B, C] to the loss, a scalar
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
# from the indices of a batch's clips [B], their random draws and their mixup
BatchTeacher = Callable[[np.ndarray, Draws, Mix | None], TeacherOutput]


@dataclass(frozen=True)
class Epoch:
    """Settings of one epoch of a training, which `train_epoch` uses.

    The training is that of a student, that of a teacher, or the quantisation-aware training of a student.
    """

    front_end: LogMel
    augment: AugmentConfig
    train: TrainConfig  # batch size, accumulation and mixed precision are used
    loss_of: Loss
    lr_of: Callable[[int], float]  # learning rate of the epoch's i-th step
    rng: np.random.Generator  # source of all random draws of the epoch
    impulses: torch.Tensor | None = None  # [K, L] device impulse responses; None if augment.dir_p is 0
    teachers: BatchTeacher | None = None  # teachers of online distillation; None: use `Clips.teacher`
    feature_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None  # of student, teacher features
    after_step: Callable[[int], None] | None = None  # called after each step with its number, from 0
    where: str = "the epoch"  # name of the epoch in messages


@dataclass(frozen=True)
class EpochResult:
    """Mean loss and accuracies over the augmented clips of one training epoch.

    Each clip is measured in its training batch, with the weights that the network has before this step.
    """

    loss: float
    acc: float  # share of correctly classified clips, in [0, 1]
    macro_avg_acc: float  # mean of the class-wise accuracies, in [0, 1]


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, clips: Clips, epoch: Epoch) -> EpochResult:
    """Train `model` for one epoch on `clips` and return the mean loss and the accuracies of this epoch.

    The learning rate of step i is `epoch.lr_of(i)`; for a parameter group of `optimizer` with the key `lr_scale`, it is
    multiplied by this factor. One step accumulates the gradients of `epoch.train.accumulate` batches, weighted by their
    numbers of clips, so that it equals a step on one large batch (except for batch normalisation).

    Raise TrainingDiverged if a loss or gradient norm is not finite. On a CPU, this is checked before each step. On a
    GPU, it is checked at the end of the epoch, because a check at each step would wait for the device.
    """
    device = next(model.parameters()).device
    # a new scaler in each epoch, so checkpoints need not contain its state. At the initial scale of 2^12, gradients
    # seldom overflow; if they do, the scaler halves the scale.
    scaler = GradScaler(device.type, init_scale=2.0**12, enabled=epoch.train.amp == "fp16")
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = torch.zeros((), device=device)
    classes: list[tuple[torch.Tensor, torch.Tensor]] = []  # predicted and true classes of each batch
    unchecked: list[torch.Tensor] = []  # loss and gradient norm of the steps that were not checked yet
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
    """Augment one batch and predict it with `model`; return its mean loss, logits `[B, C]` and labels `[B]`.

    `picked [B]` are the positions of the batch's clips in `clips`. With mixup, each returned label is that of the clip
    with the larger weight in the mixture.
    """
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
    if mix:  # trainables/engine/losses.py explains why losses are mixed, not targets
        other = output.logits if output else None if teacher is None else teacher[mix.partner]
        loss = mix.lam * loss + (1 - mix.lam) * epoch.loss_of(logits, labels[mix.partner], other)
        labels = labels if mix.lam >= 0.5 else labels[mix.partner]
    if features is not None and epoch.feature_loss:
        assert output is not None
        assert output.features is not None
        loss = loss + epoch.feature_loss(features.float().mean(dim=(2, 3)), output.features)
    return loss, logits, labels


def _check_finite(values: np.ndarray, first: int, n_steps: int, epoch: Epoch) -> None:
    """Raise TrainingDiverged if a loss or a gradient norm of some consecutive steps is not finite.

    `values [S, 2]` are the loss and the gradient norm of S steps. `first` is the index of the first of these steps in
    an epoch of `n_steps` steps. With fp16, the gradient scaler skips steps whose gradients overflow, so infinite
    gradient norms are an error only if none of the S norms is finite.
    """
    bad = ~np.isfinite(values)
    if epoch.train.amp == "fp16" and not bad[:, 1].all():
        bad[:, 1] = False
    if bad.any():
        step = int(bad.any(axis=1).argmax())
        what, value = ("loss", values[step, 0]) if bad[step, 0] else ("gradient's norm", values[step, 1])
        raise TrainingDiverged(
            f"{epoch.where}: the {what} is {value} at step {first + step + 1} of {n_steps}; "
            "expected a finite number: use a lower learning rate"
        )


@torch.no_grad()
def predict(model: nn.Module, clips: Clips, front_end: LogMel, batch_size: int = 64) -> torch.Tensor:
    """Return the logits `[N, C]` of `model` in evaluation mode for N clips without augmentation, as a CPU tensor.

    `batch_size` is the number of clips that are predicted together.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    logits = []
    for start in range(0, len(clips.rows), batch_size):
        x = front_end(clips.cache.batch(clips.rows[start : start + batch_size], device))
        logits.append(model(x.to(memory_format=torch.channels_last)).float().cpu())
    model.train(training)
    return torch.cat(logits)
