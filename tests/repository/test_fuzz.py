"""A minute of tests/bench/fuzz.py: each damaged input ends in one of the project's own errors, in one line."""

import pytest

from tests.bench.fuzz import faults


@pytest.mark.slow
def test_damaged_inputs_are_answered_in_one_line():
    found = list(faults(n_inputs=160, seed=1, seconds=60))
    assert not found, "\n".join(f"{f.kind} (--seed 1 --first {f.number} --inputs 1 --show): {f.detail}" for f in found)
