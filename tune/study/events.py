"""The typed events of a study; each is written once and applied to every reducer (tune/study/log.py).

    event = EpochReported(trial="t0003", stage=0, epoch=1, epochs=1, figures={...})
    line = encode(event);  decode(json.loads(line)) == event

The journal (tune/study/journal.py) holds one JSON object per line: `event` is the kind, `time` is in UTC. Events are
written in format 2. In format 1 one `result` event described an epoch, a point and the end of a trial; `migrated`
converts such events to format 2.

A trial ends in exactly one way (`Outcome`):

    completed    its last stage was trained and measured
    stopped      stopped early, by its scheduler
    failed       a deterministic error, which would repeat: the loss is not finite, out of GPU memory
    crashed      an error outside the configuration, such as a lost node; a resume retries the trial
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

from trainables.outputs.records import now

FORMAT = 2
Outcome = Literal["completed", "stopped", "failed", "crashed"]


class EventError(ValueError):
    """Invalid content of an event, or an event that is not valid after the earlier ones."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of all events."""

    kind: ClassVar[str]
    time: str = field(default_factory=now)  # UTC


@dataclass(frozen=True, kw_only=True)
class DriverStarted(Event):
    """A driver process started to run the study."""

    kind = "driver_started"
    command: str


@dataclass(frozen=True, kw_only=True)
class DriverFinished(Event):
    """A driver ended normally. `digests` are hashes of the states of its sampler and its rungs; a resume compares them
    with the hashes after its replay."""

    kind = "driver_finished"
    digests: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ConfigurationJudged(Event):
    """The feasibility of a configuration that the sampler did not draw: a drawn one with fewer prune steps, or one of
    an earlier study (`--warm-start`)."""

    kind = "configuration_judged"
    params: dict[str, Any]
    key: str
    excess: float


@dataclass(frozen=True, kw_only=True)
class PointImported(Event):
    """A network that an earlier study measured (`--warm-start`); `point` holds its objective values."""

    kind = "point_imported"
    params: dict[str, Any]
    point: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SampleRejected(Event):
    """A sampled configuration that is not trained."""

    kind = "sample_rejected"
    params: dict[str, Any]
    reason: str
    example: str
    excess: float  # relative excess of the cheapest stage over the limits


@dataclass(frozen=True, kw_only=True)
class SpaceExhausted(Event):
    """The search ends because `rejections` samples in a row were rejected."""

    kind = "space_exhausted"
    rejections: int


@dataclass(frozen=True, kw_only=True)
class TrialCreated(Event):
    """A new trial: the first of a sampled configuration, a replicate, or a confirmation."""

    kind = "trial_created"
    trial: str  # t0003; t0003r1 is its first replicate
    config_id: str  # name of the first trial of the same configuration
    replicate: int  # 0, 1, ...: index of the seed within the configuration
    params: dict[str, Any]  # parameters of the Optuna trial
    values: dict[str, Any]  # configuration values that follow from `params`
    excess: float = 0.0
    key: str = ""  # identical for configurations that train the same networks in the same way
    attributes: dict[str, Any] = field(default_factory=dict)  # system attributes of the Optuna trial
    confirms: bool = False  # whether --confirm added it


@dataclass(frozen=True, kw_only=True)
class TrialRetried(Event):
    """A new driver retries a crashed trial."""

    kind = "trial_retried"
    trial: str


@dataclass(frozen=True, kw_only=True)
class TrialRestored(Event):
    """A trial continued from a checkpoint that was saved after `epochs` epochs."""

    kind = "trial_restored"
    trial: str
    epochs: int


@dataclass(frozen=True, kw_only=True)
class ConfigurationChanged(Event):
    """Configuration values that population based training changed."""

    kind = "configuration_changed"
    trial: str
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EpochReported(Event):
    """One epoch of a trial (`trainables.outputs.records.Record`)."""

    kind = "epoch_reported"
    trial: str
    stage: int  # 0: dense; k: after prune step k
    epoch: int  # 1, 2, ... within the stage
    epochs: int  # 1, 2, ... over all stages
    figures: dict[str, float | None]  # a subset of FIGURES: the measured ones


@dataclass(frozen=True, kw_only=True)
class PointMeasured(Event):
    """A measured network whose stage was trained to the end (`trainables.outputs.records.Point`)."""

    kind = "point_measured"
    trial: str
    point: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialEnded(Event):
    """A trial ended."""

    kind = "trial_ended"
    trial: str
    outcome: Outcome
    reason: str | None = None  # why it failed or crashed
    by: str | None = None  # what stopped it


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
    """Return the event as one line of JSON, with a newline."""
    values = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
    return json.dumps({"event": event.kind, **values}) + "\n"


