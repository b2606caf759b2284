"""Load the data of a trial: its training and validation clips, and the logits or the networks of its teachers.

The test split is not read.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from trainables.config.schema import TrialConfig
from trainables.engine.baseline import device_entropy
from trainables.inputs.clips import SplitClips, load_clips
from trainables.inputs.device_clips import upload
from trainables.inputs.fingerprint import DataFingerprint, check_unchanged, fingerprint
from trainables.teachers.cached_logits import ensemble_logits
from trainables.teachers.online import OnlineTeachers, load_online


@dataclass(frozen=True)
class TrialData(SplitClips):
    """The training and validation clips of a trial, and the teachers of online distillation."""

    online: OnlineTeachers | None = None  # with distill.mode=online; otherwise `train.teacher` has the teachers' logits


def load_trial_data(config: TrialConfig, progress: bool = False, known: DataFingerprint | None = None) -> TrialData:
    """Return the training and validation clips of `config` and, for distillation, its teachers.

    With distill.mode=offline, `train.teacher` of the result has the logits of the teacher ensemble, which are computed
    if they are not cached. With distill.mode=online, `online` of the result has the teachers themselves. `progress`
    shows progress bars. If the training is on a GPU, the waveforms are copied to its memory, provided that they fit.

    `known` is the fingerprint of the study's data that the driver computed (None: there is none). If its subset,
    validation share and seed are those of `config`, the WAV files are not hashed again, and DatasetError is raised if
    the loaded clips differ from the fingerprint. Otherwise, `known` is ignored.
    """
    if known and not known.describes(config):
        known = None  # the trial has another subset, validation share or seed than the fingerprinted data
    split = load_clips(config, config.frontend.sample_rate, progress, known.sound if known else None)
    if known:
        check_unchanged(known, fingerprint(config, split))
    data = TrialData(split.train, split.validation, split.notes)
    if config.train.curriculum:
        entropy = device_entropy(split.train, config.frontend, Path(config.data.cache_dir))
        data = replace(data, train=replace(data.train, device_entropy=entropy))
    if config.train.device != "cpu" and torch.cuda.is_available():
        resident = upload(split.train.cache, torch.device("cuda"))
        train, validation = (replace(clips, resident=resident) for clips in (data.train, data.validation))
        data = replace(data, train=train, validation=validation)
    if not config.distill.taught:
        return data
    if config.distill.mode == "online":
        return replace(data, online=load_online(config, split, progress))
    return replace(data, train=replace(data.train, teacher=ensemble_logits(config, split, progress)))


def data_key(config: TrialConfig) -> str:
    """Return a hash of the configuration keys that determine the result of `load_trial_data`.

    An actor that Ray reuses for another trial keeps its loaded data if both trials have the same hash.
    """
    flat = config.flat()
    parts = {k: v for k, v in flat.items() if k.startswith("data.") or k in ("frontend.sample_rate", "seed")}
    ensemble = [flat[f"distill.{name}"] for name in ("teacher_ckpts", "ensemble", "teacher_weights", "mode")]
    parts["teachers"] = ensemble if config.distill.taught else None
    parts["curriculum"] = asdict(config.frontend) if config.train.curriculum else None
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
