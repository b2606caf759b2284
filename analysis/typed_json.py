"""Convert parsed JSON to a typed dataclass, with an error for each value of another type."""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

REMEDY = "correct the file or restore it from a backup"
_T = TypeVar("_T")


class ResultsError(Exception):
    """Error of a study folder that cannot be read; the message names the file and the reason."""


def from_json(cls: type[_T], content: Mapping[str, Any], where: str) -> _T:
    """Return an instance of the dataclass `cls`, filled from the keys of `content` that are fields of `cls`.

    A missing or null key has the default of its field. Raise ResultsError if a value has the wrong type or a
    field without default is missing; its message starts with `where` (file and key).
    """
    hints = typing.get_type_hints(cls)
    values = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type] - cls is a dataclass
        if content.get(f.name) is not None:
            values[f.name] = _typed(content[f.name], hints[f.name], f"{where}: {f.name}")
        elif f.default is f.default_factory is dataclasses.MISSING:
            raise ResultsError(f"{where}: key {f.name!r} is missing or null; expected {_name(hints[f.name])}; {REMEDY}")
    return cls(**values)


def _typed(value: Any, kind: Any, where: str) -> Any:
    """Return the JSON value `value` converted to the field type `kind` (a list to a tuple, an object to a dataclass).

    Raise ResultsError if the value does not have this type; its message starts with `where` (file and key).
    """
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
        return _typed(value, kind, where)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return from_json(typing.cast(type, kind), value, where)
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
    raise ResultsError(f"{where} is {json.dumps(value)[:60]}; expected {_name(kind)}; {REMEDY}")


def _name(kind: Any) -> str:
    """Return what a field of type `kind` expects in JSON, as text for error messages, e.g. "a number"."""
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    if typing.get_origin(kind) is tuple:
        return "a list"
    if typing.get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        return "an object"
    return names.get(kind, str(kind))
