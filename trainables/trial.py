"""One trial, without Ray: train the dense student, then prune and retrain step by step, measuring each network.

    trial = Trial(config, load_trial_data(config), folder)
    for record in run_trial(trial): ...

`run_trial` goes on from wherever `trial` stands, so restoring is `load_state` and driving the generator again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ascmodels import checkpoint
from ascmodels.checkpoint import CheckpointError
from ascmodels.nessi import BYTES_PER_PARAMETER, get_deployed_size, size_bytes
from ascmodels.pruning import prune, schedule_sizes
from ascmodels.students import Student
from data import tau
from data.cache import open_cache
from data.features import LogMel
from data.holdout import hold_out
from trainables.config import TrialConfig
from trainables.distill import ensemble, kd_loss
from trainables.loop import Clips, learning_rate, pick_device, predict, set_up_process, train_epoch
from trainables.metrics import measure
from trainables.records import Point, Record, point_dict


@dataclass(frozen=True)
class TrialData:
    """Both parts of the training split, ready to be drawn from; `notes` say what was peculiar about the data."""

    train: Clips
    validation: Clips
    notes: tuple[str, ...]


class Trial:
    """The state of one trial: where it stands (stage, epoch), its network, its optimiser, its points so far.

    `folder` receives the deployed network of each point. Everything that can be refused is refused here, before any
    training: sizes that cannot be measured, ratios that empty a layer, a missing device.
    """

    def __init__(self, config: TrialConfig, data: TrialData, folder: Path):
        self.config, self.data, self.folder = config, data, folder
        if data.train.teacher is None and config.distill.kd_alpha < 1:
            raise ValueError(
                f"distill.kd_alpha={config.distill.kd_alpha} needs teacher logits and none were given; "
                "set kd_alpha to 1 to train without a teacher"
            )
        self.sizes = schedule_sizes(config.student, config.prune, config.frontend.n_mels, config.frontend.frames)
        set_up_process(config.train.threads)
        self.device = pick_device(config.train.device)
        self.front_end = LogMel(config.frontend).to(self.device)
        self.stage = self.epoch = self.epochs = 0
        self.points: list[Point] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = Student(config.student, len(tau.SCENES))
        self.optimizer: torch.optim.Optimizer | None = None
        self._place()

    @property
    def n_stages(self) -> int:
        return 1 + len(self.config.prune.ratios)

    def stage_epochs(self) -> int:
        return self.config.prune.epochs if self.stage else self.config.train.epochs

    def start_stage(self) -> None:
        """Prune (except before the dense stage) and begin with a fresh optimiser."""
        if not self.stage:
            for stale in self.folder.glob("step*"):  # of a trial of this name that a crash made Ray forget
                shutil.rmtree(stale)
        else:
            p = self.config.prune
            self.model = prune(self.model, p.ratios[self.stage - 1], p.criterion, p.round_to, self.config.seed)
            self._place()
        self.optimizer = self._new_optimizer()

    def save(self, folder: Path) -> None:
        """The whole state: the network with its architecture, the optimiser, the position, the points."""
        checkpoint.save_student(folder / "student", self.model, describe_use(self.config))
        state = {
            "config": json.dumps(self.config.flat()),
            "position": [self.stage, self.epoch, self.epochs],
            "points": json.dumps([point_dict(p) for p in self.points]),
            "optimizer": self.optimizer.state_dict() if self.optimizer and self.epoch else None,
        }
        torch.save(state, folder / "trial.pt")

    def load(self, folder: Path) -> None:
        """Go on where `save` was called; CheckpointError for another architecture or a damaged file."""
        state = checkpoint.load_tensors(folder / "trial.pt")
        student, _ = checkpoint.load_student(folder / "student", expected=self.config.student)
        differing = _differences(json.loads(state["config"]), self.config.flat())
        if differing:
            raise CheckpointError(f"{folder} belongs to another configuration: {differing}")
        self.model = student
        self._place()
        self.stage, self.epoch, self.epochs = state["position"]
        self.points = [Point(**p) for p in json.loads(state["points"])]
        if state["optimizer"] is not None:
            self.optimizer = self._new_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])

    def _place(self) -> None:
        self.model = self.model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1.0, weight_decay=self.config.train.weight_decay)


def run_trial(trial: Trial) -> Iterator[Record]:
    """Train, measure, prune, retrain, measure ...: one record after each epoch, a point at the end of each stage."""
    c, data = trial.config, trial.data
    while trial.stage < trial.n_stages:
        if trial.epoch == 0:
            trial.start_stage()
        started = time.perf_counter()
        n_epochs = trial.stage_epochs()
        train_loss = _train_one_epoch(trial, n_epochs)
        trial.epoch += 1
        trial.epochs += 1

        deployed = deploy(trial.model, c.limits.precision)  # what is measured is what would be shipped
        logits = predict(deployed, data.validation, trial.front_end).numpy()
        metrics = measure(logits, data.validation.labels, data.validation.devices)
        macs, params = trial.sizes[trial.stage]
        sparsity = 1 - params / trial.sizes[0][1]
        stage, epoch, point = trial.stage, trial.epoch, None
        if trial.epoch == n_epochs:
            measured = get_deployed_size(trial.model, c.frontend.n_mels, c.frontend.frames)
            if measured != (macs, params):
                raise RuntimeError(f"measured {measured} MACs and params, expected {(macs, params)} from the schedule")
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
            )
            extra = describe_use(c) | {"point": point_dict(point)}
            checkpoint.save_student(trial.folder / point.checkpoint, deployed, extra)
            trial.points.append(point)
            trial.stage, trial.epoch, trial.optimizer = stage + 1, 0, None
        yield Record(
            stage=stage,
            epoch=epoch,
            epochs=trial.epochs,
            train_loss=train_loss,
            val_loss=metrics.loss,
            val_macro_avg_acc=metrics.macro_avg_acc,
            macs=macs,
            params=params,
            sparsity=sparsity,
            seconds=time.perf_counter() - started,
            point=point,
            finished=trial.stage == trial.n_stages,
        )


def _train_one_epoch(trial: Trial, n_epochs: int) -> float:
    c = trial.config
    peak = c.prune.lr if trial.stage else c.train.lr
    epoch_steps = -(-len(trial.data.train.rows) // c.train.batch_size)
    first = trial.epoch * epoch_steps
    assert trial.optimizer is not None
    return train_epoch(
        trial.model,
        trial.optimizer,
        trial.data.train,
        trial.front_end,
        c.augment,
        lambda logits, labels, teacher: kd_loss(logits, labels, teacher, c.distill.kd_alpha, c.distill.kd_temp),
        lambda step: learning_rate(first + step, n_epochs * epoch_steps, peak, c.train.warmup),
        c.train.batch_size,
        np.random.default_rng([c.seed, trial.stage, trial.epoch]),
    )


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


def read_parts(config: TrialConfig):
    """The training split divided into training and validation clips (`holdout.HoldOut`), and the data set's root."""
    root = tau.dataset_root(config.data.dataset_dir)
    split = tau.read_split(
        root, f"split{config.data.subset}", config.data.split_dir, Path(config.data.cache_dir) / "split_setup"
    )
    return root, hold_out(split, config.data.validation_share, config.seed)


