"""Fine-tune a teacher on the training clips and keep the epoch with the best validation accuracy.

Without validation clips (data.validation_share=0), the last epoch is kept.

`fine_tuned_teacher` trains each teacher only once: the name of a teacher's folder in the cache is a hash of everything
that determines its weights.
"""

import hashlib
import json
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ascmodels.checkpoint import CheckpointError, load_tensors
from ascmodels.teachers import Teacher, build_teacher, parameter_groups, read_extra, save_teacher
from data import tau
from data.cache import cache_key
from data.features import LogMel
from data.files import locked, mend_folder, replace_folder
from data.impulse import impulses_for
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.averages import WeightAverage
from trainables.engine.device import set_up_process, training_device
from trainables.engine.loop import Epoch, TrainingDiverged, predict, train_epoch
from trainables.engine.metrics import measure
from trainables.engine.optimizer import load_state
from trainables.engine.schedule import schedule
from trainables.inputs.clips import Clips, SplitClips, filenames, load_clips, with_enough_epochs
from trainables.teachers.logits import folder_hash, read_manifest

SAVE_EVERY_S = 60  # least time between two saved states of a fine-tuning: at most about this much work is repeated
STATE = "state.pt"
_LOG = logging.getLogger(__name__)
FORMAT = 2  # format version of cached teachers and logits; it is part of the hashes in their names


def fine_tuned_teacher(config: TrialConfig, progress: bool = False, content: str | None = None) -> Path:
    """Return the folder of the teacher that `config.teacher` describes; if it is not cached yet, train it first.

    `content` is the hash of the WAV files (`WaveformCache.content`); None: unknown, the files are hashed. With
    `progress`, progress bars are shown.
    """
    clips = load_clips(config, config.teacher.frontend.sample_rate, progress, content)
    folder = teacher_folder(config, clips)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            config = with_enough_epochs(config, len(clips.train.rows))
            _fine_tune(config, clips.train, clips.validation, folder, teacher_key(config, clips), progress)
    return folder


def teacher_folder(config: TrialConfig, clips: SplitClips) -> Path:
    """Return the path of the cached teacher that `config` describes, fine-tuned on `clips`. It need not exist yet."""
    return Path(config.data.cache_dir) / f"teacher-{teacher_key(config, clips)}"


