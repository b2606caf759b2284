"""The parts of the training loop: one epoch of training, and prediction.

An `Epoch` has the settings of one epoch, and the generator of all its random draws. A trial seeds this generator with
(training seed, stage, epoch). So the result of an epoch does not change if the trial was restored from a checkpoint
just before it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from ascmodels.students import Student
from data.augment import Draws, augment_features, augment_waveforms
from data.config.augment import AugmentConfig
from data.features import LogMel
from trainables.config.train import TrainConfig
from trainables.engine.batches import Batch, steps_of_epoch
from trainables.engine.deployment import folded
from trainables.engine.device import autocast
from trainables.engine.graphs import StepGraphs
from trainables.engine.optimizer import set_learning_rate
from trainables.inputs.clips import Clips


class TrainingDiverged(RuntimeError):
    """Raised if a training has diverged: a training or validation loss, a gradient norm or a logit is not finite."""


@dataclass(frozen=True)
class TeacherOutput:
    """Output of the teachers of online distillation for one augmented batch of B clips."""

    logits: torch.Tensor  # [B, C] logits of the ensemble
    features: torch.Tensor | None = None  # [B, D] features of the single teacher; None: features are not distilled


# from the logits [B, C], the labels [B] and the teacher logits [B, C] to the loss, a scalar
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
# from the indices of a batch's clips [B] and their random draws
BatchTeacher = Callable[[np.ndarray, Draws], TeacherOutput]


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
    graphs: StepGraphs | None = None  # records the steps as CUDA graphs; None: they run one by one
    share: float = 1.0  # share of the clips that the epoch has, those with the highest device entropy
    where: str = "the epoch"  # name of the epoch in messages
    remedy: str = "use a lower learning rate"  # advice in the message about a divergence


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
    figures: list[torch.Tensor] = []  # [2]: loss and gradient norm of each step
    classes: list[torch.Tensor] = []  # [2, B]: predicted and true classes of each step
    sizes: list[int] = []
    at_once = device.type == "cpu" and not scaler.is_enabled()
    with ExitStack() as stack:
        n_impulses = 0 if epoch.impulses is None else len(epoch.impulses)
        settings = epoch.augment, epoch.front_end.config, n_impulses, epoch.train
        steps = steps_of_epoch(clips, *settings, epoch.rng, device, stack, epoch.share)
        for i, step in enumerate(steps):
            for group in optimizer.param_groups:
                set_learning_rate(group, epoch.lr_of(i) * group.get("lr_scale", 1.0))

            def check(values: torch.Tensor, first: int = i) -> None:
                _check_finite(values[None].numpy(), first, len(steps), epoch)

            train = partial(_train_step, model, optimizer, epoch, scaler, check if at_once else None)
            found = epoch.graphs.run(train, step) if epoch.graphs else train(step)
            figures.append(found[0])
            classes.append(found[1])
            sizes.append(found[1].shape[1])
            if epoch.after_step:
                epoch.after_step(i)
    values = torch.stack(figures).cpu().numpy()
    if not at_once:
        _check_finite(values, 0, len(steps), epoch)
    predicted, true = torch.cat(classes, dim=1).cpu().numpy()
    right, present = np.bincount(true[predicted == true], minlength=true.max() + 1), np.bincount(true)
    accuracies = right[present > 0] / present[present > 0]
    loss = float(np.average(values[:, 0], weights=sizes))
    return EpochResult(loss, float((predicted == true).mean()), float(accuracies.mean()))


def _train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: Epoch,
    scaler: GradScaler,
    check: Callable[[torch.Tensor], None] | None,
    step: Sequence[Batch],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train one optimiser step on the batches `step` of together B clips.

    Return the loss and the gradient norm, `[2]`, and the predicted and the true classes, `[2, B]`. `check` is called
    with the first result before the weights change.
    """
    optimizer.zero_grad(set_to_none=True)
    n, loss, classes = sum(len(batch.labels) for batch in step), torch.zeros((), device=step[0].labels.device), []
    for batch in step:
        part, logits, labels = _batch_loss(model, batch, epoch)
        classes.append(torch.stack([logits.detach().argmax(dim=1), labels]))
        share = len(labels) / n
        loss = loss + part.detach() * share
        scaler.scale(part * share).backward()
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    figures = torch.stack([loss, norm])
    if check:
        check(figures)
    scaler.step(optimizer)
    scaler.update()
    return figures, torch.cat(classes, dim=1)


def _batch_loss(model: nn.Module, batch: Batch, epoch: Epoch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Augment `batch` and predict it with `model`; return its mean loss, logits `[B, C]` and labels `[B]`.

    With mixup, each returned label is that of the clip with the larger weight in the mixture.
    """
    labels, teacher, draws, mix = batch.labels, batch.teacher, batch.draws, batch.draws.mixup
    device, rate = labels.device, epoch.front_end.config.sample_rate
    waveforms = augment_waveforms(batch.read(batch.rows), draws, rate, epoch.impulses)  # [B, S]
    x = augment_features(epoch.front_end(waveforms), draws, epoch.front_end.silence)  # [B, 1, F, T]
    output = epoch.teachers(batch.picked, draws) if epoch.teachers else None
    with autocast(epoch.train.amp, device):
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
        loss = mix.weight * loss + (1 - mix.weight) * epoch.loss_of(logits, labels[mix.partner], other)
        labels = torch.where(mix.weight >= 0.5, labels, labels[mix.partner])
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
            f"expected a finite number: {epoch.remedy}"
        )


@torch.no_grad()
def predict(model: nn.Module, clips: Clips, front_end: LogMel, batch_size: int | None = None) -> torch.Tensor:
    """Return the logits `[N, C]` of `model` in evaluation mode for N clips without augmentation, as a CPU tensor.

    `batch_size` is the number of clips that are predicted together. None: 64, on a CPU 16, whose activations fit into
    the processor's cache. The batch normalisation of a student is folded, in a copy of it.
    """
    device = next(model.parameters()).device
    batch_size = batch_size or (16 if device.type == "cpu" else 64)
    training = model.training
    network = folded(model) if isinstance(model, Student) else model.eval()
    logits = []
    for start in range(0, len(clips.rows), batch_size):
        x = front_end(clips.waveforms(slice(start, start + batch_size), device))
        logits.append(network(x.to(memory_format=torch.channels_last)).float().cpu())
    model.train(training)
    return torch.cat(logits)
