"""`study.json`, the manifest of a study: the user's request, its resolved values, prepared data, and progress.

    manifest = read_manifest(Path("runs/my-study/study.json"))
    manifest.asked.n_trials, manifest.resolved.limits.macs, manifest.prepared.baseline, manifest.progress.status

The file is one flat JSON object; each key belongs to one of the four parts below. Format 1 (without a `format` key) can
also be read: it lacks keys, for which the defaults below are used. `tune/` writes the file, `analysis/` only reads it.
"""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

FORMAT = 2
PRECISIONS = ("fp32", "fp16", "int8")
DIRECTIONS = ("max", "min")
STATUSES = ("new", "running", "interrupted", "complete", "extended")
_T = TypeVar("_T")


class ResultsError(Exception):
    """A study folder cannot be read; the message names the file and the reason."""


@dataclass(frozen=True)
class Limits:
    """Upper limits of a deployed network; None if the study has no such limit."""

    macs: float | None = None  # multiply-accumulate operations for 1 s of audio, batch 1
    bytes: float | None = None  # parameter memory at `precision`
    precision: str = "fp32"


@dataclass(frozen=True)
class Dataset:
    """The data that a study's search used."""

    dataset_dir: str = ""
    subset: int | None = None  # per cent of the training data
    n_train: int | None = None  # clips
    n_validation: int | None = None
    n_classes: int | None = None
    holdout: str = ""  # how the validation part was chosen
    notes: tuple[str, ...] = ()
    fingerprint: dict[str, Any] = field(default_factory=dict)  # hashes of sound, labels and division; empty in format 1


@dataclass(frozen=True)
class Baseline:
    """The accuracy that every network of the study should beat."""

    name: str = ""
    val_macro_avg_acc: float | None = None
    test_macro_avg_acc: float | None = None  # None until the test split is opened


@dataclass(frozen=True)
class Teacher:
    """A teacher of the distillation."""

    name: str = ""
    val_macro_avg_acc: float | None = None
    validation: str | None = None  # hash of the validation clips on which it was selected


@dataclass(frozen=True)
class Change:
    """A change of code, space or data that `--allow-changes` accepted when the study was resumed."""

    time: str
    what: str


@dataclass(frozen=True)
class Asked:
    """The user's request."""

    name: str
    created: str = ""  # UTC
    command: str = ""
    overrides: tuple[str, ...] = ()  # Hydra overrides as entered
    num_samples: int | None = None  # configurations
    seeds_per_config: int = 1
    sampler: str = "tpe"
    scheduler: str = "mo_asha"
    seed: int = 0
    max_concurrent: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float | None = None  # share of a GPU; None: not resolved yet
    warm_start: tuple[str, ...] = ()  # folders of earlier studies
    confirmations: tuple[str, ...] = ()  # names of the trials that `--confirm` added
    extended_from: tuple[int, ...] = ()  # `num_samples` before each `--extend`

    @property
    def n_trials(self) -> int:
        """The requested number of trials: configurations times seeds, plus confirmations."""
        return (self.num_samples or 0) * self.seeds_per_config + len(self.confirmations)


@dataclass(frozen=True)
class Resolved:
    """The values to which the request was resolved when the study was started or resumed."""

    folder: str = ""
    remote: str | None = None  # URI of a study in an object store
    space: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # flat TrialConfig, which the sampled values override
    objectives: dict[str, str] = field(default_factory=dict)  # column of points.csv -> "max" or "min"
    limits: Limits = field(default_factory=Limits)
    code: dict[str, str] = field(default_factory=dict)  # source file -> hash; empty in studies without a journal
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    frontend: dict[str, Any] = field(default_factory=dict)
    deployed_form: str = ""  # deployed form of the measured networks


