"""Compute the logits of teachers for the clips of a split, cache them, and combine them into those of an ensemble.

A teacher is given as a folder that finetune_teacher.py wrote, or as a logits file (trainables/teachers/logits.py).
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ascmodels.checkpoint import CheckpointError
from ascmodels.teachers import load_teacher, read_extra
from data import tau
from data.cache import cache_key
from data.config.frontend import FrontEndConfig
from data.features import LogMel
from data.files import locked
from data.untrusted import printable
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.device import pick_device
from trainables.engine.loop import predict
from trainables.inputs.clips import SplitClips, check_validated, filenames, load_clips
from trainables.teachers.ensemble import combine, greedy
from trainables.teachers.fine_tuning import FORMAT
from trainables.teachers.logits import folder_hash, load_logits, read_manifest, save_logits

_FACTS = ("classes", "frontend", "validation", "val_macro_avg_acc")  # required keys of teacher.json
_LOG = logging.getLogger(__name__)
_CHUNK = 1024  # clips between two steps of the progress bar; a multiple of the batch size of `predict`


def teacher_logits(
    config: TrialConfig,
    source: Path,
    filenames: Sequence[str],
    progress: bool = False,
    content: str | None = None,
) -> torch.Tensor:
    """Return the logits `[len(filenames), C]` of the teacher `source` for the clips with these `filenames`.

    `source` is a logits file or a teacher's folder. The logits of a teacher's folder are computed and cached at the
    first call (with progress bars, if `progress`). `config` names the data set, the cache folder and the teacher's
    device. `content` is the hash of the WAV files (`WaveformCache.content`); None: unknown, the files are hashed.
    Raise CheckpointError if the teacher has other classes than `tau.SCENES`, or if a clip has no logits.
    """
    path = source if source.is_file() else logits_file(config, source, progress, content)
    return load_logits(path, filenames, tau.SCENES)


def logits_file(config: TrialConfig, folder: Path, progress: bool = False, content: str | None = None) -> Path:
    """Return the path of the cached logits of the teacher in `folder` for the training and validation clips.

    If the file does not exist or is damaged, the logits are computed and saved (with progress bars, if `progress`). Its
    name contains a hash of the teacher's checkpoint, the waveforms and the teacher's front-end. `config` names the data
    set, the cache folder and the teacher's device. `content` is the hash of the WAV files (`WaveformCache.content`);
    None: unknown, the files are hashed.
    """
    if content is not None and _is_valid(path := logits_path(config, folder, content)):
        return path
    extra = _teacher_facts(folder)
    front_end = teacher_front_end(folder, extra)
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
        if not _is_valid(path):
            try:
                device = pick_device(config.teacher.train.device)
            except ValueError as error:
                raise ConfigError(f"the logits of teacher {folder} cannot be computed: teacher.{error}") from error
            teacher, log_mel = load_teacher(folder, tau.SCENES)[0].to(device), LogMel(front_end).to(device)
            parts = []
            with tqdm(total=len(names), desc=printable(folder.name), unit="clip", disable=not progress) as bar:
                for start in range(0, len(names), _CHUNK):
                    rows = np.arange(start, min(start + _CHUNK, len(names)))
                    parts.append(predict(teacher, replace(clips, rows=rows), log_mel))
                    bar.update(len(rows))
            save_logits(path, names, torch.cat(parts), manifest)
    return path


def _is_valid(path: Path) -> bool:
    """Return whether the logits file `path` exists and can be used; if it is damaged, log a warning."""
    if not path.is_file():
        return False
    try:
        load_logits(path, None, tau.SCENES)
        return True
    except CheckpointError as error:
        _LOG.warning("%s; the cached logits are computed again now", printable(str(error)))
        return False


def logits_path(config: TrialConfig, folder: Path, content: str) -> Path:
    """Return the path at which the logits of the teacher in `folder` are cached. The file need not exist yet.

    The path is in the cache folder of `config`. `content` is the hash of the clips' WAV files
    (`WaveformCache.content`).
    """
    extra = _teacher_facts(folder)
    waveforms = cache_key(content, teacher_front_end(folder, extra).sample_rate, config.data.skip_broken)
    text = f"{FORMAT} {folder_hash(folder)} {waveforms} {extra['frontend']}"
    return Path(config.data.cache_dir) / f"logits-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


def teacher_front_end(folder: Path, extra: Mapping[str, Any]) -> FrontEndConfig:
    """Return the front-end of the teacher in `folder` from `extra`, the content of its teacher.json."""
    try:
        return FrontEndConfig(**extra["frontend"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'teacher.json'} has an invalid key frontend ({error}); expected the keys of teacher.frontend: "
            "fine-tune the teacher again with python trainables/finetune_teacher.py"
        ) from error


def _teacher_facts(folder: Path) -> dict[str, Any]:
    extra = read_extra(folder)
    if not set(_FACTS) <= set(extra):
        raise CheckpointError(
            f"{folder / 'teacher.json'} has no key {', '.join(f for f in _FACTS if f not in extra)}; expected the keys "
            f"{', '.join(_FACTS)}: fine-tune the teacher again with python trainables/finetune_teacher.py"
        )
    return extra


def ensemble_logits(config: TrialConfig, data: SplitClips, progress: bool = False) -> torch.Tensor:
    """Return the logits `[N, C]` of the ensemble of the teachers `distill.teacher_ckpts` for the clips `data.train`.

    The logits of each teacher are computed if they are not cached (with progress bars, if `progress`).
    """
    weights, sources = ensemble_weights(config, data, progress), map(Path, config.distill.teacher_ckpts)
    names, content = filenames(data.train), data.train.cache.content
    logits = [teacher_logits(config, source, names, progress, content) for source in sources]
    return combine(logits, config.distill.ensemble, weights)


def ensemble_weights(config: TrialConfig, data: SplitClips, progress: bool = False) -> tuple[float, ...]:
    """Return one weight for each teacher of `distill.teacher_ckpts`, or an empty tuple for equal weights.

    With distill.ensemble=greedy, the weights are chosen for the best accuracy on the validation clips of `data`; the
    teachers' logits are computed if they are not cached (with progress bars, if `progress`). Otherwise, the weights are
    distill.teacher_weights. Raise ValueError if distill.teacher_ckpts is empty.
    """
    d = config.distill
    if not d.teacher_ckpts:
        raise ValueError(
            "distill.teacher_ckpts names no teacher; expected at least one: fine-tune one with "
            "python trainables/finetune_teacher.py, or set distill.kd_alpha=1 to train without a teacher"
        )
    if d.ensemble != "greedy":
        return d.teacher_weights
    check_validated(config, "distill.ensemble=greedy chooses the weights of the teachers on validation clips")
    sources = [Path(source) for source in d.teacher_ckpts]
    for source in sources:
        if source.is_file() and read_manifest(source).get("imported"):
            raise ConfigError(
                f"distill.ensemble=greedy chooses the weights of the teachers on the validation clips, but {source} "
                "has imported logits, of a teacher that may have learned from these clips; expected teachers that "
                "asc-tune has fine-tuned: use distill.ensemble=logits or probabilities"
            )
    names, content = filenames(data.validation), data.validation.cache.content
    held_out = [teacher_logits(config, source, names, progress, content) for source in sources]
    return greedy(held_out, data.validation.labels).weights
