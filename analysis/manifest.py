"""Read `study.json`, the manifest of a study, into typed dataclasses.

    manifest = read_manifest(Path("runs/my-study/study.json"))
    manifest.requested.n_trials, manifest.resolved.limits.macs, manifest.prepared.baseline, manifest.progress.status

A manifest has four parts: the user's options (`requested`), the settings derived from them (`resolved`), the data set,
baseline and teachers (`prepared`), and the status (`progress`). The file is one flat JSON object; its keys are the
fields of the four parts. Format 1 (a file without the key `format`) can also be read: a missing key has the default of
its field. `tune/` writes the file, `analysis/` only reads it.
"""

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.typed_json import REMEDY, ResultsError, from_json
from data.untrusted import credentials_in, interpolation_in, is_name, is_widths

FORMAT = 2
PRECISIONS = ("fp32", "fp16", "int8")
DIRECTIONS = ("max", "min")
_REPLICATE = re.compile(r"[A-Za-z0-9]+r[0-9]+")  # name of a trial that --confirm added
STATUSES = ("new", "running", "interrupted", "complete", "extended")


@dataclass(frozen=True)
class Limits:
    """Upper limits that a deployed network must not exceed; a limit of None is not checked."""

    macs: float | None = None  # multiply-accumulate operations for 1 s of audio, batch 1
    bytes: float | None = None  # memory of the parameters at `precision`
    precision: str = "fp32"  # one of PRECISIONS


@dataclass(frozen=True)
class Dataset:
    """The data set of a study and its division into training and validation clips."""

    dataset_dir: str = ""
    subset: int | None = None  # per cent of the training data
    n_train: int | None = None  # number of training clips
    n_validation: int | None = None  # number of validation clips
    n_classes: int | None = None
    holdout: str = ""  # how the validation part was chosen
    notes: tuple[str, ...] = ()  # unusual facts, e.g. clips that were left out because they are damaged
    fingerprint: dict[str, Any] = field(default_factory=dict)  # hashes of audio, labels and division; empty in format 1
    n_clips: int | None = None  # rows of meta.csv; None in studies of older versions


@dataclass(frozen=True)
class Baseline:
    """A simple reference model (logistic regression on log-mel statistics); its accuracies are shares in [0, 1]."""

    name: str = ""
    val_macro_avg_acc: float | None = None
    test_macro_avg_acc: float | None = None  # None until the test split is opened


@dataclass(frozen=True)
class Teacher:
    """A teacher network for knowledge distillation, and its validation accuracy as a share in [0, 1]."""

    name: str = ""
    val_macro_avg_acc: float | None = None
    validation: str | None = None  # hash of the validation clips on which its best epoch was chosen


@dataclass(frozen=True)
class Change:
    """A change of code, space or data that `--allow-changes` accepted when the study was resumed."""

    time: str  # UTC
    what: str  # the change as a text


@dataclass(frozen=True)
class Refitted:
    """A configuration of a study's front that its refit trains again on all clips."""

    config_id: str  # name of its first trial in the study
    params: dict[str, Any]  # its sampled values, as Optuna's parameters
    values: dict[str, Any]  # and as configuration keys
    steps: tuple[int, ...]  # the prune steps whose networks were picked
    widths: tuple[dict[str, Any], ...]  # channels of each layer after each prune step, up to the last picked one


