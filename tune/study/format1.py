"""Conversion of events of format 1, written by earlier versions of asc-tune, to the present events.

    for event in migrated(json.loads(line)): ...      # line: a line of a journal of format 1

In format 1, the event `result` described an epoch, a point and the end of a trial together.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tune.study.events import FIGURES, REMEDY, Event, EventError, decode


def migrated(old: Any) -> Iterator[Event]:
    """Yield the events that replace `old`, a parsed line of format 1. Raise EventError if `old` is invalid."""
    if not isinstance(old, dict) or not isinstance(old.get("event"), str):
        raise EventError(f"found {json.dumps(old)[:80]}; expected a JSON object with the key 'event'; {REMEDY}")
    if old["event"] not in _MIGRATIONS:
        raise EventError(f"key 'event' is {old['event']!r}; expected {', '.join(_MIGRATIONS)} (format 1); {REMEDY}")
    try:
        for kind, values in _MIGRATIONS[old["event"]](old):
            yield decode({"event": kind, "time": old["time"], **values})
    except KeyError as error:
        raise EventError(f"event {old['event']!r} of format 1 lacks the required field {error}; {REMEDY}") from None


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
