"""Which keys make two configurations different trainings."""

from pathlib import Path
from typing import Any

from trainables.config.schema import TrialConfig

# where things lie; what lies there is told apart by `clips_hash`
PLACES = ("data.dataset_dir", "data.split_dir", "data.cache_dir", "data.num_workers")

# paths whose last name says what they hold, as a moved study keeps it
NAMED = ("distill.teacher_ckpts", "teacher.model.pretrained", "augment.dir_dir", "teacher.augment.dir_dir")


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """The flat configurations' keys that differ in what shapes a training, each with both values in words.
    The directories in which things lie may differ, and the device: a study may be continued on another machine."""
    old = TrialConfig().flat() | old  # a key that its version did not know is as it is by default
    keys = [k for k in new if k not in (*PLACES, "train.device") and _named(k, old.get(k)) != _named(k, new[k])]
    return {k: f"{old.get(k)} there, {new[k]} here" for k in keys}


def _named(key: str, value: Any) -> Any:
    if key not in NAMED or not value:
        return value
    return [Path(v).name for v in value] if isinstance(value, list) else Path(value).name
