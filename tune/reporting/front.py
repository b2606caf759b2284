"""The Pareto front of a running study, updated with each measured network.

An update compares the new network with the front only, so its cost does not grow with the number of measured networks.
"""

from analysis.front import pareto_mask
from tune.search.optuna_study import OBJECTIVES
from tune.study.events import Event, PointMeasured


class RunningFront:
    """Reducer that keeps the Pareto front of the measured networks within the study's limits (MACs and bytes).

    `values [N, M]` are the values of the M objectives of the N networks on the front. The objectives have the order of
    OBJECTIVES (tune/search/optuna_study.py): validation accuracy, MACs.
    """

    def __init__(self):
        self.values: list[list[float]] = []
        self._known: set[tuple[str, int]] = set()  # (trial, prune step): its first measurement counts

    def apply(self, event: Event) -> None:
        if not isinstance(event, PointMeasured) or (event.trial, event.point["step"]) in self._known:
            return
        self._known.add((event.trial, event.point["step"]))
        if event.point["feasible"]:
            values = [*self.values, [float(event.point[name]) for name in OBJECTIVES]]
            mask = pareto_mask(values, list(OBJECTIVES.values()))
            self.values = [row for row, best in zip(values, mask, strict=True) if best]
