"""Fingerprint of a study's data: a resume compares it with the stored one before it continues.

    now = fingerprint(config, load_clips(config, rate))
    check_unchanged(DataFingerprint.from_dict(manifest.prepared.dataset.fingerprint), now)

Sound, clips, labels and devices are part of it. Folders are not, so a data set or a cache may move. It is computed
from the result of `load_clips`: no file is read or hashed a second time.
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
SKIPPED_SHOWN = 5  # names of skipped files that a fingerprint lists


@dataclass(frozen=True)
class DataFingerprint:
    """The parts that identify a data set: short hashes, and values to show in messages."""

    sound: str  # content digest of all clips of the split (`WaveformCache.content`)
    clips: str  # hash of the sorted filenames of training and validation clips
    train: str  # hash of the training clips' filenames in order: batches are drawn by position
    validation: str  # hash of the validation clips' filenames in order
    n_train: int
    n_validation: int
    labels: str  # hash of each clip's label
    scenes: dict[str, int]  # scene -> number of training and validation clips
    devices: str  # hash of each clip's device
    device_counts: dict[str, int]  # device -> number of training and validation clips
    subset: int  # data.subset, per cent
    validation_share: float  # data.validation_share
    seed: int  # seed of the hold-out
    n_skipped: int  # broken files left out (data.skip_broken)
    skipped: tuple[str, ...]  # the first names of the broken files
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        """Return the fingerprint as JSON values, which `from_dict` reads."""
        return asdict(self) | {"skipped": list(self.skipped)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "DataFingerprint":
        """Return the fingerprint that `as_dict` gave as `values`; DatasetError for another format or other fields."""
        known = {field.name for field in dataclasses.fields(DataFingerprint)}
        if not isinstance(values, Mapping) or values.get("format") != FORMAT or set(values) != known:
            raise tau.DatasetError(
                f"the data fingerprint {str(values)[:200]} has another format; expected format {FORMAT} with the "
                f"fields {', '.join(sorted(known))}: resume with the version that started the study"
            )
        return DataFingerprint(**{**values, "skipped": tuple(values["skipped"])})

    def describes(self, config: TrialConfig) -> bool:
        """Return whether `config` has the same subset and division of clips as this fingerprint."""
        configured = (config.data.subset, config.data.validation_share, config.seed)
        return configured == (self.subset, self.validation_share, self.seed)


def fingerprint(config: TrialConfig, data: SplitClips) -> DataFingerprint:
    """Return the fingerprint of loaded clips; `config` is the configuration with which they were loaded."""
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
    """Return one sentence, with both values, for each part in which the fingerprints `old` and `new` differ.

    If the sets of clips differ, sound, labels and devices cannot be compared and are not mentioned.
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
    """Raise DatasetError, which lists all differences, if the fingerprints `old` and `new` differ."""
    if changed := differences(old, new):
        raise tau.DatasetError(
            f"the data changed since the study was started: {' '.join(changed)} Restore the data, start a new study, "
            "or resume this one with --allow-changes."
        )


def _skipped(data: DataFingerprint) -> str:
    names = [*data.skipped, *([f"{data.n_skipped - len(data.skipped)} more"] if data.n_skipped > SKIPPED_SHOWN else [])]
    return f"{data.n_skipped} ({', '.join(names)})" if names else "none"


def _changed(
    before: Mapping[str, int], now: Mapping[str, int], old: DataFingerprint, new: DataFingerprint, part: str
) -> str:
    """Return the scenes or devices whose number of clips changed; if no number changed, both hashes of `part`."""
    changed = [
        f"{name} {before.get(name, 0)} clips before, {now.get(name, 0)} now"
        for name in sorted({*before, *now})
        if before.get(name, 0) != now.get(name, 0)
    ]
    return "; ".join(changed) or (
        f"exchanged between clips (hash {getattr(old, part)} before, {getattr(new, part)} now)"
    )


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def clips_hash(data: SplitClips) -> str:
    """Return a hash of content, division, labels and devices of a trial's training and validation clips."""
    digest = hashlib.sha256(data.train.cache.key.encode())
    for clips in (data.train, data.validation):
        digest.update(f"{clips.rows.tolist()} {clips.labels.tolist()} {clips.devices.tolist()}".encode())
    return digest.hexdigest()[:16]
