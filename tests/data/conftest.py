"""Fixtures of the tests of `data`."""

import pytest

from data.tau import read_split


@pytest.fixture(scope="module")
def names(tiny_tau):
    return list(read_split(tiny_tau, "split100").filename)
