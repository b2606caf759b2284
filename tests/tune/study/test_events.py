"""Events: round trips, what is refused, and the events of format 1."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulated import RandomStudy
from tune.study.events import (
    KINDS,
    EpochReported,
    Event,
    EventError,
    PointMeasured,
    TrialCreated,
    TrialEnded,
    decode,
    encode,
)
from tune.study.format1 import migrated


def test_every_kind_comes_back_from_its_line(tmp_path: Path) -> None:
    seen = set()
    for seed in range(12):
        for event in RandomStudy(tmp_path, seed).run(80):
            again = decode(json.loads(encode(event)))
            assert encode(again) == encode(event)
            assert type(again) is type(event)
            seen.add(event.kind)
    written_elsewhere = {"driver_finished", "point_imported", "configuration_changed", "space_exhausted"}
    assert seen == set(KINDS) - written_elsewhere


def test_events_are_frozen_and_declare_types() -> None:
    for cls in KINDS.values():
        assert dataclasses.is_dataclass(cls) and issubclass(cls, Event)
        with pytest.raises(dataclasses.FrozenInstanceError):
            TrialEnded(trial="t0000", outcome="failed").trial = "t0001"  # type: ignore[misc]


def test_what_is_not_a_number_stays_so() -> None:
    event = EpochReported(trial="t0000", stage=0, epoch=1, epochs=1, figures={"train_loss": math.nan})
    again = decode(json.loads(encode(event)))
    assert isinstance(again, EpochReported)
    assert math.isnan(again.figures["train_loss"] or 0.0)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (42, "42"),
        ({}, "{}"),
        ([], "[]"),
        (None, "null"),
        ({"event": "trial_endedd"}, "trial_endedd"),
        ({"event": ["trial_ended"]}, "trial_ended"),
        ({"event": "trial_ended", "trial": "t0", "outcome": "lost"}, "lost"),
        ({"event": "trial_ended", "trial": 3, "outcome": "failed"}, "3"),
        ({"event": "trial_ended", "outcome": "failed"}, "trial"),
        ({"event": "trial_ended", "trial": "t0", "outcome": "failed", "because": 1}, "because"),
        ({"event": "epoch_reported", "trial": "t", "stage": True, "epoch": 1, "epochs": 1, "figures": {}}, "true"),
        ({"event": "trial_created", "trial": "t", "config_id": "t", "replicate": 0, "params": [], "values": {}}, "[]"),
    ],
)
def test_what_is_no_event_is_refused_and_named(content: Any, value: str) -> None:
    with pytest.raises(EventError) as error:
        decode(content)
    assert value in str(error.value)


CREATED = {"event": "trial_created", "trial": "t0", "config_id": "t0", "replicate": 0, "params": {}, "values": {}}
POINT = {"event": "point_measured", "trial": "t0", "point": {"step": 0}}


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        *(
            (CREATED | {key: name}, key, name)
            for key in ("trial", "config_id")
            for name in (
                "../../../outside/x",
                "/x",
                "..",
                ".",
                "",
                ".hidden",
                "a/b",
                "a\\b",
                "a\nb",
                "a\x1b[2J",
                "x" * 300,
            )
        ),
        ({"event": "trial_retried", "trial": "../x"}, "trial", "../x"),
        *((POINT | {"point": {"checkpoint": c}}, "checkpoint", str(c)) for c in ("../x", "/x", "step0/../../x", "", 5)),
        (CREATED | {"values": {"data.cache_dir": "/outside"}}, "data.cache_dir", "/outside"),
        (CREATED | {"values": {"seed": 1}}, "seed", "1"),
        (CREATED | {"values": {"train.lr": "${oc.env:HOME}"}}, "values", "${oc.env:HOME}"),
        (CREATED | {"params": {"x": [{"y": "${oc.env:HOME}"}]}}, "params", "${oc.env:HOME}"),
        (
            {"event": "configuration_changed", "trial": "t0", "values": {"train.lr": "${x}"}},
            *("values", "${x}"),
        ),
    ],
)
def test_a_journal_of_somebody_else_names_no_path_outside_and_no_secret(content: Any, key: str, value: str) -> None:
    for valid in (CREATED, POINT, POINT | {"point": {"checkpoint": "step0"}}):
        decode(valid)
    with pytest.raises(EventError) as error:
        decode(content)
    assert repr(key) in str(error.value)
    assert json.dumps(value)[1:-1][:80] in str(error.value) or repr(value)[1:-1][:80] in str(error.value)


OLD = {"time": "2026-01-05T09:30:00+00:00"}


def old(event: str, **fields: Any) -> list[Event]:
    return list(migrated(OLD | {"event": event} | fields))


def test_a_result_of_format_1_is_an_epoch_a_point_and_an_end() -> None:
    figures = {"stage": 1, "epoch": 2, "epochs": 10, "val_macro_avg_acc": 0.5, "macs": 100, "train_loss": 1.5}
    point = {"step": 1, "macs": 100}
    epoch, measured, ended = old("result", trial="t0001", done=True, finished=True, point=point, **figures)
    assert isinstance(epoch, EpochReported)
    assert (epoch.stage, epoch.epoch, epoch.epochs, epoch.time) == (1, 2, 10, OLD["time"])
    assert epoch.figures["val_macro_avg_acc"] == 0.5 and epoch.figures["val_loss"] is None
    assert isinstance(measured, PointMeasured) and measured.point == point
    assert isinstance(ended, TrialEnded) and ended.outcome == "completed"
    *_, stopped = old("result", trial="t0001", done=True, finished=False, **figures)
    assert isinstance(stopped, TrialEnded) and stopped.outcome == "stopped"
    (going_on,) = old("result", trial="t0001", done=False, finished=False, **figures)
    assert isinstance(going_on, EpochReported)


def test_failures_and_ends_of_format_1() -> None:
    (failed,) = old("result", trial="t0001", done=True, finished=False, failure="loss is nan", stage=None, epochs=0)
    assert failed == TrialEnded(trial="t0001", outcome="failed", reason="loss is nan", time=OLD["time"])
    nothing = {"stage": None, "epochs": 0, "done": True, "finished": False, "failure": "loss is nan"}
    measured, failed = old("result", trial="t0001", point={"step": 0, "macs": 100}, **nothing)
    assert isinstance(measured, PointMeasured) and measured.point == {"step": 0, "macs": 100}
    assert isinstance(failed, TrialEnded) and failed.outcome == "failed"
    (crashed,) = old("end", trial="t0001", status="failed", failure="the node died")
    assert crashed == TrialEnded(trial="t0001", outcome="crashed", reason="the node died", time=OLD["time"])
    (stopped,) = old("end", trial="t0001", status="stopped early", failure=None)
    assert isinstance(stopped, TrialEnded) and stopped.outcome == "stopped"


def test_a_confirmation_of_format_1_has_no_key() -> None:
    shared = {"trial": "t0001r1", "config_id": "t0001", "replicate": 1, "params": {}, "values": {}}
    (created,) = old("trial", confirms=True, excess=0.0, **shared)
    assert isinstance(created, TrialCreated)
    assert (created.confirms, created.key, created.attributes) == (True, "", {})


@pytest.mark.parametrize("content", [42, {}, {"event": "tial"}, {"event": "trial", "time": "x"}, {"event": None}])
def test_what_is_no_event_of_format_1(content: Any) -> None:
    with pytest.raises(EventError):
        list(migrated(content))
