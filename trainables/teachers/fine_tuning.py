"""Teachers: fine-tune one on the training part, keep its best epoch on validation, cache its logits by filename.

folder = fine_tuned_teacher(config)                       # content-addressed: trained once
logits = teacher_logits(config, folder, filenames)        # [N, C], computed once
logits = ensemble_logits(config, data)                    # [N, C] of all of `distill.teacher_ckpts`
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ascmodels.checkpoint import CheckpointError
from ascmodels.teachers import Teacher, build_teacher, load_teacher, parameter_groups, read_extra, save_teacher
from data import tau
from data.cache import cache_key
from data.features import FrontEndConfig, LogMel
from data.files import locked
from data.impulse import impulses_for
from trainables.config.schema import ConfigError, TrialConfig
from trainables.config.train import pick_device, schedule, set_up_process, training_device
from trainables.engine.loop import Clips, Epoch, TrainingDiverged, WeightAverage, predict, train_epoch
from trainables.engine.losses import folder_hash, load_logits, read_manifest, save_logits
from trainables.engine.metrics import measure
from trainables.inputs.clips import TrialData, filenames, load_clips, with_enough_epochs
from trainables.teachers.ensemble import combine, greedy

FORMAT = 2
_FACTS = ("classes", "frontend", "validation", "val_macro_avg_acc")  # of teacher.json, needed to use a teacher
_CHUNK = 1024  # clips predicted between two steps of the progress bar; a multiple of `predict`'s batch


def fine_tuned_teacher(config: TrialConfig, progress: bool = False, content: str | None = None) -> Path:
    """Return the folder of the teacher that `config.teacher` describes, trained first where it is not cached yet; for
    `content` see `open_cache`."""
    clips = load_clips(config, config.teacher.frontend.sample_rate, progress, content)
    folder = teacher_folder(config, clips)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            config = with_enough_epochs(config, len(clips.train.rows))
            _fine_tune(config, clips.train, clips.validation, folder, teacher_key(config, clips), progress)
    return folder


def teacher_folder(config: TrialConfig, clips: TrialData) -> Path:
    """Return where the fine-tuned teacher of `config` and `clips` is cached, whether it is there yet or not."""
    return Path(config.data.cache_dir) / f"teacher-{teacher_key(config, clips)}"


def teacher_key(config: TrialConfig, clips: TrialData) -> str:
    """Return a key that is equal for configurations and clips that give the same teacher. `clips` may be at any sample
    rate: the teacher's own is part of the key."""
    config = with_enough_epochs(config, len(clips.train.rows))
    described = {k: v for k, v in config.flat().items() if k.startswith(("teacher.", "seed", "data.validation"))}
    waveforms = _waveforms(config, config.teacher.frontend, clips.train.cache.content)
    described |= {"waveforms": waveforms, "train": clips.train.rows.tolist(), "format": FORMAT}
    impulses = impulses_for(config.teacher.augment, config.teacher.frontend.sample_rate)
    if impulses is not None:  # the folder's content may change
        described["impulses"] = hashlib.sha256(impulses.numpy().tobytes()).hexdigest()
    source = Path(config.teacher.model.pretrained or "")
    if config.teacher.model.pretrained and source.exists():
        is_file = source.is_file()
        described["pretrained"] = hashlib.sha256(source.read_bytes()).hexdigest() if is_file else folder_hash(source)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _fine_tune(config: TrialConfig, train: Clips, validation: Clips, folder: Path, key: str, progress: bool) -> None:
    c = config.teacher
    steps = c.train.epoch_steps(len(train.rows))
    try:
        device, rate = training_device(c.train), schedule(c.train, c.train.epochs * steps)
    except ValueError as error:
        raise ConfigError(f"teacher.{error}") from error
    set_up_process(c.train.threads)
    front_end = LogMel(c.frontend).to(device)
    impulses = impulses_for(c.augment, c.frontend.sample_rate, device)
    smoothing = c.train.label_smoothing
    extra: dict[str, Any] = {"key": key, "classes": list(tau.SCENES), "frontend": asdict(c.frontend)}
    extra |= {"validation": validation_hash(validation), "n_train": len(train.rows), "epochs": c.train.epochs}
    extra["val_macro_avg_acc"] = -1.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout and patchout draw from it
        torch.manual_seed(config.seed)
        teacher = build_teacher(c.model, len(tau.SCENES), c.frontend.n_mels, c.frontend.frames).to(device)
        groups = parameter_groups(teacher, c.lr_decay)
        optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=c.train.weight_decay)
        average = WeightAverage(teacher, c.train.ema_decay) if c.train.ema_decay else None
        kept = average.network if average else teacher  # what is measured and saved
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
                        raise
                    diverged = folder.with_name(f"{folder.name}-diverged")
                    kept.load_state_dict(best_state)
                    save_teacher(diverged, kept.cpu(), extra)
                    raise TrainingDiverged(f"{error}; epoch {extra['epoch']} is kept in {diverged}") from error
                if accuracy > extra["val_macro_avg_acc"]:
                    extra |= {"val_macro_avg_acc": accuracy, "epoch": epoch + 1}
                    best_state = {k: v.detach().cpu().clone() for k, v in kept.state_dict().items()}
                bar.set_postfix(loss=f"{loss:.3f}", val_macro_avg_acc=f"{accuracy:.3f}")
    kept.load_state_dict(best_state)
    save_teacher(folder, kept.cpu(), extra)


