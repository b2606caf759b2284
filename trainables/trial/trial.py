"""One trial, without Ray: train the dense student, then prune and retrain step by step, measuring each network.

    trial = Trial(config, load_trial_data(config), folder)
    for record in run_trial(trial): ...

`run_trial` goes on from wherever `trial` stands, so restoring is `Trial.load` and driving the generator again.
"""

import hashlib
import json
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ascmodels import checkpoint
from ascmodels.checkpoint import CheckpointError
from ascmodels.compress.plan import PruneConfig, schedule_sizes, take_step
from ascmodels.compress.pruning import DATA_CRITERIA, PruningError, prune_to_widths, sensitivities
from ascmodels.nessi import BYTES_PER_PARAMETER, get_deployed_size, size_bytes
from ascmodels.students import Student, Widths, build_student
from data import tau
from data.augment import Draws
from data.features import LogMel
from data.files import mend_folder
from data.impulse import impulses_for
from trainables.config.schema import ConfigError, TrialConfig
from trainables.config.train import schedule, set_up_process, training_device
from trainables.engine.loop import (
    Epoch,
    EpochResult,
    Listener,
    Loss,
    TrainingDiverged,
    WeightAverage,
    predict,
    train_epoch,
)
from trainables.engine.losses import kd_loss, similarity_loss
from trainables.engine.metrics import Metrics, measure
from trainables.inputs.clips import TrialData, load_clips
from trainables.inputs.fingerprint import DataFingerprint, check_unchanged, fingerprint
from trainables.inputs.identity import clips_hash, differences
from trainables.outputs.records import Point, Record, point_dict
from trainables.teachers.fine_tuning import ensemble_logits
from trainables.teachers.online import load_online


