"""The events of a study as frozen dataclasses, and their conversion to and from lines of the journal.

    event = EpochReported(trial="t0003", stage=0, epoch=1, epochs=1, figures={...})
    line = encode(event);  decode(json.loads(line)) == event

Each event is written as one line of the journal (tune/study/journal.py), then applied to all reducers: objects whose
state is computed from the events alone (tune/study/state.py). A line is a JSON object: the key `event` is the kind of
the event, the other keys are its fields. Events are written in format 2; tune/study/format1.py converts events of
format 1. A trial ends with one of four outcomes:

    completed    The last stage was trained to the end and measured.
    stopped      The trial was stopped early, in general by the scheduler.
    failed       The trial had an error that a retry would repeat, such as a loss that is not finite.
    crashed      The trial had an error outside its configuration, such as a lost node. A resume retries the trial.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

from data.untrusted import interpolation_in, is_name, is_relative_path, is_widths
from trainables.outputs.records import now

FORMAT = 2
SHARED = (
    *("data.", "limits.", "teacher."),
    *("seed", "replicate", "train.device", "train.threads"),
)  # keys, or first parts of keys, whose values all trials of a study share: no space and no event of a trial sets them
Outcome = Literal["completed", "stopped", "failed", "crashed"]
REMEDY = "restore the journal from a copy, or use the version of asc-tune that wrote it"


class EventError(ValueError):
    """Raised for an event that is invalid or contradicts earlier ones. In a journal, it becomes a JournalError."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of all events. `kind` is the value of the key `event` in the journal, for example "trial_ended"."""

    kind: ClassVar[str]
    time: str = field(default_factory=now)  # UTC


@dataclass(frozen=True, kw_only=True)
class DriverStarted(Event):
    """A driver process started or resumed the study."""

    kind = "driver_started"
    command: str  # command line that created the study


@dataclass(frozen=True, kw_only=True)
class DriverFinished(Event):
    """A driver ended normally. `digests` maps "sampler" and "rungs" to hashes of their final states (None: no rungs).
    A resume that replays this event compares them with the hashes of its own states, and warns if they differ."""

    kind = "driver_finished"
    digests: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ConfigurationJudged(Event):
    """The sampler checked whether a configuration that it had not drawn fits the limits: one with only the first prune
    steps of a drawn configuration, whose trials trained it, too; or one of an earlier study (`--warm-start`)."""

    kind = "configuration_judged"
    params: dict[str, Any]
    key: str  # identical for configurations that train the same networks in the same way
    excess: float  # relative excess of the cheapest stage over the limits; above 0: infeasible


@dataclass(frozen=True, kw_only=True)
class PointImported(Event):
    """`--warm-start` imported a network of an earlier study. `point` maps the name of each objective to its value."""

    kind = "point_imported"
    params: dict[str, Any]
    point: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SampleRejected(Event):
    """A sample was rejected before training: it is infeasible, or would train the same networks as an earlier one."""

    kind = "sample_rejected"
    params: dict[str, Any]
    reason: str  # one of a few fixed texts, by which rejected samples are counted
    example: str  # the sampled values and details of this rejection
    excess: float  # relative excess of the cheapest stage over the limits; above 0: infeasible


@dataclass(frozen=True, kw_only=True)
class SpaceExhausted(Event):
    """The search draws no further configurations, because the last `rejections` samples were all rejected."""

    kind = "space_exhausted"
    rejections: int


@dataclass(frozen=True, kw_only=True)
class TrialCreated(Event):
    """A trial was created: the first trial of a sampled configuration, or a replicate with another seed."""

    kind = "trial_created"
    trial: str  # t0003; t0003r1 is its first replicate
    config_id: str  # name of the first trial of the same configuration
    replicate: int  # 0, 1, ...: index of the seed within the configuration
    params: dict[str, Any]  # parameters of the Optuna trial
    values: dict[str, Any]  # configuration values that follow from `params`
    excess: float = 0.0  # relative excess of the cheapest stage over the limits; above 0: infeasible
    key: str = ""  # identical for configurations that train the same networks in the same way
    attributes: dict[str, Any] = field(default_factory=dict)  # system attributes of the Optuna trial
    confirms: bool = False  # True for a replicate that --confirm added for a configuration of the front
    widths: list[dict[str, Any]] = field(default_factory=list)  # of each stage, for a refit; empty: the plan decides


@dataclass(frozen=True, kw_only=True)
class TrialRetried(Event):
    """A resume reopened a crashed trial, to retry it."""

    kind = "trial_retried"
    trial: str


@dataclass(frozen=True, kw_only=True)
class TrialRestored(Event):
    """A trial was restored from a checkpoint, which was saved after `epochs` epochs (counted over all stages)."""

    kind = "trial_restored"
    trial: str
    epochs: int


@dataclass(frozen=True, kw_only=True)
class ConfigurationChanged(Event):
    """Population based training changed the configuration of a trial. `values` maps changed keys to new values."""

    kind = "configuration_changed"
    trial: str
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EpochReported(Event):
    """A trial reported the result of one epoch (fields: see `Record` in trainables/outputs/records.py)."""

    kind = "epoch_reported"
    trial: str
    stage: int  # 0: dense; k: after prune step k
    epoch: int  # 1, 2, ... within the stage
    epochs: int  # 1, 2, ... over all stages
    figures: dict[str, float | None]  # a subset of FIGURES: the measured ones