def _accuracy(teacher: torch.nn.Module, validation: Clips, front_end: LogMel, epoch: int) -> float:
    logits = predict(teacher, validation, front_end)
    if not logits.isfinite().all():
        raise TrainingDiverged(f"teacher, epoch {epoch + 1}: its logits on validation are not finite")
    return measure(logits.numpy(), validation.labels, validation.devices).macro_avg_acc


def teacher_logits(
    config: TrialConfig,
    source: Path,
    filenames: Sequence[str],
    progress: bool = False,
    content: str | None = None,
) -> torch.Tensor:
    """Return the logits `[len(filenames), C]` of a teacher: of its folder (computed once) or of a logits file.

    For `content` see `open_cache`. CheckpointError for a teacher of other classes, or when a file has no logits.
    """
    path = source if source.is_file() else logits_file(config, source, progress, content)
    return load_logits(path, filenames, tau.SCENES)


def logits_file(config: TrialConfig, folder: Path, progress: bool = False, content: str | None = None) -> Path:
    """Return the file of the logits of the teacher in `folder` for both parts of the training split, computed where
    they are not cached yet; key: checkpoint, waveforms, front-end. For `content` see `open_cache`."""
    if content is not None and (path := logits_path(config, folder, content)).is_file():
        return path
    extra = _teacher_facts(folder)
    front_end = FrontEndConfig(**extra["frontend"])
    clips = load_clips(config, front_end.sample_rate, progress, content).train
    names = clips.cache.filenames
    manifest = {
        "format": FORMAT,
        "teacher": folder.name,
        "checkpoint": folder_hash(folder),
        "waveforms": clips.cache.key,
        **{key: extra[key] for key in _FACTS},
    }
    path = logits_path(config, folder, clips.cache.content)
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            try:
                device = pick_device(config.teacher.train.device)
            except ValueError as error:
                raise ConfigError(f"teacher.{error}") from error
            teacher, log_mel = load_teacher(folder, tau.SCENES)[0].to(device), LogMel(front_end).to(device)
            parts = []
            with tqdm(total=len(names), desc=folder.name, unit="clip", disable=not progress) as bar:
                for start in range(0, len(names), _CHUNK):
                    rows = np.arange(start, min(start + _CHUNK, len(names)))
                    parts.append(predict(teacher, replace(clips, rows=rows), log_mel))
                    bar.update(len(rows))
            save_logits(path, names, torch.cat(parts), manifest)
    return path


def logits_path(config: TrialConfig, folder: Path, content: str) -> Path:
    """Return where the logits of the teacher in `folder` for clips of this content digest are cached, whether they are
    there yet or not."""
    extra = _teacher_facts(folder)
    waveforms = _waveforms(config, FrontEndConfig(**extra["frontend"]), content)
    text = f"{FORMAT} {folder_hash(folder)} {waveforms} {extra['frontend']}"
    return Path(config.data.cache_dir) / f"logits-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


def _teacher_facts(folder: Path) -> dict[str, Any]:
    extra = read_extra(folder)
    if not set(_FACTS) <= set(extra):
        raise CheckpointError(
            f"{folder / 'teacher.json'} lacks some of {', '.join(_FACTS)}: fine-tune the teacher again"
        )
    return extra


def _waveforms(config: TrialConfig, front_end: FrontEndConfig, content: str) -> str:
    """Return the key of the waveform cache that a teacher's front-end reads."""
    return cache_key(content, front_end.sample_rate, config.data.skip_broken)


def ensemble_logits(config: TrialConfig, data: TrialData, progress: bool = False) -> torch.Tensor:
    """Logits `[N, C]` for the training clips: what `distill.ensemble` makes of `distill.teacher_ckpts`."""
    weights, sources = ensemble_weights(config, data, progress), map(Path, config.distill.teacher_ckpts)
    names, content = filenames(data.train), data.train.cache.content
    heard = [teacher_logits(config, source, names, progress, content) for source in sources]
    return combine(heard, config.distill.ensemble, weights)


def ensemble_weights(config: TrialConfig, data: TrialData, progress: bool = False) -> tuple[float, ...]:
    """One a teacher of `distill.teacher_ckpts`, none for equal ones; chosen on validation where that is asked for."""
    d = config.distill
    if not d.teacher_ckpts:
        raise ValueError("distill.teacher_ckpts names no teacher; fine-tune one, or set distill.kd_alpha=1")
    if d.ensemble != "greedy":
        return d.teacher_weights
    sources = map(Path, d.teacher_ckpts)
    names, content = filenames(data.validation), data.validation.cache.content
    held_out = [teacher_logits(config, source, names, progress, content) for source in sources]
    return greedy(held_out, data.validation.labels).weights


def quiet_transformers() -> None:
    """No progress bars of `transformers`: ours tell more."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def validation_hash(validation: Clips) -> str:
    """Of the clips held out: a teacher that was fine-tuned on another division may have learnt from them."""
    return hashlib.sha256("\n".join(sorted(filenames(validation))).encode()).hexdigest()[:16]


def teacher_summary(source: Path) -> dict[str, object]:
    """Name and validation accuracy of a teacher, for manifests and reports."""
    extra = read_manifest(source) if source.is_file() else read_extra(source) | {"teacher": source.name}
    try:
        return {
            "name": extra["teacher"],
            "val_macro_avg_acc": extra["val_macro_avg_acc"],
            "validation": extra["validation"],
        }
    except KeyError as error:
        raise CheckpointError(f"{source} does not tell the teacher's {error}: make it with cache_logits.py") from error
