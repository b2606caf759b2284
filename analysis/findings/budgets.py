"""The most accurate candidate within each budget of MACs or bytes, and the knee of the front."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import front
from analysis.results import Study, take

MACS = (1e6, 2e6, 5e6, 10e6, 20e6, 30e6)
BYTES = (16e3, 32e3, 64e3, 128e3)


@dataclass(frozen=True)
class Budget:
    """An upper limit of a column ("macs", or a bytes column), and the row of the most accurate candidate within it.

    The row has the columns of `Study.with_test`. It is None if no candidate is so small.
    """

    column: str
    limit: float
    point: dict[Any, Any] | None


def budgets(study: Study) -> list[Budget]:
    """Return what each budget buys, MACs first, in increasing order; an empty list if the study has no candidate.

    Budgets above a limit of the study are replaced by this limit. Of equally accurate candidates, the smaller is taken.
    """
    columns = ["val_macro_avg_acc", "macs", study.bytes_column]
    found = take(study.with_test(), front.candidates(study))
    found = take(found, np.isfinite(found[columns].to_numpy(float)).all(axis=1))
    if found.empty:
        return []
    made = []
    for column, sizes, top in (("macs", MACS, study.limits.macs), (study.bytes_column, BYTES, study.limits.bytes)):
        ranked = found.sort_values(by=["val_macro_avg_acc", column], ascending=[False, True], kind="stable")
        for limit in [size for size in sizes if not top or size < top] + ([top] if top else []):
            within = take(ranked, ranked[column] <= limit)
            made.append(Budget(column, float(limit), None if within.empty else dict(within.iloc[0])))
    return made


def knee(study: Study) -> tuple[str, int] | None:
    """Return (trial, step) of the knee of the front: beyond it, more MACs buy less accuracy than before it.

    It is the point farthest above the straight line between the smallest and the largest point, with MACs on a
    logarithmic scale and both axes scaled to [0, 1] (the normal-boundary definition, Das 1999). None if the front has
    less than three points, or none of them is above the line.
    """
    best = front.pareto_points(study)
    values = best[["val_macro_avg_acc", "macs"]].to_numpy(float)
    best = take(best, front.pareto_mask(values, ("max", "min")))  # other objectives may add points below the front
    if len(best) < 3:
        return None
    cost, accuracy = np.log(best["macs"].to_numpy(float)), best["val_macro_avg_acc"].to_numpy(float)
    if cost[0] == cost[-1] or accuracy[0] == accuracy[-1]:
        return None
    above = (accuracy - accuracy[0]) / (accuracy[-1] - accuracy[0]) - (cost - cost[0]) / (cost[-1] - cost[0])
    highest = int(np.argmax(above))
    if not above[highest] > 0:
        return None
    return str(best["trial_id"].iloc[highest]), int(best["step"].iloc[highest])