def teacher_key(config: TrialConfig, clips: SplitClips) -> str:
    """Return a hash of everything that determines the weights of a fine-tuned teacher.

    The hash covers the keys `teacher.*`, the seed, the validation share, the training clips of `clips`, the impulse
    responses, and pretrained weights in a local file or folder. It does not depend on the sample rate of `clips`,
    because a teacher is trained at its own sample rate.
    """
    config = with_enough_epochs(config, len(clips.train.rows))
    described = {k: v for k, v in config.flat().items() if k.startswith(("teacher.", "seed", "data.validation"))}
    waveforms = cache_key(clips.train.cache.content, config.teacher.frontend.sample_rate, config.data.skip_broken)
    described |= {"waveforms": waveforms, "train": clips.train.rows.tolist(), "format": FORMAT}
    impulses = impulses_for(config.teacher.augment, config.teacher.frontend.sample_rate)
    if impulses is not None:  # hash the responses themselves: the files in teacher.augment.dir_dir may change
        described["impulses"] = hashlib.sha256(impulses.numpy().tobytes()).hexdigest()
    source = Path(config.teacher.model.pretrained or "")
    if config.teacher.model.pretrained and source.exists():
        is_file = source.is_file()
        described["pretrained"] = hashlib.sha256(source.read_bytes()).hexdigest() if is_file else folder_hash(source)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _fine_tune(config: TrialConfig, train: Clips, validation: Clips, folder: Path, key: str, progress: bool) -> None:
    """Train a teacher and save its weights of the epoch with the highest validation accuracy to `folder`.

    `key`, the hash from `teacher_key`, is stored in teacher.json. `progress` shows a progress bar. Every `SAVE_EVERY_S`
    seconds, the state of the training is saved in `<folder>.state`; if this process is killed, the next one continues
    from there, with the same result. Raise TrainingDiverged if a loss, gradient or logit is not finite; the weights of
    the best earlier epoch, if there is one, are then saved to `<folder>-diverged`.
    """
    c = config.teacher
    steps = c.train.epoch_steps(len(train.rows))
    try:
        device, rate = training_device(c.train), schedule(c.train, c.train.epochs * steps)
    except ValueError as error:
        raise ConfigError(f"the teacher cannot be fine-tuned: teacher.{error}") from error
    set_up_process(c.train.threads)
    front_end = LogMel(c.frontend).to(device)
    impulses = impulses_for(c.augment, c.frontend.sample_rate, device)
    smoothing = c.train.label_smoothing
    extra: dict[str, Any] = {"key": key, "classes": list(tau.SCENES), "frontend": asdict(c.frontend)}
    extra |= {"validation": validation_hash(validation), "n_train": len(train.rows), "epochs": c.train.epochs}
    extra["val_macro_avg_acc"] = None
    saved = folder.with_name(f"{folder.name}.state")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # for dropout, patchout
        run = _restored(config, device, extra, saved) or _FineTuning(config, device, extra)
        last_save = time.monotonic()
        with tqdm(total=c.train.epochs, initial=run.epochs, desc="teacher", unit="epoch", disable=not progress) as bar:
            for epoch in range(run.epochs, c.train.epochs):
                first = epoch * steps
                described = Epoch(
                    front_end,
                    c.augment,
                    c.train,
                    lambda logits, labels, _: F.cross_entropy(logits, labels, label_smoothing=smoothing),
                    lambda i, first=first: rate(first + i),
                    np.random.default_rng([config.seed, epoch]),
                    impulses=impulses,
                    after_step=(lambda i, first=first: run.after_step(first + i)) if run.average else None,
                    where=f"teacher, epoch {epoch + 1}",
                )
                try:
                    loss = train_epoch(run.teacher, run.optimizer, train, described).loss
                    accuracy = _accuracy(run.kept, validation, front_end, epoch) if len(validation.rows) else None
                except TrainingDiverged as error:
                    _remove(saved)
                    if not run.best:
                        raise TrainingDiverged(f"{error}; fine-tune again with a lower teacher.train.lr") from error
                    diverged = folder.with_name(f"{folder.name}-diverged")
                    run.save_best(diverged)
                    raise TrainingDiverged(
                        f"{error}; the best earlier epoch, number {run.extra['epoch']}, is saved in {diverged}: use "
                        "this teacher, or fine-tune again with a lower teacher.train.lr"
                    ) from error
                run.end_epoch(accuracy)
                if time.monotonic() - last_save >= SAVE_EVERY_S and run.epochs < c.train.epochs:
                    replace_folder(saved, run.save_state)
                    last_save = time.monotonic()
                measured = {} if accuracy is None else {"val_macro_avg_acc": f"{accuracy:.3f}"}
                bar.set_postfix({"loss": f"{loss:.3f}", **measured})
                bar.update()
    run.save_best(folder)
    _remove(saved)


