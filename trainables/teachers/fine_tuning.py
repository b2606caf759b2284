"""Fine-tune a teacher on the training clips and keep the epoch with the best validation accuracy.

`fine_tuned_teacher` trains each teacher only once: the name of a teacher's folder in the cache is a hash of everything
that determines its weights.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ascmodels.checkpoint import CheckpointError
from ascmodels.teachers import Teacher, build_teacher, parameter_groups, read_extra, save_teacher
from data import tau
from data.cache import cache_key
from data.features import LogMel
from data.files import locked
from data.impulse import impulses_for
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.device import set_up_process, training_device
from trainables.engine.loop import Epoch, TrainingDiverged, WeightAverage, predict, train_epoch
from trainables.engine.metrics import measure
from trainables.engine.schedule import schedule
from trainables.inputs.clips import Clips, SplitClips, filenames, load_clips, with_enough_epochs
from trainables.teachers.logits import folder_hash, read_manifest

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

    `key`, the hash from `teacher_key`, is stored in teacher.json. `progress` shows a progress bar. Raise
    TrainingDiverged if a loss, gradient or logit is not finite; the weights of the best earlier epoch, if there is one,
    are then saved to `<folder>-diverged`.
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
    extra["val_macro_avg_acc"] = -1.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # for dropout, patchout
        torch.manual_seed(config.seed)
        teacher = build_teacher(c.model, len(tau.SCENES), c.frontend.n_mels, c.frontend.frames).to(device)
        groups = parameter_groups(teacher, c.lr_decay)
        optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=c.train.weight_decay)
        average = WeightAverage(teacher, c.train.ema_decay) if c.train.ema_decay else None
        kept = average.network if average else teacher  # the network that is measured and saved
        assert isinstance(kept, Teacher)
        best_state: dict[str, torch.Tensor] = {}
        with tqdm(range(c.train.epochs), desc="teacher", unit="epoch", disable=not progress) as bar:
            for epoch in bar:
                first = epoch * steps
                described = Epoch(
                    front_end,
                    c.augment,
                    c.train,
                    lambda logits, labels, _: F.cross_entropy(logits, labels, label_smoothing=smoothing),
                    lambda i, first=first: rate(first + i),
                    np.random.default_rng([config.seed, epoch]),
                    impulses=impulses,
                    after_step=(lambda i, first=first: average.update(teacher, first + i)) if average else None,
                    where=f"teacher, epoch {epoch + 1}",
                )
                try:
                    loss = train_epoch(teacher, optimizer, train, described).loss
                    accuracy = _accuracy(kept, validation, front_end, epoch)
                except TrainingDiverged as error:
                    if not best_state:
                        raise TrainingDiverged(f"{error}; fine-tune again with a lower teacher.train.lr") from error
                    diverged = folder.with_name(f"{folder.name}-diverged")
                    kept.load_state_dict(best_state)
                    save_teacher(diverged, kept.cpu(), extra)
                    raise TrainingDiverged(
                        f"{error}; the best earlier epoch, number {extra['epoch']}, is saved in {diverged}: use this "
                        "teacher, or fine-tune again with a lower teacher.train.lr"
                    ) from error
                if accuracy > extra["val_macro_avg_acc"]:
                    extra |= {"val_macro_avg_acc": accuracy, "epoch": epoch + 1}
                    best_state = {k: v.detach().cpu().clone() for k, v in kept.state_dict().items()}
                bar.set_postfix(loss=f"{loss:.3f}", val_macro_avg_acc=f"{accuracy:.3f}")
    kept.load_state_dict(best_state)
    save_teacher(folder, kept.cpu(), extra)


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
    """Return name, validation accuracy and a hash of the validation clips of the teacher `source`.

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
