"""The data of a trial: the training and validation clips of the training split, with the teachers' logits.

data = load_trial_data(config)
trial = Trial(config, data, folder)
"""

import hashlib
import json
from dataclasses import dataclass, replace

from trainables.config.schema import TrialConfig
from trainables.inputs.clips import SplitClips, load_clips
from trainables.inputs.fingerprint import DataFingerprint, check_unchanged, fingerprint
from trainables.teachers.cached_logits import ensemble_logits
from trainables.teachers.online import OnlineTeachers, load_online


@dataclass(frozen=True)
class TrialData(SplitClips):
    """The training and validation clips of a trial, and the teachers of online distillation."""

    online: OnlineTeachers | None = None  # with distill.mode=online, instead of `Clips.teacher`


def load_trial_data(config: TrialConfig, progress: bool = False, known: DataFingerprint | None = None) -> TrialData:
    """Return the clips with the logits of the teacher ensemble; logits that are not cached yet are computed.

    `known` is the fingerprint that the driver computed for the study's data. If it describes the clips of this
    configuration, their files are not read again, and DatasetError is raised if the loaded clips differ from it.
    """
    if known and not known.describes(config):
        known = None  # the search space varies the division of the data, so the driver's fingerprint does not apply
    split = load_clips(config, config.frontend.sample_rate, progress, known.sound if known else None)
    if known:
        check_unchanged(known, fingerprint(config, split))
    data = TrialData(split.train, split.validation, split.notes)
    if not config.distill.taught:
        return data
    if config.distill.mode == "online":
        return replace(data, online=load_online(config, split, progress))
    return replace(data, train=replace(data.train, teacher=ensemble_logits(config, split, progress)))


def data_key(config: TrialConfig) -> str:
    """Return a key that is equal for configurations for which `load_trial_data` returns the same data.

    A reused actor keeps its data if the key has not changed.
    """
    flat = config.flat()
    parts = {k: v for k, v in flat.items() if k.startswith("data.") or k in ("frontend.sample_rate", "seed")}
    ensemble = [flat[f"distill.{name}"] for name in ("teacher_ckpts", "ensemble", "teacher_weights", "mode")]
    parts["teachers"] = ensemble if config.distill.taught else None
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
