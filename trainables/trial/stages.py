"""The stages of a trial in order: train and measure the dense network, then prune, retrain and measure repeatedly."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ascmodels.compress.groups import DATA_CRITERIA, sensitivities
from ascmodels.compress.plan import take_step
from ascmodels.compress.pruning import prune_to_widths
from ascmodels.config.limits import BYTES_PER_PARAMETER, size_bytes
from ascmodels.nessi import get_deployed_size
from ascmodels.students import Student
from data.augment import Draws
from trainables.engine.averages import WeightAverage
from trainables.engine.deployment import deploy
from trainables.engine.loop import (
    Epoch,
    EpochResult,
    Loss,
    TrainingDiverged,
    predict,
    train_epoch,
)
from trainables.engine.losses import kd_loss, similarity_loss
from trainables.engine.metrics import Metrics, measure
from trainables.engine.schedule import schedule
from trainables.outputs.records import Point, Record
from trainables.trial.start import Weights
from trainables.trial.trial import Trial


def run_trial(trial: Trial) -> Iterator[Record]:
    """Train the remaining epochs of `trial` and yield a record after each of them.

    The last record of a stage contains the measured network (`Record.point`). If the trial starts from a base (a
    trained student), stage 0 trains nothing and yields one record, which contains the measured base. Raise
    TrainingDiverged if a loss or a gradient is not finite.
    """
    c = trial.config
    if trial.weights is Weights.SHARED:  # no parent to load the weights from: train these epochs again
        reported = trial.epochs  # number of epochs whose records the trial has yielded before
        trial.reset()
        next(record for record in run_trial(trial) if record.epochs == reported)
    while trial.stage < trial.n_stages:
        if trial.epoch == 0:
            start_stage(trial)
        started = time.perf_counter()
        n_epochs = trial.stage_epochs(trial.stage)
        trained = _train_one_epoch(trial, n_epochs) if n_epochs else None  # 0 epochs: the base is only measured
        trial.epoch += 1 if trained else 0
        trial.epochs += 1 if trained else 0

        deployed = deploy(trial.network, c.limits.precision)  # the measured network is the deployed one
        metrics = _validate(trial, deployed)
        if trained and c.train.soup:
            trial.soup.add(trial.network, trial.epoch, metrics.macro_avg_acc if metrics else None)
            if trial.epoch == n_epochs:
                trial.soup.into(trial.network)
                deployed = deploy(trial.network, c.limits.precision)
                metrics = _validate(trial, deployed)
        if metrics and not math.isfinite(metrics.loss):
            raise TrainingDiverged(
                f"stage {trial.stage}, epoch {trial.epoch}: the validation loss is {metrics.loss}; expected a finite "
                f"number: {_remedy_of_divergence(trial)}"
            )
        validated = _validated(metrics)
        macs, params = trial.sizes[trial.stage]
        sparsity = 1 - params / trial.sizes[0][1]
        stage, epoch, point = trial.stage, trial.epoch, None
        if trial.epoch == n_epochs:
            point = Point(
                step=stage,
                epochs=trial.epochs,
                macs=macs,
                params=params,
                **{f"bytes_{p}": size_bytes(params, p) for p in BYTES_PER_PARAMETER},  # type: ignore[arg-type]
                sparsity=sparsity,
                feasible=c.limits.allow(macs, params),
                class_acc=metrics.class_acc if metrics else {},
                device_acc=metrics.device_acc if metrics else {},
                group_acc=metrics.group_acc if metrics else {},
                widths={k: list(v) for k, v in asdict(trial.model.widths).items()},
                checkpoint=f"step{stage}",
                **validated,
                train_macro_avg_acc=trained.macro_avg_acc if trained else None,
                confusion=metrics.confusion if metrics else None,
                val_acc_pruned=trial.val_acc_pruned,
            )
            trial.end_stage(point, deployed)
        yield Record(
            stage=stage,
            epoch=epoch,
            epochs=trial.epochs,
            train_loss=trained.loss if trained else math.nan,
            **validated,
            train_macro_avg_acc=trained.macro_avg_acc if trained else math.nan,
            macs=macs,
            params=params,
            sparsity=sparsity,
            seconds=time.perf_counter() - started,
            point=point,
            finished=trial.stage == trial.n_stages,
        )


def _remedy_of_divergence(trial: Trial) -> str:
    """Return what to change, as a part of a message, if `trial` has diverged in its present stage."""
    c = trial.config
    if not trial.stage_epochs(trial.stage):
        return "use another base, because this one was only measured, not trained"
    key = "prune.lr" if trial.stage and c.prune.lr_mode == "finetune" else "train.lr"
    return f"use a lower {key}{', or train.amp=bf16 or off' if c.train.amp == 'fp16' else ''}"


def start_stage(trial: Trial) -> None:
    """Prepare `trial` for its current stage: prune the network (not in stage 0), count its size, make an optimiser.

    The size (MACs and parameters of the deployed form) replaces the planned one in `trial.sizes`. Raise RuntimeError if
    they differ, except with prune.scope global or isomorphic, for which the planned size is an estimate.
    """
    c = trial.config
    if trial.stage:
        trial.place(_pruned(trial))
        if trial.validate_pruned:
            metrics = _validate(trial, deploy(trial.model, c.limits.precision))
            trial.val_acc_pruned = metrics.macro_avg_acc if metrics else None
    measured = get_deployed_size(trial.model, c.frontend.n_mels, c.frontend.frames)
    if measured != trial.sizes[trial.stage] and c.prune.exact:
        raise RuntimeError(
            f"stage {trial.stage}: the network has (MACs, parameters) = {measured}, but the pruning plan expected "
            f"{trial.sizes[trial.stage]}: this is a bug in asc-tune, please report it with the configuration"
        )
    trial.sizes[trial.stage] = measured  # with scope global or isomorphic, the plan has only an estimate
    trial.new_optimizer()


def _validate(trial: Trial, deployed: Student) -> Metrics | None:
    """Return the metrics of the network `deployed` on the validation clips; None if there are none."""
    clips = trial.data.validation
    if not len(clips.rows):
        return None
    return measure(predict(deployed, clips, trial.front_end).numpy(), clips.labels, clips.devices)


def _validated(metrics: Metrics | None) -> dict[str, Any]:
    """Return the validation figures that a record and a point have in common, from `metrics` (None: not measured)."""
    figures = (metrics.macro_avg_acc, metrics.loss, metrics.ece) if metrics else (None, None, None)
    return dict(zip(("val_macro_avg_acc", "val_loss", "val_ece"), figures, strict=True))


def _pruned(trial: Trial) -> Student:
    """Return a copy of the network of `trial`, pruned by the prune step of its current stage.

    The random draws of the prune step depend on the training seed and the stage only.
    """
    c, p, stage = trial.config, trial.config.prune, trial.stage
    seed = int(np.random.SeedSequence([c.training_seed, stage]).generate_state(1)[0])
    gradients = None
    if p.criterion in DATA_CRITERIA:
        gradients = sensitivities(trial.model, p.criterion, lambda model: _clip_losses(trial, model))
    if widths := trial.start.pruned_widths(stage):
        return prune_to_widths(trial.model, widths, p.criterion, seed, gradients)
    mels, frames = c.frontend.n_mels, c.frontend.frames
    return take_step(trial.model, p, stage, trial.sizes[0], mels, frames, c.limits.precision, seed, gradients)


def _clip_losses(trial: Trial, model: Student) -> Iterator[torch.Tensor]:
    """Yield the training loss of `model` on one training clip at a time, without augmentation.

    The clips are `prune.importance_clips` randomly drawn ones. The criteria taylor and hessian need the gradients of
    these losses.
    """
    clips, loss_of = trial.data.train, _loss_of(trial)
    rng = np.random.default_rng([trial.config.training_seed, trial.stage, 0, 1])  # 4 numbers: an epoch has 3
    for i in rng.permutation(len(clips.rows))[: trial.config.prune.importance_clips]:
        x = trial.front_end(clips.waveforms(np.array([i]), trial.device))  # [1, 1, F, T]
        labels = torch.from_numpy(clips.labels[[i]]).to(trial.device)
        teacher = None if clips.teacher is None else clips.teacher[[i]].to(trial.device)
        if trial.teachers:
            teacher = trial.teachers(np.array([i]), Draws()).logits
        yield loss_of(model(x), labels, teacher)


def _distils(trial: Trial) -> bool:
    """Return whether the current stage of `trial` uses distillation.

    If the configuration has distillation, stage 0 uses it, and the other stages use it with prune.retrain_kd=true.
    """
    return trial.config.distill.taught and (trial.stage == 0 or trial.config.prune.retrain_kd)


def _loss_of(trial: Trial) -> Loss:
    """Return the loss function of the current stage, without the loss of feature distillation.

    Its arguments are logits `[B, C]`, labels `[B]`, and teacher logits `[B, C]` (None: there is no teacher).
    """
    d, smoothing, distils = trial.config.distill, trial.config.train.label_smoothing, _distils(trial)
    return lambda logits, labels, teacher: kd_loss(
        logits, labels, teacher if distils else None, d.kd_alpha, d.kd_temp, smoothing
    )


def _train_one_epoch(trial: Trial, n_epochs: int) -> EpochResult:
    c = trial.config
    n_steps = c.train.epoch_steps(len(trial.data.train.rows))
    first = trial.epoch * n_steps
    if trial.stage and c.prune.lr_mode == "rewind":
        # Renda et al. 2020, "Comparing Rewinding and Fine-tuning": retrain with the learning rates of the
        # last `n_epochs` epochs of dense training; if retraining is longer, with the dense schedule, stretched
        length = max(c.train.epochs, n_epochs)
        first += (length - n_epochs) * n_steps
        rate = schedule(c.train, length * n_steps)
    else:
        rate = schedule(c.train, n_epochs * n_steps, c.prune.lr if trial.stage else None)
    if c.train.ema_decay and trial.average is None:
        trial.average = WeightAverage(trial.model, c.train.ema_decay)
    average, done, weight = trial.average, trial.epoch * n_steps, c.distill.feature_weight
    distils = _distils(trial)
    assert trial.optimizer is not None
    epoch = Epoch(
        trial.front_end,
        c.augment,
        c.train,
        _loss_of(trial),
        lambda step: rate(first + step),
        np.random.default_rng([c.training_seed, trial.stage, trial.epoch]),
        impulses=trial.impulses,
        teachers=trial.teachers if distils else None,
        feature_loss=(lambda ours, theirs: weight * similarity_loss(ours, theirs)) if weight and distils else None,
        after_step=(lambda step: average.update(trial.model, done + step)) if average else None,
        graphs=trial.graphs,
        share=1.0 if trial.stage else c.train.share_of_clips(trial.epoch),
        where=f"stage {trial.stage}, epoch {trial.epoch + 1}",
        remedy=_remedy_of_divergence(trial),
    )
    return train_epoch(trial.model, trial.optimizer, trial.data.train, epoch)
