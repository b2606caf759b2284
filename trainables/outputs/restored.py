"""Records and points that are read from a file: the type of each value is checked before any code uses it."""

from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from data.untrusted import is_name
from trainables.outputs.records import Point, Record

_T = TypeVar("_T", Point, Record)


def restored_point(values: Mapping[str, Any]) -> Point:
    """Return the point with the fields `values`, which were read from a file.

    ValueError or TypeError if a field is missing or has another type, or if `checkpoint`, the folder of its network in
    the trial's folder, is not a valid name (`is_name`).
    """
    point = _checked(Point(**values))
    if not is_name(point.checkpoint):
        raise ValueError(f"point.checkpoint={point.checkpoint!r} is not the name of a folder, such as step0")
    return point


def restored_record(values: Mapping[str, Any]) -> Record:
    """Return the record with the fields `values`, which were read from a file.

    ValueError or TypeError if a field is missing or has another type, or if its point is not valid (`restored_point`).
    """
    point = values["point"]
    return _checked(Record(**{**values, "point": None if point is None else restored_point(point)}))


def _checked(found: _T) -> _T:
    for field in fields(found):
        value = getattr(found, field.name)
        if not _has_type(value, field.type):
            name = f"{type(found).__name__.lower()}.{field.name}"
            raise ValueError(f"{name}={value!r:.60} has another type than expected: {field.type}")
    return found


def _has_type(value: Any, kind: Any) -> bool:
    """Return whether `value` has the type `kind`: a class, or a union, list or dict (with keys of text) of types."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_has_type(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_has_type(item, parts[0]) for item in value)
    if origin is dict:
        return (
            isinstance(value, dict)
            and all(isinstance(key, str) for key in value)
            and all(_has_type(item, parts[1]) for item in value.values())
        )
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)
