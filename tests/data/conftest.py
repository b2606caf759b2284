"""Fixtures of the tests of `data`."""

import shutil

import pytest

from data.tau import read_split


@pytest.fixture(scope="module")
def names(tiny_tau):
    return list(read_split(tiny_tau, "split100").filename)


@pytest.fixture
def few(tiny_tau, tmp_path, names):
    """Return the folder and names of six clips that a test may damage."""
    chosen = sorted(names)[::9]
    for name in chosen:
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_tau / name, tmp_path / "clips" / name)
    return tmp_path / "clips", chosen
