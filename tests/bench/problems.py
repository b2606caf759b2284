"""What tests/bench/search_quality.py searches: recorded learning curves, and synthetic ones whose front is known.

A problem maps a configuration to its whole curve, one `Epoch` each, dense and pruned; nothing is trained. The recorded
one is tests/bench/data/curves.csv.gz (tests/bench/record_curves.py). In the synthetic ones accuracy falls short of a
known bound f(log MACs) by what the other parameters are off their best values; one of these also decides how fast a
network learns, so that learning curves cross, and what a search sees has the noise of a validation part.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.front import hypervolume_2d
from search_spaces import Space, space_from_dict

TABLE = Path(__file__).parent / "data" / "curves.csv.gz"
CHANCE = 0.1  # ten scenes


@dataclass(frozen=True)
class Epoch:
    """`acc` is what the search sees, `true` what counts; `ends` a stage, so that the network is a point."""

    stage: int
    epoch: int
    acc: float
    true: float
    macs: float
    ends: bool


@dataclass(frozen=True)
class Problem:
    name: str
    space: Space
    limit: float  # MACs
    dense_epochs: int
    max_epochs: int
    curve: Callable[[dict[str, Any]], list[Epoch]]
    best: float  # hypervolume of the best front there is

    def feasible(self, values: dict[str, Any]) -> bool:
        return self.excess(values) <= 0

    def excess(self, values: dict[str, Any]) -> float:
        """Relative, over the limit, of the smallest network: known before training."""
        return min(e.macs for e in self.curve(values)) / self.limit - 1

    def hypervolume(self, points: list[tuple[float, float]]) -> float:
        """Of (accuracy, MACs), as a share of the rectangle from chance to 1 and from 0 MACs to the limit."""
        area = (1 - CHANCE) * self.limit
        return hypervolume_2d(points, ("max", "min"), (CHANCE, self.limit)) / area if points else 0.0


def key_of(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def recorded(infeasible_share: float = 1 / 3) -> Problem:
    """The recorded table under a limit that shuts out about that share of its configurations."""
    table = pd.read_csv(TABLE, dtype={"prune": str}, keep_default_na=False)
    keys = [name for name in table.columns if "." in name]
    parts: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        parts.setdefault((*(row[key] for key in keys), row["prune"]), []).append(row)
    schedules = [[float(r) for r in text.split("/")] for text in sorted(set(table["prune"])) if text]
    parameters: dict[str, Any] = {key: {"choice": sorted(table[key].unique().tolist())} for key in keys}
    ratios = sorted({ratio for schedule in schedules for ratio in schedule})
    parameters["prune.ratios"] = {"each": "prune.steps", "item": {"choice": ratios}}
    steering = {"prune.steps": {"int": [1, max(map(len, schedules))]}}
    space = space_from_dict({"name": "recorded", "parameters": parameters, "auxiliary": steering})

    @cache
    def curve_of(key: str) -> list[Epoch]:
        values = json.loads(key)
        dense, ratios = tuple(values[k] for k in keys), [str(r) for r in values["prune.ratios"]]
        stages = [parts[(*dense, "/".join(ratios[:n]))] for n in range(len(ratios) + 1)]
        return [
            Epoch(int(r["stage"]), int(r["epoch"]), r["acc"], r["acc"], r["macs"], r is stage[-1])
            for stage in stages
            for r in stage
        ]

    dense = [dict(zip(keys, part[:-1], strict=True)) for part in parts if not part[-1]]
    everything = [values | {"prune.ratios": schedule} for values in dense for schedule in schedules]
    least = [min(e.macs for e in curve_of(key_of(values))) for values in everything]
    return _problem(
        name="recorded",
        space=space,
        limit=float(np.quantile(least, 1 - infeasible_share)),
        dense_epochs=int(table.loc[table["stage"] == 0, "epoch"].max()),
        curve_of=curve_of,
        best=everything,
    )


def _problem(curve_of: Callable[[str], list[Epoch]], best: list[dict[str, Any]], **described: Any) -> Problem:
    """`best` configurations hold the front."""

    def curve(values: dict[str, Any]) -> list[Epoch]:
        return curve_of(key_of(values))

    curves = [curve(values) for values in best]
    problem = Problem(curve=curve, max_epochs=max(map(len, curves)), best=0.0, **described)
    ends = [(e.true, e.macs) for epochs in curves for e in epochs if e.ends]
    return replace(problem, best=problem.hypervolume(ends))


BOUNDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # best accuracy over u, the position of log MACs in its range; ZDT1's and ZDT3's shapes, turned to accuracy
    "concave": lambda u: 0.35 + 0.5 * np.sqrt(u),
    "convex": lambda u: 0.35 + 0.5 * u**2,
    "gaps": lambda u: 0.35 + 0.5 * np.sqrt(u) + 0.06 * np.sin(6 * np.pi * u) * u,
}
LEAST, MOST = 3e5, 3e7  # MACs of dense networks
DENSE_EPOCHS, RETRAINING = 16, 3


def synthetic(shape: str, limit: float = 3e6) -> Problem:
    """Width, four parameters that are best at 0.3, 0.4, 0.5, 0.6 (the third at another place for large networks), and
    one or two prune steps."""
    bound = BOUNDS[shape]
    space = space_from_dict(
        {
            "name": shape,
            "parameters": {f"p{i}": {"uniform": [0.0, 1.0]} for i in range(5)}
            | {"prune.ratios": {"each": "prune.steps", "item": {"uniform": [0.1, 0.5]}}},
            "auxiliary": {"prune.steps": {"int": [1, 2]}},
        }
    )

    @cache
    def curve_of(key: str) -> list[Epoch]:
        values = json.loads(key)
        u, others = values["p0"], np.array([values[f"p{i}"] for i in range(1, 5)])
        rng = np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))
        off = float(np.sum((others - np.array([0.3, 0.4, 0.5 + 0.3 * (u - 0.5), 0.6])) ** 2))
        macs, slow = LEAST * (MOST / LEAST) ** u, 1.5 + 4 * values["p4"]
        epochs: list[Epoch] = []
        lost = 0.0
        for stage, ratio in enumerate([0.0, *values["prune.ratios"]]):
            macs *= (1 - ratio) ** 2
            lost += 0.15 * ratio**2  # beyond what the smaller size costs by the bound
            place = np.log(max(macs, LEAST * 0.02) / LEAST) / np.log(MOST / LEAST)
            final = float(bound(np.array(max(place, 0.0)))) - 0.5 * off - lost + min(place, 0.0) * 0.3
            final = max(final, CHANCE)
            n = RETRAINING if stage else DENSE_EPOCHS
            start = 0.7 * final if stage else CHANCE
            for e in range(1, n + 1):
                true = final - (final - start) * float(np.exp(-e / (slow if not stage else 1.0)))
                seen = true + 0.01 * float(rng.standard_normal())
                epochs.append(Epoch(stage, e, seen, true, macs, e == n))
        return epochs

    best = [
        {"p0": u, "p1": 0.3, "p2": 0.4, "p3": 0.5 + 0.3 * (u - 0.5), "p4": 0.6, "prune.ratios": [r, *more]}
        for u in np.linspace(0, 1, 101).tolist()
        for r in (0.1, 0.2, 0.3, 0.5)
        for more in ([], [0.1], [0.4])
    ]
    return _problem(name=shape, space=space, limit=limit, dense_epochs=DENSE_EPOCHS, curve_of=curve_of, best=best)
