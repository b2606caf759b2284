"""Find the keys in which two configurations differ and which affect the result of a training."""

from pathlib import Path
from typing import Any

from trainables.config.schema import TrialConfig

# keys that are not compared: folders and workers; `clips_hash` compares the clips themselves
PLACES = ("data.dataset_dir", "data.split_dir", "data.cache_dir", "data.num_workers")

# keys with paths of which only the last part is compared: it identifies the content, and a study may have moved
NAMED = ("distill.teacher_ckpts", "teacher.model.pretrained", "augment.dir_dir", "teacher.augment.dir_dir")


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Return each key in which a checkpoint's configuration `old` and the trial's `new` differ, with a text of both.

    Folders and the device are not compared, because a study may be continued on another machine.
    """
    old = TrialConfig().flat() | old  # keys that the version of `old` did not have get their default
    keys = [k for k in new if k not in (*PLACES, "train.device") and _named(k, old.get(k)) != _named(k, new[k])]
    return {k: f"{old.get(k)} in the checkpoint, {new[k]} expected" for k in keys}


def _named(key: str, value: Any) -> Any:
    if key not in NAMED or not value:
        return value
    return [Path(v).name for v in value] if isinstance(value, list) else Path(value).name