@dataclass(frozen=True)
class Requested:
    """The user's options: those of `tune/run.py` with which the study was started or continued."""

    name: str
    created: str = ""  # UTC
    command: str = ""  # command line that started the study
    overrides: tuple[str, ...] = ()  # Hydra overrides as entered
    num_samples: int | None = None  # number of configurations; None: unknown (older versions)
    seeds_per_config: int = 1
    sampler: str = "tpe"
    scheduler: str = "mo_asha"
    seed: int = 0
    max_concurrent: int | None = None  # maximum number of trials at a time; None: as many as the resources allow
    cpus_per_trial: float = 1.0
    gpus_per_trial: float | None = None  # share or number of GPUs; None: not resolved yet
    checkpoint_interval: float = 0.0  # seconds of work that a killed trial may repeat; 0: checkpoints after each epoch
    warm_start: tuple[str, ...] = ()  # folders of earlier studies
    confirmations: tuple[str, ...] = ()  # names of the replicates that `--confirm` added
    extended_from: tuple[int, ...] = ()  # `num_samples` before each `--extend`
    refit_of: str | None = None  # the study whose front is trained again, if this is a refit
    refit: tuple[Refitted, ...] = ()

    @property
    def n_trials(self) -> int:
        """Requested number of trials: configurations times seeds per configuration, plus replicates of `--confirm`."""
        return (self.num_samples or 0) * self.seeds_per_config + len(self.confirmations)


@dataclass(frozen=True)
class Resolved:
    """Settings derived from the user's options at the start or a resume of the study, and hashes of the code."""

    folder: str = ""
    remote: str | None = None  # URI of a study in an object store
    space: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # base configuration: key -> value; sampled values override it
    objectives: dict[str, str] = field(default_factory=dict)  # column of points.csv -> "max" or "min"
    limits: Limits = field(default_factory=Limits)
    code: dict[str, str] = field(default_factory=dict)  # source file -> hash; empty in studies without a journal
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    frontend: dict[str, Any] = field(default_factory=dict)  # parameters of the log-mel features
    deployed_form: str = ""  # form in which networks are measured, e.g. fused, pruned, float32, [1, 1, 256, 65]


