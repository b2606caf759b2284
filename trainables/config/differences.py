"""Compare two configurations: which keys make their trainings different."""

from pathlib import Path
from typing import Any

from trainables.config.schema import TrialConfig

# locations and workers: they may differ, because `clips_hash` compares the clips themselves
PLACES = ("data.dataset_dir", "data.split_dir", "data.cache_dir", "data.num_workers")

# paths of which only the last name is compared: it identifies the content, and a study may have moved
NAMED = ("distill.teacher_ckpts", "teacher.model.pretrained", "augment.dir_dir", "teacher.augment.dir_dir")


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Return the keys whose values make two trainings different, each with a text that shows both values.

    Directories of files and the device may differ: a study may be continued on another machine.
    """
    old = TrialConfig().flat() | old  # keys that the version of `old` did not have get their default
    keys = [k for k in new if k not in (*PLACES, "train.device") and _named(k, old.get(k)) != _named(k, new[k])]
    return {k: f"{old.get(k)} there, {new[k]} here" for k in keys}


def _named(key: str, value: Any) -> Any:
    if key not in NAMED or not value:
        return value
    return [Path(v).name for v in value] if isinstance(value, list) else Path(value).name
