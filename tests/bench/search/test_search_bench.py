"""Tests of the search benchmark: counts of the simulator, sharing, speed-up, and properties of the problems."""

from typing import Any

import numpy as np
import pytest
from arms import arms
from problems import recorded, synthetic
from record_curves import GRID
from search_quality import POINTS, speed_up
from simulate import simulate


class InTurn:
    """Arm that returns the given configurations in order and stops each trial after `retry` epochs."""

    def __init__(self, configurations: list[dict[str, Any]], retry: int = 99):
        self.remaining, self.retry, self.ended = list(configurations), retry, []

    def ask(self, name: str) -> dict[str, Any] | None:
        return self.remaining.pop(0) if self.remaining else None

    def report(self, name: str, result: dict[str, Any]) -> bool:
        return result["epochs"] < self.retry

    def end(self, name: str, result: dict[str, Any]) -> None:
        self.ended.append((name, result["epochs"], len(result["points"])))


def two_sizes() -> list[dict[str, Any]]:
    others = {"p1": 0.3, "p2": 0.4, "p3": 0.5, "p4": 0.5, "prune.ratios": [0.2]}
    return [{"p0": 0.2, **others}, {"p0": 1.0, **others}]  # 0.75 M MACs, and 30 M before pruning: over the limit


def test_epochs_points_and_infeasible_trials_are_counted() -> None:
    problem, arm = synthetic("concave"), InTurn(two_sizes())
    trace = simulate(problem, arm, budget=1000, workers=2)
    epochs = [len(problem.curve(values)) for values in two_sizes()]
    assert trace.spent == sum(epochs) == 38
    assert (trace.trials, trace.stopped, trace.infeasible, trace.infeasible_epochs) == (2, 0, 1, epochs[1])
    assert arm.ended == [("t0000", 19, 2), ("t0001", 19, 2)]  # the epochs of the small network take less time
    assert len(trace.hypervolume) == 2  # the points of the large network add nothing
    assert 0 < trace.hypervolume[0] <= trace.hypervolume[1] < 1
    stopped = simulate(problem, InTurn(two_sizes(), retry=3), budget=1000, workers=1)
    assert (stopped.spent, stopped.stopped, stopped.hypervolume) == (6, 2, [])


def test_a_shared_dense_parent_is_trained_once() -> None:
    problem, small = synthetic("concave"), two_sizes()[0]
    again = small | {"prune.ratios": [0.4]}
    alone = simulate(problem, InTurn([small, again]), budget=1000, workers=1)
    shared = simulate(problem, InTurn([small, again]), budget=1000, workers=1, shared=True)
    assert (alone.spent, shared.spent) == (38, 22)
    assert shared.hypervolume == alone.hypervolume


def test_speed_up_closed_form() -> None:
    slow = np.tile(np.linspace(0, 1, POINTS + 1), (3, 1))
    ratio, low, high = speed_up(slow, np.minimum(1, 2 * slow))
    assert ratio == low == high == pytest.approx(2.0)
    assert np.isnan(speed_up(slow, slow / 2)[0])


@pytest.mark.slow
def test_ours_trains_nothing_infeasible_and_is_deterministic() -> None:
    problem = recorded()
    traces = [simulate(problem, arms(None)["ours"](problem, 3), budget=150) for _ in range(2)]
    assert traces[0] == traces[1]
    assert traces[0].infeasible == 0
    assert traces[0].trials > 8
    stock = simulate(problem, arms(None)["stock"](problem, 3), budget=150)
    assert stock.infeasible > 0


def test_recorded_table_shuts_out_a_third() -> None:
    problem = recorded()
    ratios = [[a, *b] for a in (0.25, 0.5) for b in ([], [0.25], [0.5])]
    values = [dict(zip(GRID, corner, strict=True)) for corner in np.ndindex(*map(len, GRID.values()))]
    values = [{k: GRID[k][i] for k, i in v.items()} | {"prune.ratios": r} for v in values for r in ratios]
    assert len(values) == 192
    assert np.mean([not problem.feasible(v) for v in values]) == pytest.approx(1 / 3, abs=0.05)
    assert {len(problem.curve(v)) for v in values} == {10, 12}