def load_clips(config: TrialConfig, sample_rate: int, progress: bool = False) -> TrialData:
    """Both parts at `sample_rate` Hz, without teacher logits."""
    root, parts = read_parts(config)
    names = [*parts.train.filename, *parts.validation.filename]
    cache_dir = Path(config.data.cache_dir)
    cache = open_cache(root, names, sample_rate, cache_dir, config.data.skip_broken, progress)

    def clips(table) -> Clips:
        table = table[~table.filename.isin(list(cache.skipped))]
        return Clips(cache, cache.rows(list(table.filename)), table.label.to_numpy(), table.device.to_numpy(dtype=str))

    parts_clips = clips(parts.train), clips(parts.validation)
    for part, name in zip(parts_clips, ("training", "validation"), strict=True):
        check_all_scenes(part, name)
    notes = parts.notes + tuple(f"left out: {reason}" for reason in cache.skipped.values())
    return TrialData(*parts_clips, notes)


def check_all_scenes(clips: Clips, part: str) -> None:
    """DatasetError when leaving out broken clips has emptied a scene: a mean over nine classes is another metric."""
    absent = [scene for label, scene in enumerate(tau.SCENES) if label not in clips.labels]
    if absent:
        raise tau.DatasetError(f"the {part} part has no readable clip of scene {', '.join(absent)}")


def load_trial_data(config: TrialConfig, progress: bool = False) -> TrialData:
    """The clips with the ensemble's logits (computed where they are not cached yet)."""
    from trainables.teachers import teacher_logits  # it builds on this file

    data = load_clips(config, config.frontend.sample_rate, progress)
    if config.distill.kd_alpha == 1:
        return data
    filenames = [data.train.cache.filenames[row] for row in data.train.rows]
    logits = [teacher_logits(config, Path(folder), filenames, progress) for folder in config.distill.teacher_ckpts]
    if not logits:
        raise ValueError("distill.teacher_ckpts names no teacher; fine-tune one, or set distill.kd_alpha=1")
    return replace(data, train=replace(data.train, teacher=ensemble(logits)))


def data_key(config: TrialConfig) -> str:
    """Equal for configurations whose `load_trial_data` is equal: lets a reused actor keep what it has loaded."""
    flat = config.flat()
    parts = {k: v for k, v in flat.items() if k.startswith("data.") or k in ("frontend.sample_rate", "seed")}
    parts["teachers"] = None if config.distill.kd_alpha == 1 else flat["distill.teacher_ckpts"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    return "; ".join(f"{k}: {old.get(k)} there, {new.get(k)} here" for k in new if old.get(k) != new.get(k))