@dataclass(frozen=True)
class Prepared:
    """Results made before the first trial and shared by all trials."""

    dataset: Dataset = field(default_factory=Dataset)
    baseline: Baseline | None = None
    teachers: tuple[Teacher, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Progress of the study when its last driver wrote the manifest; the journal can be newer."""

    status: str = "new"
    trials: dict[str, int] | None = None  # status -> number of trials; "rejected" -> number of samples
    rejected_reasons: dict[str, int] = field(default_factory=dict)
    finished: str | None = None  # UTC
    wall_s: float = 0.0
    drivers: int = 0
    epochs_repeated: int = 0
    changes: tuple[Change, ...] = ()
    test_opened: tuple[str, ...] = ()  # UTC times at which the test split was opened


@dataclass(frozen=True)
class StudyManifest:
    """The four parts of `study.json`."""

    asked: Asked
    resolved: Resolved = field(default_factory=Resolved)
    prepared: Prepared = field(default_factory=Prepared)
    progress: Progress = field(default_factory=Progress)

    def to_json(self) -> dict[str, Any]:
        """Return the flat content of `study.json`."""
        parts = (getattr(self, part.name) for part in dataclasses.fields(self))
        flat = {key: value for part in parts for key, value in dataclasses.asdict(part).items()}
        return {"format": FORMAT, **json.loads(json.dumps(flat))}

    def changed(self, **values: Any) -> "StudyManifest":
        """Return a copy with the given values; the part of each key is found automatically."""
        parts: dict[str, Any] = {}
        for part in dataclasses.fields(self):
            old = getattr(self, part.name)
            own = {f.name: values.pop(f.name) for f in dataclasses.fields(old) if f.name in values}
            parts[part.name] = dataclasses.replace(old, **own)
        if values:
            raise TypeError(f"{sorted(values)[0]!r} is not a key of the study manifest")
        return StudyManifest(**parts)


def read_manifest(file: Path) -> StudyManifest:
    """Return the manifest in `file`; ResultsError names the file, the key and the expected value."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{file}: no such file; expected {file.parent} to be a study folder") from None
    except (ValueError, RecursionError) as error:  # json's and UTF-8's errors are ValueErrors
        raise ResultsError(f"{file}: not valid JSON, perhaps cut off ({error}); restore the file") from None
    return manifest_of(content, file)


def manifest_of(content: Any, file: Path | str) -> StudyManifest:
    """Return the manifest in `content`, the parsed JSON of `file`; error messages name `file`."""
    if not isinstance(content, dict):
        raise ResultsError(f"{file}: expected an object with the keys of a study, found {type(content).__name__}")
    found = content.get("format", 1)
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= FORMAT:
        raise ResultsError(f"{file}: format is {found!r}; this version of asc-tune reads formats 1 to {FORMAT}")
    for key in ("name", "objectives"):
        if not content.get(key):
            raise ResultsError(f"{file}: key {key!r} is missing or empty; expected the manifest of a study")
    parts = {name: _built(part, content, str(file)) for name, part in typing.get_type_hints(StudyManifest).items()}
    manifest = StudyManifest(**parts)
    if manifest.resolved.limits.precision not in PRECISIONS:
        found = manifest.resolved.limits.precision
        raise ResultsError(f"{file}: limits.precision is {found!r}; allowed: {', '.join(PRECISIONS)}")
    for column, direction in manifest.resolved.objectives.items():
        if direction not in DIRECTIONS:
            raise ResultsError(f"{file}: objectives.{column} is {direction!r}; allowed: {', '.join(DIRECTIONS)}")
    if manifest.progress.status not in STATUSES:
        raise ResultsError(f"{file}: status is {manifest.progress.status!r}; allowed: {', '.join(STATUSES)}")
    return manifest


def _built(cls: type[_T], content: Mapping[str, Any], where: str) -> _T:
    """Return an instance of the dataclass `cls` with its keys of `content`; null means the key's default."""
    hints = typing.get_type_hints(cls)
    values = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type] - cls is a dataclass
        if content.get(f.name) is not None:
            values[f.name] = _typed(content[f.name], hints[f.name], f"{where}: {f.name}")
        elif f.default is f.default_factory is dataclasses.MISSING:
            raise ResultsError(f"{where}: key {f.name!r} is missing or null; expected {_name(hints[f.name])}")
    return cls(**values)


def _typed(value: Any, kind: Any, where: str) -> Any:
    """Return the JSON value `value` as the type `kind` of a field; ResultsError if the type does not match."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
        return _typed(value, kind, where)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return _built(typing.cast(type, kind), value, where)
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_typed(v, typing.get_args(kind)[0], f"{where}[{i}]") for i, v in enumerate(value))
    elif origin is dict:
        if isinstance(value, dict):
            return {k: _typed(v, typing.get_args(kind)[1], f"{where}.{k}") for k, v in value.items()}
    elif kind is float:
        largest = sys.float_info.max  # JSON may contain larger integers, and Infinity
        if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > largest:
            return value  # NaN included
    elif kind is Any or (isinstance(value, kind) and not (isinstance(value, bool) and kind is int)):
        return value
    raise ResultsError(f"{where} is {json.dumps(value)[:80]}; expected {_name(kind)}")


def _name(kind: Any) -> str:
    """Return the name of a field's type for error messages."""
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    if typing.get_origin(kind) is tuple:
        return "a list"
    if typing.get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        return "an object"
    return names.get(kind, str(kind))
