"""The Pareto front of a running study, updated with each measured network at a cost that depends on the front only."""

from analysis.front import pareto_mask
from tune.search.optuna_study import OBJECTIVES
from tune.study.events import Event, PointMeasured


class RunningFront:
    """Reducer that keeps the objectives `values [N, M]` of the non-dominated networks within the limits."""

    def __init__(self):
        self.values: list[list[float]] = []
        self._known: set[tuple[str, int]] = set()  # (trial, step): the first measurement of a step counts

    def apply(self, event: Event) -> None:
        if not isinstance(event, PointMeasured) or (event.trial, event.point["step"]) in self._known:
            return
        self._known.add((event.trial, event.point["step"]))
        if event.point["feasible"]:
            values = [*self.values, [float(event.point[name]) for name in OBJECTIVES]]
            mask = pareto_mask(values, list(OBJECTIVES.values()))
            self.values = [row for row, best in zip(values, mask, strict=True) if best]
