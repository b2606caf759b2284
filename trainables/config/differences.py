"""Comparison of a checkpoint's configuration with that of the trial which loads the checkpoint.

Only keys that affect the result of a training are compared.
"""

import filecmp
from pathlib import Path
from typing import Any

from trainables.config.schema import TrialConfig

# keys that are not compared: folders of the data, and the number of threads that decode it. A change of the clips
# themselves is detected with `clips_hash` (trainables/inputs/fingerprint.py).
PLACES = ("data.dataset_dir", "data.split_dir", "data.cache_dir", "data.num_workers")

# keys whose values are paths, which may differ because a study may have been moved (`_is_same_place`)
NAMED = ("distill.teacher_ckpts", "teacher.model.pretrained", "augment.dir_dir", "teacher.augment.dir_dir")


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Compare two configurations; return a dict from each key with different values to a message with both values.

    `old` is the configuration in a checkpoint, `new` that of the trial which loads the checkpoint. Both map dotted keys
    to values (`TrialConfig.flat`). A key that is not in `old` has its default value.

    The folders of the data, the number of decoding threads, the device and train.cuda_graph are not compared, because a
    study may be continued on another machine. For the same reason, two other paths (teachers, pretrained weights,
    impulse responses) are equal if their last components are equal and, if both exist here, also their files.
    """
    # a checkpoint of an older version lacks new keys: they get their default, and there was no mixed precision
    old = TrialConfig().flat() | {"train.amp": "off"} | old
    not_compared = (*PLACES, "train.device", "train.cuda_graph")
    keys = [k for k in new if k not in not_compared and not _is_equal(k, old.get(k), new[k])]
    return {k: f"{old.get(k)} in the checkpoint, {new[k]} expected" for k in keys}


def _is_equal(key: str, old: Any, new: Any) -> bool:
    if key not in NAMED or old == new or not (old and new):
        return old == new
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_is_same_place, old, new))
    return isinstance(old, str) and isinstance(new, str) and _is_same_place(old, new)


def _is_same_place(old: str, new: str) -> bool:
    """Return whether the paths `old` and `new` name the same file or folder, which may have been moved or copied.

    A path that does not exist here was moved or is on another machine, so only the last components are compared.
    """
    before, after = Path(old).expanduser(), Path(new).expanduser()
    if before.name != after.name:
        return False
    if before == after or not (before.exists() and after.exists()):
        return True
    files = [path for path in after.rglob("*") if path.is_file()] if after.is_dir() else [after]
    return all(_is_same_file(before / path.relative_to(after), path) for path in files)


def _is_same_file(old: Path, new: Path) -> bool:
    return old.is_file() and old.stat().st_size == new.stat().st_size and filecmp.cmp(old, new, shallow=False)