@dataclass(frozen=True)
class Prepared:
    """Data set, baseline and teachers, which are prepared before the first trial and shared by all trials."""

    dataset: Dataset = field(default_factory=Dataset)
    baseline: Baseline | None = None
    teachers: tuple[Teacher, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Status and counts of a study when a driver last wrote the manifest; the journal can be newer."""

    status: str = "new"
    trials: dict[str, int] | None = None  # status -> number of trials; "rejected" -> number of samples
    rejected_reasons: dict[str, int] = field(default_factory=dict)  # reason -> number of rejected samples
    finished: str | None = None  # UTC
    wall_s: float = 0.0  # run time in seconds, summed over drivers
    drivers: int = 0  # number of driver processes so far
    epochs_repeated: int = 0  # epochs trained a second time after a kill or crash
    changes: tuple[Change, ...] = ()
    test_opened: tuple[str, ...] = ()  # UTC times at which the test split was opened


@dataclass(frozen=True)
class StudyManifest:
    """Content of `study.json`: the user's options, settings derived from them, prepared data and teachers, status."""

    requested: Requested
    resolved: Resolved = field(default_factory=Resolved)
    prepared: Prepared = field(default_factory=Prepared)
    progress: Progress = field(default_factory=Progress)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `study.json`: one flat dict of JSON values with the keys of all four parts."""
        parts = (getattr(self, part.name) for part in dataclasses.fields(self))
        flat = {key: value for part in parts for key, value in dataclasses.asdict(part).items()}
        return {"format": FORMAT, **json.loads(json.dumps(flat))}

    def changed(self, **values: Any) -> "StudyManifest":
        """Return a copy of the manifest with new values for the given keys, e.g. `changed(status="complete", seed=1)`.

        A key is the name of a field of `Requested`, `Resolved`, `Prepared` or `Progress`. Any other key: TypeError.
        """
        parts: dict[str, Any] = {}
        for part in dataclasses.fields(self):
            old = getattr(self, part.name)
            own = {f.name: values.pop(f.name) for f in dataclasses.fields(old) if f.name in values}
            parts[part.name] = dataclasses.replace(old, **own)
        if values:
            raise TypeError(
                f"changed() got the key {sorted(values)[0]!r}; expected a key of study.json: correct the name"
            )
        return StudyManifest(**parts)


def read_manifest(file: Path) -> StudyManifest:
    """Return the manifest of a study from its `study.json`.

    Raise ResultsError if the file is missing or invalid; its message names the file, the key and the expected value.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{file}: no such file; expected a study folder with study.json: check the path") from None
    except (ValueError, RecursionError) as error:  # json's and UTF-8's errors are ValueErrors
        raise ResultsError(f"{file}: not valid JSON, perhaps cut off ({error}); {REMEDY}") from None
    return manifest_of(content, file)


def manifest_of(content: Any, file: Path | str) -> StudyManifest:
    """Return the manifest of a study from `content`, the parsed JSON of its `study.json`.

    Raise ResultsError if `content` is invalid; its message starts with `file`, the path of `study.json`.
    """
    if not isinstance(content, dict):
        raise ResultsError(
            f"{file}: found {type(content).__name__}; expected a JSON object with the keys of a study; {REMEDY}"
        )
    found = content.get("format", 1)
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= FORMAT:
        raise ResultsError(
            f"{file}: format is {found!r}; expected 1 to {FORMAT}; if a newer asc-tune wrote the file, "
            "update asc-tune; otherwise restore the file"
        )
    for key in ("name", "objectives"):
        if not content.get(key):
            raise ResultsError(f"{file}: key {key!r} is missing or empty; expected a value; {REMEDY}")
    parts = {name: from_json(part, content, str(file)) for name, part in typing.get_type_hints(StudyManifest).items()}
    manifest = StudyManifest(**parts)
    for key, valid, found, expected in _checks(manifest):
        if not valid:
            raise ResultsError(f"{file}: {key} {found[:80]}; expected {expected}; {REMEDY}")
    return manifest


def _checks(manifest: StudyManifest) -> Iterator[tuple[str, bool, str, str]]:
    """Yield (key, whether its value is valid, what was found, what is expected) for values of `manifest`.

    The file may come from somebody else: names become paths, and an interpolation such as ${oc.env:NAME} would be
    replaced by the value of an environment variable.
    """
    requested, resolved, status = manifest.requested, manifest.resolved, manifest.progress.status
    precision = resolved.limits.precision
    yield "limits.precision", precision in PRECISIONS, f"is {precision!r}", f"one of {', '.join(PRECISIONS)}"
    for key, limit in (("macs", resolved.limits.macs), ("bytes", resolved.limits.bytes)):
        valid = limit is None or (math.isfinite(limit) and limit >= 0)
        yield f"limits.{key}", valid, f"is {limit!r}", "a number, 0 or more, or null"
    for column, direction in resolved.objectives.items():
        yield f"objectives.{column}", direction in DIRECTIONS, f"is {direction!r}", "max or min"
    yield "status", status in STATUSES, f"is {status!r}", f"one of {', '.join(STATUSES)}"
    yield "name", is_name(requested.name), f"is {requested.name!r}", "the name of a folder"
    for name in requested.confirmations:
        yield "confirmations", bool(_REPLICATE.fullmatch(name)), f"contains {name!r}", "names such as t0003r1"
    places = [("remote", resolved.remote or ""), *(("warm_start", text) for text in requested.warm_start)]
    for key, text in places:
        problem = credentials_in(text)
        yield key, problem is None, f"contains {problem}", "no credentials"
    config = [(f"config.{key}", value) for key, value in resolved.config.items()]
    for given in requested.refit:
        yield "refit", is_name(given.config_id), f"contains {given.config_id!r}", "the names of trials"
        config += [(f"refit.{key}", value) for key, value in given.values.items()]
        wrong = [widths for widths in given.widths if not is_widths(widths)]
        yield "refit", not wrong, f"contains {wrong[:1]}", "numbers of channels with the keys stem, expand and out"
    for key, value in [("overrides", requested.overrides), ("space", resolved.space), *places, *config]:
        interpolation = interpolation_in(value)
        yield key, interpolation is None, f"contains {interpolation!r}", "no interpolation (${...})"