class Trial:
    """The state of one trial: where it stands (stage, epoch), its network, its optimiser, its points so far.

    `folder` receives the deployed network of each point. Everything that can be refused is refused here, before any
    training: sizes that cannot be measured, ratios that empty a layer, a missing device.

    With `base`, a trained student in its training form, nothing is trained before the first prune step: point 0 is
    the base as it is. With `widths` alone the dense network has exactly these; with both, one step prunes the base to
    them. `look` validates each pruned network before it is retrained, too (`Point.val_acc_pruned`).
    """

    def __init__(
        self,
        config: TrialConfig,
        data: TrialData,
        folder: Path,
        base: Student | None = None,
        widths: Widths | None = None,
        look: bool = False,
    ):
        self.config, self.data, self.folder = config, data, folder
        self.clips_hash = clips_hash(data)
        self.from_base, self.widths, self.look = base is not None, widths, look
        if config.distill.taught and data.train.teacher is None and data.online is None:
            raise ValueError(
                f"distill.kd_alpha={config.distill.kd_alpha} needs teacher logits and none were given; "
                "set kd_alpha to 1 to train without a teacher"
            )
        self.sizes = self._schedule(base.widths if base else widths)
        set_up_process(config.train.threads)
        try:
            self.device = training_device(config.train)
            if not self.from_base or config.prune.lr_mode == "rewind":  # a warm-up that would not end
                schedule(config.train, config.train.epochs * config.train.epoch_steps(len(data.train.rows)))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.front_end = LogMel(config.frontend).to(self.device)
        self.impulses = impulses_for(config.augment, config.frontend.sample_rate, self.device)
        self.teachers: Listener | None = None
        if data.online:
            with_features = config.distill.feature_weight > 0
            self.teachers = data.online.listener(config.augment, self.device, config.train.amp, with_features)
        self.adopted = False  # goes on from the state of another configuration's trial
        self.begin_again()
        if base:
            checkpoint.check_same_architecture(base.config, config.student, "the base")
            self.model = base.rebuilt()
            self._place()

    @property
    def network(self) -> Student:
        """What is validated, deployed and pruned next: the average of the weights where there is one."""
        return self.average.network if self.average else self.model  # type: ignore[return-value]

    @property
    def n_stages(self) -> int:
        return 2 if self.from_base and self.widths else 1 + self.config.prune.rounds

    @property
    def total_epochs(self) -> int:
        """Of all stages."""
        return self.stage_epochs(0) + self.stage_epochs(1) * (self.n_stages - 1)

    def stage_epochs(self, stage: int) -> int:
        if stage:
            return self.config.prune.epochs
        return 0 if self.from_base else self.config.train.epochs

    def begin_again(self) -> None:
        """As a new trial: nothing trained, the initial weights."""
        self.stage = self.epoch = self.epochs = 0
        self.points: list[Point] = []
        self.val_acc_pruned: float | None = None  # of this stage's network before retraining
        self.optimizer: torch.optim.Optimizer | None = None
        self.average: WeightAverage | None = None  # of this stage, with train.ema_decay
        self.in_parent = False  # the weights of this epoch are in a shared dense phase (dense_phase.py), not here
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.training_seed)
            self.model = build_student(self.config.student, len(tau.SCENES), self.widths)
        self._place()

    def start_stage(self) -> None:
        """Prune (except before the dense stage) and begin with a fresh optimiser."""
        if self.stage:
            self.model = _pruned(self)
            self._place()
            if self.look:
                self.val_acc_pruned = _validate(self, deploy(self.model, self.config.limits.precision)).macro_avg_acc
        measured = get_deployed_size(self.model, self.config.frontend.n_mels, self.config.frontend.frames)
        if measured != self.sizes[self.stage] and self.config.prune.exact:
            raise RuntimeError(f"measured {measured} MACs and params, the schedule says {self.sizes[self.stage]}")
        self.sizes[self.stage] = measured  # was an estimate where the weights decide
        self.optimizer = self._new_optimizer()

    def end_stage(self, point: Point, deployed: Student) -> None:
        """Keep the stage's point with its network as shipped, and advance to the next stage.

        The network is on disk when this returns, before the point is reported. It replaces one that the trial left
        there before it started again: a network that was reported exists until its successor does.
        """
        extra = describe_use(self.config) | {"point": point_dict(point)}
        mend_folder(self.folder / point.checkpoint)  # this process alone writes here
        checkpoint.save_student(self.folder / point.checkpoint, deployed, extra)
        self.points.append(point)
        self.model, self.average = self.network, None
        self.stage, self.epoch, self.optimizer, self.val_acc_pruned = point.step + 1, 0, None, None

    def save(self, folder: Path) -> None:
        """The whole state: the network with its architecture, the optimiser, the position, the points."""
        checkpoint.save_student(folder / "student", self.model, describe_use(self.config))
        state = {
            "config": json.dumps(self.config.flat()),
            "clips": self.clips_hash,
            "adopted": self.adopted,
            "in_parent": self.in_parent,
            "position": [self.stage, self.epoch, self.epochs],
            "from_base": self.from_base,
            "widths": json.dumps(asdict(self.widths)) if self.widths else None,
            "sizes": [list(size) for size in self.sizes],
            "val_acc_pruned": self.val_acc_pruned,
            "points": json.dumps([point_dict(p) for p in self.points]),
            "optimizer": self.optimizer.state_dict() if self.optimizer and self.epoch else None,
            "averaged": self.average is not None,
        }
        if self.average:
            checkpoint.save_student(folder / "average", self.network, describe_use(self.config))
        torch.save(state, folder / "trial.pt")

    def load(self, folder: Path, adopt: Collection[str] = ()) -> None:
        """Go on where `save` was called; CheckpointError for another architecture or a damaged file, for other clips,
        and for another configuration: directories may differ (a study may have moved), and the keys of `adopt`, by
        which a trial takes over the state of another and goes on with its own values."""
        state = checkpoint.load_tensors(folder / "trial.pt")
        student, _ = checkpoint.load_student(folder / "student", expected=self.config.student)
        differing = differences(json.loads(state["config"]), self.config.flat())
        refused = "; ".join(f"{k}: {values}" for k, values in differing.items() if k not in adopt)
        if refused:
            raise CheckpointError(f"{folder} belongs to another configuration: {refused}")
        if differing and state.get("in_parent"):
            raise CheckpointError(f"{folder} has no weights to take over: they are in the dense parent of its trial")
        if state.get("clips", self.clips_hash) != self.clips_hash:
            raise CheckpointError(f"{folder} was trained or validated on other clips than those given here")
        self.model = student
        self._place()
        self.stage, self.epoch, self.epochs = state["position"]
        # `get`: a study that an older version began has states without these
        self.from_base, self.val_acc_pruned = state.get("from_base", False), state.get("val_acc_pruned")
        self.in_parent, self.adopted = state.get("in_parent", False), state.get("adopted", False) or bool(differing)
        self.widths = Widths(**json.loads(state["widths"])) if state.get("widths") else None
        saved = [(macs, params) for macs, params in state.get("sizes", self.sizes)]
        if saved != self.sizes:
            self.sizes = saved
            self._plan_later_stages()
        self.points = [Point(**p) for p in json.loads(state["points"])]
        self.optimizer = None
        if state["optimizer"] is not None:
            self.optimizer = self._new_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["weight_decay"] = self.config.train.weight_decay  # the state's own is another's after `adopt`
        self.average = None
        if state.get("averaged"):
            network, _ = checkpoint.load_student(folder / "average", expected=self.config.student)
            self.average = WeightAverage(placed(network, self.device), self.config.train.ema_decay)

    def _schedule(self, first: Widths | None) -> list[tuple[int, int]]:
        """(MACs, params) of every stage as far as they are known; PruningError where a step cannot be taken."""
        c = self.config
        measure = partial(
            schedule_sizes, c.student, n_mels=c.frontend.n_mels, frames=c.frontend.frames, precision=c.limits.precision
        )
        if self.from_base and self.widths:
            return [measure(PruneConfig(), widths=w)[0] for w in (first, self.widths)]
        return measure(c.prune, widths=first)

    def _plan_later_stages(self) -> None:
        """Renew the sizes of the stages to come from the network's own widths: the version that saved this trial may
        have rounded a number of channels otherwise."""
        prune = self.config.prune
        if not prune.exact or prune.goal is not None or (self.from_base and self.widths):
            return
        measured = self.stage if self.epoch or not self.stage else self.stage - 1  # the stage of `self.model`
        later = PruneConfig(prune.step_ratios[measured:], round_to=prune.round_to)
        c = self.config
        mels, frames, widths = c.frontend.n_mels, c.frontend.frames, self.model.widths
        try:
            self.sizes[measured + 1 :] = schedule_sizes(c.student, later, mels, frames, c.limits.precision, widths)[1:]
        except PruningError:  # the step itself will raise it
            return

    def _place(self) -> None:
        self.model = placed(self.model, self.device)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1.0, weight_decay=self.config.train.weight_decay)


