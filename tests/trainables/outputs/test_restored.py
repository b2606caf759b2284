"""Points and records from a file: each field has its type, or nothing is restored."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from data.seals import seal
from trainables.outputs.records import Point, Record
from trainables.outputs.restored import restored_point, restored_record
from trainables.trial.dense_phase import Parent

POINT = Point(
    *(
        0,
        3,
        0.5,
        1.2,
        1000,
        100,
        400,
        200,
        100,
        0,
        True,
        {"bus": 0.5},
        {"a": 0.5},
        {"real": 1.0},
        {"out": [8]},
        "step0",
    ),
    *(None, 0.25, [[1, 0], [0, 1]], None),
)
RECORD = Record(0, 1, 1, 2.0, float("inf"), 0.5, 0.1, 0.5, 1000, 100, 0.0, 1.5, POINT, False)
ODD: tuple[Any, ...] = ("x", [], {}, [None], {"a": "b"}, {"a": [0.5]}, object())
VALID = (("checkpoint", "x"), ("confusion", []))  # among ODD
NUMBERS = {"step", "macs", "feasible", "stage", "epochs", "seconds", "finished"}


def test_what_was_saved_is_restored() -> None:
    for point in (POINT, Point(**asdict(POINT) | {"val_ece": 1, "confusion": None})):
        assert restored_point(json.loads(json.dumps(asdict(point)))) == point
    assert restored_record(json.loads(json.dumps(asdict(RECORD)))) == RECORD
    assert restored_record(asdict(RECORD) | {"point": None}).point is None


@pytest.mark.parametrize("name", [field.name for field in fields(Point)])
def test_a_field_of_a_point_with_another_type_is_refused(name: str) -> None:
    for value in (*ODD, *((None, True) if name in NUMBERS - {"feasible"} else ())):
        if (name, value) in VALID or (name in ("class_acc", "device_acc", "group_acc", "widths") and value == {}):
            continue
        with pytest.raises(ValueError, match=rf"point\.{name}="):
            restored_point(asdict(POINT) | {name: value})


@pytest.mark.parametrize("name", [field.name for field in fields(Record)])
def test_a_field_of_a_record_with_another_type_is_refused(tmp_path: Path, name: str) -> None:
    """A shared dense phase with such a record is not used, although its seal is valid."""
    for value in ODD[:-1]:
        with pytest.raises((LookupError, TypeError, ValueError)):
            restored_record(asdict(RECORD) | {name: value})
    (tmp_path / "state-0001").mkdir()
    seal(tmp_path / "state-0001", records=[asdict(RECORD)])
    assert Parent(tmp_path).read() == 1
    seal(tmp_path / "state-0001", records=[asdict(RECORD) | {name: ["x"]}])
    assert Parent(tmp_path).read() == 0


@pytest.mark.parametrize("checkpoint", ["../x", "/x", "", "a/b", "a\nb", ".x"])
def test_a_checkpoint_out_of_the_trial_is_refused(checkpoint: str) -> None:
    with pytest.raises(ValueError, match=r"point\.checkpoint="):
        restored_point(asdict(POINT) | {"checkpoint": checkpoint})


def test_missing_and_unknown_fields_are_refused() -> None:
    for values in ({**asdict(POINT), "more": 1}, {"step": 0}):
        with pytest.raises(TypeError):
            restored_point(values)
    with pytest.raises((TypeError, KeyError)):
        restored_record({"stage": 0})