@dataclass(frozen=True, kw_only=True)
class PointMeasured(Event):
    """A stage of a trial was trained to the end and its network was measured."""

    kind = "point_measured"
    trial: str
    point: dict[str, Any]  # fields of trainables.outputs.records.Point


@dataclass(frozen=True, kw_only=True)
class TrialEnded(Event):
    """A trial ended with the given outcome (the module's docstring lists the outcomes)."""

    kind = "trial_ended"
    trial: str
    outcome: Outcome
    reason: str | None = None  # why it failed or crashed
    by: str | None = None  # what stopped it: name of the scheduler, "ray tune" or "the trial itself"


FIGURES = (
    *("train_loss", "val_loss", "val_macro_avg_acc", "val_ece", "train_macro_avg_acc"),
    *("macs", "params", "sparsity", "seconds"),
)  # measured values of an epoch
KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        *(DriverStarted, DriverFinished, ConfigurationJudged, PointImported, SampleRejected, SpaceExhausted),
        *(TrialCreated, TrialRetried, TrialRestored, ConfigurationChanged, EpochReported, PointMeasured, TrialEnded),
    )
}


def encode(event: Event) -> str:
    """Return `event` as one line of JSON, ending with a newline."""
    values = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
    return json.dumps({"event": event.kind, **values}) + "\n"


def decode(content: Any) -> Event:
    """Return the event in `content`, a line of a journal (parsed JSON). Raise EventError if `content` is invalid."""
    if not isinstance(content, dict) or "event" not in content:
        raise EventError(f"found {json.dumps(content)[:80]}; expected a JSON object with the key 'event'; {REMEDY}")
    kind = content["event"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise EventError(f"key 'event' is {kind!r}; expected one of {', '.join(KINDS)}; {REMEDY}")
    fields = _fields(KINDS[kind])
    values = {key: value for key, value in content.items() if key != "event"}
    if unknown := set(values) - set(fields):
        raise EventError(f"event {kind!r} has a field {min(unknown)!r}; expected only {', '.join(fields)}; {REMEDY}")
    for name, value in values.items():
        if not isinstance(value, fields[name]) or (isinstance(value, bool) and bool not in fields[name]):
            raise EventError(
                f"event {kind!r}: {name!r} is {json.dumps(value)[:80]}; expected {_names(fields[name])}; {REMEDY}"
            )
    _check_values(kind, values)
    try:
        event = KINDS[kind](**values)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise EventError(f"event {kind!r} lacks the required field(s) {missing}; {REMEDY}") from None
    if isinstance(event, TrialEnded) and event.outcome not in typing.get_args(Outcome):
        raise EventError(
            f"event {kind!r}: 'outcome' is {event.outcome!r}; expected one of {typing.get_args(Outcome)}; {REMEDY}"
        )
    return event


def _check_values(kind: str, fields: Mapping[str, Any]) -> None:
    """Raise EventError if a field of an event names a path outside the study, or contains an interpolation (`${`).

    A journal may come from somebody else. The trial's name and the `checkpoint` of a point become paths in the study's
    folder, and `values` becomes a part of a trial's configuration.
    """
    for name in ("trial", "config_id"):
        if name in fields and not is_name(fields[name]):
            raise EventError(
                f"event {kind!r}: {name!r} is {fields[name][:80]!r}; expected the name of a trial, such as t0003; "
                f"{REMEDY}"
            )
    path = fields.get("point", {}).get("checkpoint", "step0")
    if not isinstance(path, str) or not is_relative_path(path):
        raise EventError(
            f"event {kind!r}: 'checkpoint' is {json.dumps(path)[:80]}; expected a path inside the trial's folder, "
            f"such as step0; {REMEDY}"
        )
    for key, value in fields.get("values", {}).items():
        if key.startswith(SHARED):
            raise EventError(
                f"event {kind!r}: 'values' has the key {key!r} with the value {json.dumps(value)[:80]}; expected only "
                f"keys in which the trials of a study may differ; {REMEDY}"
            )
    for stage in fields.get("widths", []):
        if not is_widths(stage):
            raise EventError(
                f"event {kind!r}: 'widths' has {json.dumps(stage)[:80]}; expected lists of numbers of channels with "
                f"the keys stem, expand and out; {REMEDY}"
            )
    for name in ("params", "values"):
        if found := interpolation_in(fields.get(name)):
            raise EventError(
                f"event {kind!r}: {name!r} contains {found[:80]!r}; expected values without interpolations (${{...}}); "
                f"{REMEDY}"
            )


@cache
def _fields(cls: type[Event]) -> dict[str, tuple[type, ...]]:
    """Return the fields of an event class as {field name: Python types that the field's JSON value may have}."""
    return {name: _json_types(kind) for name, kind in typing.get_type_hints(cls).items() if name != "kind"}


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in kinds)


def _json_types(kind: Any) -> tuple[type, ...]:
    """Return the Python types that the JSON value of a field with the annotation `kind` may have."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return tuple(t for part in typing.get_args(kind) for t in _json_types(part))
    if origin is Literal:
        return (str,)
    return {float: (float, int)}.get(kind, (origin or kind,))