def run_trial(trial: Trial) -> Iterator[Record]:
    """Train, measure, prune, retrain, measure ...: one record after each epoch, a point at the end of each stage."""
    c = trial.config
    if trial.in_parent:  # which is not at hand: its epochs are trained again, and not told again
        told = trial.epochs
        trial.begin_again()
        next(record for record in run_trial(trial) if record.epochs == told)
    while trial.stage < trial.n_stages:
        if trial.epoch == 0:
            trial.start_stage()
        started = time.perf_counter()
        n_epochs = trial.stage_epochs(trial.stage)
        trained = _train_one_epoch(trial, n_epochs) if n_epochs else None  # a base is measured as it is
        trial.epoch += 1 if trained else 0
        trial.epochs += 1 if trained else 0

        deployed = deploy(trial.network, c.limits.precision)  # what is measured is what would be shipped
        metrics = _validate(trial, deployed)
        if not math.isfinite(metrics.loss):
            raise TrainingDiverged(f"stage {trial.stage}, epoch {trial.epoch}: the validation loss is {metrics.loss}")
        macs, params = trial.sizes[trial.stage]
        sparsity = 1 - params / trial.sizes[0][1]
        stage, epoch, point = trial.stage, trial.epoch, None
        if trial.epoch == n_epochs:
            point = Point(
                step=stage,
                epochs=trial.epochs,
                val_macro_avg_acc=metrics.macro_avg_acc,
                val_loss=metrics.loss,
                macs=macs,
                params=params,
                **{f"bytes_{p}": size_bytes(params, p) for p in BYTES_PER_PARAMETER},  # type: ignore[arg-type]
                sparsity=sparsity,
                feasible=c.limits.allow(macs, params),
                class_acc=metrics.class_acc,
                device_acc=metrics.device_acc,
                group_acc=metrics.group_acc,
                widths={k: list(v) for k, v in asdict(trial.model.widths).items()},
                checkpoint=f"step{stage}",
                val_ece=metrics.ece,
                train_macro_avg_acc=trained.macro_avg_acc if trained else None,
                confusion=metrics.confusion,
                val_acc_pruned=trial.val_acc_pruned,
            )
            trial.end_stage(point, deployed)
        yield Record(
            stage=stage,
            epoch=epoch,
            epochs=trial.epochs,
            train_loss=trained.loss if trained else math.nan,
            val_loss=metrics.loss,
            val_macro_avg_acc=metrics.macro_avg_acc,
            val_ece=metrics.ece,
            train_macro_avg_acc=trained.macro_avg_acc if trained else math.nan,
            macs=macs,
            params=params,
            sparsity=sparsity,
            seconds=time.perf_counter() - started,
            point=point,
            finished=trial.stage == trial.n_stages,
        )


def _validate(trial: Trial, deployed: Student) -> Metrics:
    clips = trial.data.validation
    return measure(predict(deployed, clips, trial.front_end).numpy(), clips.labels, clips.devices)


def _pruned(trial: Trial) -> Student:
    """The network after this stage's prune step. Its draws come from (seed, stage), as those of an epoch do."""
    c, p, stage = trial.config, trial.config.prune, trial.stage
    seed = int(np.random.SeedSequence([c.training_seed, stage]).generate_state(1)[0])
    gradients = None
    if p.criterion in DATA_CRITERIA:
        gradients = sensitivities(trial.model, p.criterion, lambda model: _clip_losses(trial, model))
    if trial.from_base and trial.widths:
        return prune_to_widths(trial.model, trial.widths, p.criterion, seed, gradients)
    mels, frames = c.frontend.n_mels, c.frontend.frames
    return take_step(trial.model, p, stage, trial.sizes[0], mels, frames, c.limits.precision, seed, gradients)


