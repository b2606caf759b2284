"""Markers for tests with many similar cases."""

from collections.abc import Iterable
from typing import Any

import pytest


def rest_slow(values: Iterable[Any], fast: int) -> list[Any]:
    """Return `values` as parameters of a test. All but the first `fast` of them get the marker `slow`."""
    return [value if i < fast else pytest.param(value, marks=pytest.mark.slow) for i, value in enumerate(values)]
