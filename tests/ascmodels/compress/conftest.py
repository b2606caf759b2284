"""Fixtures of the tests of pruning."""

import pytest

from ascmodels.students import Student
from tests.support.ascmodels.untrained import SMALL, trained


@pytest.fixture(scope="module")
def small() -> Student:
    return trained(SMALL)
