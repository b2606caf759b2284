"""Checks of the ranges in a search space; `search_spaces/__init__.py` lists the kinds of range."""

import json
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

_FIELDS = {
    "uniform": {"step"},
    "loguniform": set(),
    "int": {"step"},
    "choice": set(),
    "subset": {"min"},
    "each": {"item"},
}
_LARGEST = 2**53  # of integers: Optuna computes with floats
_LONGEST = 100  # entries of a list


class SpaceError(ValueError):
    """A search space is invalid; the message names the file, the parameter and the expected value."""


def check_range(spec: Any, where: str, auxiliary: Mapping[str, Any]) -> None:
    """Raise SpaceError unless `spec` is a valid range; `where` (file and key) is part of the message.

    A range of the kind `each` describes a list, whose length is a parameter in `auxiliary` (name -> range). `auxiliary`
    is empty where no list is allowed.
    """
    kinds = [kind for kind in _FIELDS if kind in spec] if isinstance(spec, dict) else []
    if len(kinds) != 1:
        raise SpaceError(
            f"{where}: expected one of {', '.join(_FIELDS)} as the kind of range; got {spec!r}: "
            "write a range such as {uniform: [0.1, 0.9]}"
        )
    kind = kinds[0]
    unknown = sorted(map(str, set(spec) - {kind} - _FIELDS[kind]))
    if unknown:
        raise SpaceError(
            f"{where}: unknown key {unknown[0]!r} in a range of kind {kind}: use {', '.join([kind, *_FIELDS[kind]])}"
        )
    value = spec[kind]
    if kind in ("uniform", "loguniform", "int"):
        _check_limits(kind, value, where)
        if "step" in spec:
            _check_step(kind, spec["step"], value, where)
    elif kind in ("choice", "subset"):
        try:
            texts = {json.dumps(v, allow_nan=False) for v in value} if isinstance(value, list) else set()
            different = bool(texts) and len(texts) == len(value)
        except (TypeError, ValueError):  # for example a date or NaN: choices are passed to Optuna as JSON
            different = False
        if not different:
            raise SpaceError(f"{where}: {kind} needs a list of different numbers, strings or lists; got {value!r:.200}")
        least = spec.get("min", 0)
        if not isinstance(least, int) or isinstance(least, bool) or not 0 <= least <= len(value):
            raise SpaceError(
                f"{where}: min {least!r} of {len(value)} members is invalid; expected an integer from 0 to "
                f"{len(value)}, because `min` is the smallest number of members to choose: correct it"
            )
    else:
        steering = auxiliary.get(value) if isinstance(value, str) else None
        if not isinstance(steering, dict) or "int" not in steering:
            raise SpaceError(
                f"{where}: the key `each` is {value!r}; expected the name of an int range under `auxiliary`, which "
                "gives the length of the list: add this range, for example prune.steps: {int: [1, 3]}, or correct the "
                "name. But if this range (with `each`) is itself under `auxiliary`, or the `item` of another list, "
                "it must not be a list: use a range of another kind"
            )
        if _top(steering) > _LONGEST:
            raise SpaceError(
                f"{where}: the list may have {_top(steering)!r:.60} entries, the upper limit of auxiliary.{value}; "
                f"expected at most {_LONGEST}: lower this limit"
            )
        check_range(spec.get("item"), f"{where}[item]", {})


def _top(spec: Mapping[str, Any]) -> Any:
    """Return the upper limit of the int range `spec`; 0 if it is invalid, which `check_range` reports by itself."""
    limits = spec["int"]
    high = limits[-1] if isinstance(limits, list) and limits else 0
    return high if isinstance(high, int) else 0


def _check_limits(kind: str, value: Any, where: str) -> None:
    number = int if kind == "int" else (int, float)
    largest = _LARGEST if kind == "int" else sys.float_info.max  # NaN is not below it
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(v, number) and not isinstance(v, bool) and abs(v) <= largest for v in value)
    ):
        expected = "integers" if kind == "int" else "finite numbers (YAML reads 1e-3 as text: write 1.0e-3)"
        raise SpaceError(f"{where}: {kind} needs [low, high], two {expected}; got {value!r:.200}")
    low, high = value
    if low > high:
        raise SpaceError(f"{where}: low {low} is above high {high}; expected [low, high]: exchange the numbers")
    if kind == "loguniform" and low <= 0:
        raise SpaceError(f"{where}: a log scale needs low above 0, got {low}: raise it, or use uniform")


def _check_step(kind: str, step: Any, limits: tuple[float, float], where: str) -> None:
    if (
        not isinstance(step, int if kind == "int" else int | float)
        or isinstance(step, bool)
        or not 0 < step <= _LARGEST
    ):
        expected = "an integer of 1 or more" if kind == "int" else "a number above 0"
        raise SpaceError(f"{where}: step {step!r:.60} is invalid; expected {expected}: correct it")
    low, high = (Decimal(str(limit)) for limit in limits)
    if kind == "uniform" and (high - low) % Decimal(str(step)):
        raise SpaceError(
            f"{where}: step {step} does not lead from {low} to {high}; expected a step that divides the range into "
            f"equal parts, such as {(high - low) / 8}: correct it"
        )
