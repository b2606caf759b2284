"""Comparison of a checkpoint's configuration with that of the trial which loads the checkpoint.

Only keys that affect the result of a training are compared.
"""

from pathlib import Path
from typing import Any

from trainables.config.schema import TrialConfig

# keys that are not compared: folders of the data, and the number of threads that decode it. A change of the clips
# themselves is detected with `clips_hash` (trainables/inputs/fingerprint.py).
PLACES = ("data.dataset_dir", "data.split_dir", "data.cache_dir", "data.num_workers")

# keys whose values are paths: only the last component of a path is compared, because a study may have been moved
NAMED = ("distill.teacher_ckpts", "teacher.model.pretrained", "augment.dir_dir", "teacher.augment.dir_dir")


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Compare two configurations; return a dict from each key with different values to a message with both values.

    `old` is the configuration in a checkpoint, `new` that of the trial which loads the checkpoint. Both map dotted keys
    to values (`TrialConfig.flat`). A key that is not in `old` has its default value.

    The folders of the data, the number of decoding threads and the device are not compared, because a study may be
    continued on another machine. For the same reason, only the last components of the other paths are compared
    (teachers, pretrained weights, impulse responses).
    """
    old = TrialConfig().flat() | old  # a checkpoint of an older version lacks new keys: they get their default
    keys = [k for k in new if k not in (*PLACES, "train.device") and _named(k, old.get(k)) != _named(k, new[k])]
    return {k: f"{old.get(k)} in the checkpoint, {new[k]} expected" for k in keys}


def _named(key: str, value: Any) -> Any:
    if key not in NAMED or not value:
        return value
    return [Path(v).name for v in value] if isinstance(value, list) else Path(value).name
