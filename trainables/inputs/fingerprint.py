"""Fingerprint of a study's data. A resumed study compares its data with the stored fingerprint before it continues.

    clips = load_clips(config, sample_rate)                     # config: the study's TrialConfig
    now = fingerprint(config, clips)
    check_unchanged(DataFingerprint.from_dict(stored), now)     # stored: the dict from `as_dict` in the study's files

A fingerprint covers the content of the WAV files, and the training and validation clips with their labels and devices.
It does not contain folders, so the data set and its cache may be moved. It is computed from the result of `load_clips`:
no file is read or hashed a second time.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data import tau
from trainables.config.schema import TrialConfig
from trainables.inputs.clips import SplitClips, filenames

FORMAT = 1
SKIPPED_SHOWN = 5  # number of skipped files that a fingerprint names


@dataclass(frozen=True)
class DataFingerprint:
    """Hashes that identify the data of a study, and the values that error messages about changed data show.

    These values are numbers of clips, names of broken files, and the configuration keys that select the clips.
    """

    sound: str  # content digest of all clips of the split (`WaveformCache.content`)
    clips: str  # hash of the sorted filenames of training and validation clips
    train: str  # hash of the training clips' filenames in order, because batches are drawn by position
    validation: str  # hash of the validation clips' filenames in order
    n_train: int  # number of training clips
    n_validation: int  # number of validation clips
    labels: str  # hash of the filename and label of every clip
    scenes: dict[str, int]  # scene -> number of training and validation clips
    devices: str  # hash of the filename and device of every clip
    device_counts: dict[str, int]  # device -> number of training and validation clips
    subset: int  # data.subset, per cent
    validation_share: float  # data.validation_share
    seed: int  # seed of the hold-out
    n_skipped: int  # number of broken files that are left out (data.skip_broken)
    skipped: tuple[str, ...]  # names of the first SKIPPED_SHOWN broken files
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        """Return the fingerprint as a dict of JSON values; `from_dict` is the inverse."""
        return asdict(self) | {"skipped": list(self.skipped)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "DataFingerprint":
        """Return the fingerprint from which `as_dict` made the dict `values`.

        Raise DatasetError if `values` has another format version or other fields.
        """
        known = {field.name for field in dataclasses.fields(DataFingerprint)}
        if not isinstance(values, Mapping) or values.get("format") != FORMAT or set(values) != known:
            raise tau.DatasetError(
                f"the study's data fingerprint is {str(values)[:200]}; expected format {FORMAT} with the fields "
                f"{', '.join(sorted(known))}: resume with the version of asc-tune that started the study"
            )
        return DataFingerprint(**{**values, "skipped": tuple(values["skipped"])})

    def describes(self, config: TrialConfig) -> bool:
        """Return whether `config` selects and divides the clips in the way that this fingerprint records.

        The keys `data.subset`, `data.validation_share` and `seed` are compared.
        """
        configured = (config.data.subset, config.data.validation_share, config.seed)
        return configured == (self.subset, self.validation_share, self.seed)


def fingerprint(config: TrialConfig, data: SplitClips) -> DataFingerprint:
    """Return the fingerprint of `data`, which are the clips that `load_clips` returned for `config`."""
    cache = data.train.cache
    train, validation = filenames(data.train), filenames(data.validation)
    labels = [tau.SCENES[label] for part in (data.train, data.validation) for label in part.labels]
    devices = [str(device) for part in (data.train, data.validation) for device in part.devices]
    names = [*train, *validation]
    return DataFingerprint(
        sound=cache.content,
        clips=_hash(sorted(names)),
        train=_hash(train),
        validation=_hash(validation),
        n_train=len(train),
        n_validation=len(validation),
        labels=_hash(sorted(f"{name} {label}" for name, label in zip(names, labels, strict=True))),
        scenes=dict(sorted(Counter(labels).items())),
        devices=_hash(sorted(f"{name} {device}" for name, device in zip(names, devices, strict=True))),
        device_counts=dict(sorted(Counter(devices).items())),
        subset=config.data.subset,
        validation_share=config.data.validation_share,
        seed=config.seed,
        n_skipped=len(cache.skipped),
        skipped=tuple(sorted(cache.skipped)[:SKIPPED_SHOWN]),
    )


def differences(old: DataFingerprint, new: DataFingerprint) -> list[str]:
    """Return one message for each difference between the fingerprints `old` and `new`. Each message shows both values.

    If the filenames differ, labels, devices and the content of the WAV files are not compared, because their hashes can
    be compared for equal filenames only.
    """
    found = []
    for name, key in (("subset", "data.subset"), ("validation_share", "data.validation_share"), ("seed", "seed")):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            found.append(f"{key}: {before} before, {now} now.")
    if (old.n_skipped, old.skipped) != (new.n_skipped, new.skipped):
        found.append(f"skipped files: {_skipped(old)} before, {_skipped(new)} now.")
    compared = (
        ("clips", "clips of the split", old.n_train + old.n_validation, new.n_train + new.n_validation),
        ("train", "training clips", old.n_train, new.n_train),
        ("validation", "validation clips", old.n_validation, new.n_validation),
    )
    for part, title, before, now in compared:
        hashes = getattr(old, part), getattr(new, part)
        if before != now:
            found.append(f"{title}: {before} before, {now} now.")
        elif hashes[0] != hashes[1]:
            kept = "other files" if part == "clips" else "other files or another order"
            found.append(f"{title}: {before} before and now, but {kept} (hash {hashes[0]} before, {hashes[1]} now).")
    if old.clips != new.clips:
        return found
    for part, counts in (("labels", "scenes"), ("devices", "device_counts")):
        if getattr(old, part) != getattr(new, part):
            found.append(f"{part}: {_changed(getattr(old, counts), getattr(new, counts), old, new, part)}.")
    if old.sound != new.sound:
        found.append(
            f"sound: the content of the WAV files changed (digest {old.sound[:16]} before, {new.sound[:16]} now)."
        )
    return found


def check_unchanged(old: DataFingerprint, new: DataFingerprint) -> None:
    """Raise DatasetError if the fingerprints `old` (stored) and `new` differ. The message lists all differences."""
    if changed := differences(old, new):
        raise tau.DatasetError(
            f"the data set has changed since the study was started or last resumed: {' '.join(changed)} Restore the "
            "data, start a new study, or resume this study with --allow-changes, which accepts and records the change."
        )


def _skipped(data: DataFingerprint) -> str:
    names = [*data.skipped, *([f"{data.n_skipped - len(data.skipped)} more"] if data.n_skipped > SKIPPED_SHOWN else [])]
    return f"{data.n_skipped} ({', '.join(names)})" if names else "none"


def _changed(
    before: Mapping[str, int], now: Mapping[str, int], old: DataFingerprint, new: DataFingerprint, part: str
) -> str:
    """Return a text that lists the scenes or devices whose numbers of clips differ between two fingerprints.

    `before` and `now` map each scene or device to its number of clips in the fingerprints `old` and `new`. If all
    numbers are equal, the text has the two hashes of `part` ("labels" or "devices") instead.
    """
    changed = [
        f"{name} {before.get(name, 0)} clips before, {now.get(name, 0)} now"
        for name in sorted({*before, *now})
        if before.get(name, 0) != now.get(name, 0)
    ]
    return "; ".join(changed) or (
        f"the {part} of some clips have changed (hash {getattr(old, part)} before, {getattr(new, part)} now)"
    )


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def clips_hash(data: SplitClips) -> str:
    """Return a hash of the waveforms, the order, the labels and the devices of the training and validation clips."""
    digest = hashlib.sha256(data.train.cache.key.encode())
    for clips in (data.train, data.validation):
        digest.update(f"{clips.rows.tolist()} {clips.labels.tolist()} {clips.devices.tolist()}".encode())
    return digest.hexdigest()[:16]