def decode(content: Any) -> Event:
    """Return the event described by a JSON object of format 2; EventError names the invalid key and value."""
    if not isinstance(content, dict) or "event" not in content:
        raise EventError(f"expected an object with the key 'event', found {json.dumps(content)[:80]}")
    kind = content["event"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise EventError(f"unknown event {kind!r}: expected one of {', '.join(KINDS)}")
    fields = _fields(KINDS[kind])
    values = {key: value for key, value in content.items() if key != "event"}
    if unknown := set(values) - set(fields):
        raise EventError(f"event {kind!r}: unknown field {sorted(unknown)[0]!r}; expected {', '.join(fields)}")
    for name, value in values.items():
        if not isinstance(value, fields[name]) or (isinstance(value, bool) and bool not in fields[name]):
            raise EventError(
                f"event {kind!r}: field {name!r} is {json.dumps(value)[:80]}; expected {_names(fields[name])}"
            )
    try:
        event = KINDS[kind](**values)
    except TypeError as error:
        raise EventError(f"event {kind!r}: {error}") from None
    if isinstance(event, TrialEnded) and event.outcome not in typing.get_args(Outcome):
        raise EventError(
            f"event {kind!r}: outcome is {event.outcome!r}; expected one of {', '.join(typing.get_args(Outcome))}"
        )
    return event


@cache
def _fields(cls: type[Event]) -> dict[str, tuple[type, ...]]:
    """Return {field name: Python types of the JSON values that it accepts}."""
    return {name: _json_types(kind) for name, kind in typing.get_type_hints(cls).items() if name != "kind"}


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in kinds)


def _json_types(kind: Any) -> tuple[type, ...]:
    """Return the Python types of the JSON values that a type annotation accepts."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return tuple(t for part in typing.get_args(kind) for t in _json_types(part))
    if origin is Literal:
        return (str,)
    return {float: (float, int)}.get(kind, (origin or kind,))


def migrated(old: Any) -> Iterator[Event]:
    """Yield the events of format 2 that replace an event of format 1; EventError if `old` is invalid."""
    if not isinstance(old, dict) or not isinstance(old.get("event"), str):
        raise EventError(f"expected an object with the key 'event', found {json.dumps(old)[:80]}")
    if old["event"] not in _MIGRATIONS:
        raise EventError(f"unknown event {old['event']!r}: expected one of {', '.join(_MIGRATIONS)} in format 1")
    try:
        for kind, values in _MIGRATIONS[old["event"]](old):
            yield decode({"event": kind, "time": old["time"], **values})
    except KeyError as error:
        raise EventError(f"event {old['event']!r}: field {error} is missing") from None


def _renamed(kind: str, *names: str) -> Any:
    return lambda old: [(kind, {name: old[name] for name in names})]


def _trial_of_1(old: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    needed = ("trial", "config_id", "replicate", "params", "values")
    optional = {k: old[k] for k in ("excess", "key", "attributes", "confirms") if old.get(k) is not None}
    return [("trial_created", {name: old[name] for name in needed} | optional)]


def _result_of_1(old: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    name = {"trial": old["trial"]}
    point = [("point_measured", name | {"point": old["point"]})] if old.get("point") else []
    if old.get("failure"):
        return [*point, ("trial_ended", name | {"outcome": "failed", "reason": old["failure"]})]
    figures = {k: old.get(k) for k in FIGURES}
    position = {"stage": old["stage"], "epoch": old.get("epoch") or 0, "epochs": old["epochs"]}
    new: list[tuple[str, dict[str, Any]]] = [("epoch_reported", name | position | {"figures": figures})]
    new += point
    if old["done"]:
        ended = {"outcome": "completed"} if old["finished"] else {"outcome": "stopped", "by": "scheduler"}
        new.append(("trial_ended", name | ended))
    return new


def _end_of_1(old: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    crashed = old["status"] == "failed"
    ended = {"outcome": "crashed", "reason": old["failure"]} if crashed else {"outcome": "stopped", "by": "scheduler"}
    return [("trial_ended", {"trial": old["trial"]} | ended)]


_MIGRATIONS: dict[str, Any] = {
    "run": _renamed("driver_started", "command"),
    "known": _renamed("point_imported", "params", "point"),
    "reject": _renamed("sample_rejected", "params", "reason", "example", "excess"),
    "trial": _trial_of_1,
    "judged": _renamed("configuration_judged", "params", "key", "excess"),
    "retry": _renamed("trial_retried", "trial"),
    "restore": _renamed("trial_restored", "trial", "epochs"),
    "change": _renamed("configuration_changed", "trial", "values"),
    "result": _result_of_1,
    "exhausted": _renamed("space_exhausted", "rejections"),
    "rungs": lambda old: [("driver_finished", {"digests": {}})],
    "end": _end_of_1,
}