def _clip_losses(trial: Trial, model: Student) -> Iterator[torch.Tensor]:
    """The trial's loss on `prune.importance_clips` training clips, one after another, as they are: not augmented."""
    clips, loss_of = trial.data.train, _loss_of(trial)
    rng = np.random.default_rng([trial.config.training_seed, trial.stage, 0, 1])  # three numbers are an epoch's
    for i in rng.permutation(len(clips.rows))[: trial.config.prune.importance_clips]:
        x = trial.front_end(clips.cache.batch(clips.rows[[i]], trial.device))  # [1, 1, F, T]
        labels = torch.from_numpy(clips.labels[[i]]).to(trial.device)
        teacher = None if clips.teacher is None else clips.teacher[[i]].to(trial.device)
        if trial.teachers:
            teacher = trial.teachers(np.array([i]), Draws(None, None), None).logits
        yield loss_of(model(x), labels, teacher)


def _distils(trial: Trial) -> bool:
    """In retraining, distillation is a choice."""
    return trial.config.distill.taught and (trial.stage == 0 or trial.config.prune.retrain_kd)


def _loss_of(trial: Trial) -> Loss:
    """Of logits `[B, C]`, labels `[B]` and teacher logits `[B, C]`."""
    d, smoothing, distils = trial.config.distill, trial.config.train.label_smoothing, _distils(trial)
    return lambda logits, labels, teacher: kd_loss(
        logits, labels, teacher if distils else None, d.kd_alpha, d.kd_temp, smoothing
    )


def _train_one_epoch(trial: Trial, n_epochs: int) -> EpochResult:
    c = trial.config
    n_steps = c.train.epoch_steps(len(trial.data.train.rows))
    first = trial.epoch * n_steps
    if trial.stage and c.prune.lr_mode == "rewind":
        # Renda et al. 2020, "Comparing Rewinding and Fine-tuning": the end of the dense schedule, at the dense rate;
        # all of it, drawn out, where retraining is longer
        whole = max(c.train.epochs, n_epochs)
        first += (whole - n_epochs) * n_steps
        rate = schedule(c.train, whole * n_steps)
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
        where=f"stage {trial.stage}, epoch {trial.epoch + 1}",
    )
    return train_epoch(trial.model, trial.optimizer, trial.data.train, epoch)


def placed(model: Student, device: torch.device) -> Student:
    """On `device`, in the memory layout that its convolutions are fastest with."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def deploy(model: Student, precision: str) -> Student:
    """The network as shipped: branches fused, parameters rounded to half precision unless fp32 is asked for.

    Arithmetic stays float32 and BN statistics stay as they are; int8 bytes are counted, its rounding is not simulated.
    """
    deployed = model.fuse()
    if precision != "fp32":
        with torch.no_grad():
            for parameter in deployed.parameters():
                parameter.copy_(parameter.half())
    return deployed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def describe_use(config: TrialConfig) -> dict[str, Any]:
    """What a checkpoint needs beside its weights to be used: class names and front-end."""
    return {"classes": list(tau.SCENES), "frontend": asdict(config.frontend)}


def load_trial_data(config: TrialConfig, progress: bool = False, known: DataFingerprint | None = None) -> TrialData:
    """Return the clips with the ensemble's logits (computed where they are not cached yet).

    `known` is the fingerprint that the driver has found for the study's data. Where it is of this configuration's
    clips, their files are not looked at again; DatasetError when what is loaded differs from it.
    """
    if known and not known.describes(config):
        known = None  # the space searches the data's division
    data = load_clips(config, config.frontend.sample_rate, progress, known.sound if known else None)
    if known:
        check_unchanged(known, fingerprint(config, data))
    if not config.distill.taught:
        return data
    if config.distill.mode == "online":
        return replace(data, online=load_online(config, data, progress))
    return replace(data, train=replace(data.train, teacher=ensemble_logits(config, data, progress)))


def data_key(config: TrialConfig) -> str:
    """Equal for configurations whose `load_trial_data` is equal: lets a reused actor keep what it has loaded."""
    flat = config.flat()
    parts = {k: v for k, v in flat.items() if k.startswith("data.") or k in ("frontend.sample_rate", "seed")}
    ensemble = [flat[f"distill.{name}"] for name in ("teacher_ckpts", "ensemble", "teacher_weights", "mode")]
    parts["teachers"] = ensemble if config.distill.taught else None
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