class _FineTuning:
    """A fine-tuning after `epochs` epochs: the teacher, its optimiser, its averaged weights, and the best weights.

    `kept` is the network that is measured and saved. `extra` has the entries of teacher.json, among them the accuracy
    and the number of the best epoch.
    """

    def __init__(self, config: TrialConfig, device: torch.device, extra: dict[str, Any]):
        c = config.teacher
        torch.manual_seed(config.seed)
        self.teacher = build_teacher(c.model, len(tau.SCENES), c.frontend.n_mels, c.frontend.frames).to(device)
        groups = parameter_groups(self.teacher, c.lr_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=c.train.weight_decay)
        self.average = WeightAverage(self.teacher, c.train.ema_decay) if c.train.ema_decay else None
        kept = self.average.network if self.average else self.teacher
        assert isinstance(kept, Teacher)
        self.kept, self.device, self.epochs, self.extra = kept, device, 0, dict(extra)
        self.best: dict[str, torch.Tensor] = {}

    def after_step(self, step: int) -> None:
        if self.average:
            self.average.update(self.teacher, step)

    def end_epoch(self, accuracy: float | None) -> None:
        """Count an epoch, and keep its weights if no earlier epoch has a higher `accuracy` (None: not measured)."""
        self.epochs += 1
        best = self.extra["val_macro_avg_acc"]
        if accuracy is None or best is None or accuracy > best:
            self.extra |= {"val_macro_avg_acc": accuracy, "epoch": self.epochs}
            self.best = {k: v.detach().cpu().clone() for k, v in self.kept.state_dict().items()}

    def save_best(self, folder: Path) -> None:
        """Save the weights of the best epoch to `folder`. The training cannot be continued afterwards."""
        self.kept.load_state_dict(self.best)
        save_teacher(folder, self.kept.cpu(), self.extra)

    def save_state(self, folder: Path) -> None:
        on_gpu = self.device.type == "cuda"
        state = {
            "epochs": self.epochs,
            "extra": json.dumps(self.extra),
            "teacher": self.teacher.state_dict(),
            "average": self.average.network.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if on_gpu else None,
        }
        torch.save(state, folder / STATE)

    def load_state(self, folder: Path) -> None:
        """Restore what `save_state` wrote. Raise CheckpointError, KeyError, RuntimeError, TypeError or ValueError if it
        does not fit."""
        state = load_tensors(folder / STATE)
        extra = json.loads(state["extra"])
        if extra["key"] != self.extra["key"] or not 0 < state["epochs"] < extra["epochs"] == self.extra["epochs"]:
            raise ValueError(f"epochs={state['epochs']}, key={extra['key']}")
        self.kept.load_state_dict(state["best"])  # raises if they do not fit
        self.teacher.load_state_dict(state["teacher"])
        if self.average:
            self.average.network.load_state_dict(state["average"])
        load_state(self.optimizer, state["optimizer"])
        self.epochs, self.extra, self.best = state["epochs"], extra, state["best"]
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)


def _restored(config: TrialConfig, device: torch.device, extra: dict[str, Any], saved: Path) -> _FineTuning | None:
    """Return the fine-tuning whose state a killed process saved in the folder `saved`; None: no valid state."""
    mend_folder(saved)
    if not saved.is_dir():
        return None
    run = _FineTuning(config, device, extra)
    try:
        run.load_state(saved)
    except (CheckpointError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        _LOG.warning("the saved state of a fine-tuning, %s, cannot be used (%s): it starts again", saved, reason)
        return None
    return run


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def _accuracy(teacher: torch.nn.Module, validation: Clips, front_end: LogMel, epoch: int) -> float:
    logits = predict(teacher, validation, front_end)
    if not logits.isfinite().all():
        n_broken = int((~logits.isfinite().all(dim=1)).sum())
        raise TrainingDiverged(
            f"teacher, epoch {epoch + 1}: the logits of {n_broken} of {len(logits)} validation clips are not finite; "
            "expected finite numbers: the training has diverged"
        )
    return measure(logits.numpy(), validation.labels, validation.devices).macro_avg_acc


def quiet_transformers() -> None:
    """Turn off the progress bars of the `transformers` package: the bars of asc-tune show the remaining time."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def validation_hash(validation: Clips) -> str:
    """Return a hash of the filenames of the validation clips; teacher.json and logits files record it.

    If the hashes of a teacher and a student differ, so do their validation clips, and the teacher may have been trained
    on validation clips of the student.
    """
    return hashlib.sha256("\n".join(sorted(filenames(validation))).encode()).hexdigest()[:16]


def teacher_summary(source: Path) -> dict[str, object]:
    """Return name, validation accuracy (None: not measured) and a hash of the validation clips of the teacher `source`.

    `source` is a folder or a logits file. The keys are `name`, `val_macro_avg_acc` and `validation` (the result of
    `validation_hash`). Raise CheckpointError if one of them is not stored.
    """
    extra = read_manifest(source) if source.is_file() else read_extra(source) | {"teacher": source.name}
    try:
        return {
            "name": extra["teacher"],
            "val_macro_avg_acc": extra["val_macro_avg_acc"],
            "validation": extra["validation"],
        }
    except KeyError as error:
        raise CheckpointError(
            f"teacher {source} has no key {error}; expected the keys teacher, val_macro_avg_acc and validation: use a "
            "folder that trainables/finetune_teacher.py wrote, or a logits file that trainables/cache_logits.py wrote"
        ) from error
