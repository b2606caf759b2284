"""Search problems for tests/bench/search_quality.py: recorded learning curves, and synthetic ones with a known front.

A problem maps a configuration to its complete learning curve, dense and pruned, with one `Epoch` per epoch; nothing is
trained. The recorded problem is tests/bench/data/curves.csv.gz (made by tests/bench/record_curves.py). In the synthetic
problems the accuracy is a known bound f(log MACs), minus a penalty for the distance of the other parameters from their
best values. One of these parameters also sets how fast a network learns, so that learning curves cross. The accuracy
that the search receives has the noise of a validation part.
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
    """One epoch: `acc` is reported to the search, `true` is used for the hypervolume; `ends`: last of its stage."""

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
    best: float  # hypervolume of the best possible front

    def feasible(self, values: dict[str, Any]) -> bool:
        return self.excess(values) <= 0

    def excess(self, values: dict[str, Any]) -> float:
        """Return by how much the smallest network exceeds the limit, relative to it; known before training."""
        return min(e.macs for e in self.curve(values)) / self.limit - 1

    def hypervolume(self, points: list[tuple[float, float]]) -> float:
        """Return the share of the rectangle (accuracy CHANCE to 1, MACs 0 to the limit) that `points` dominate.

        `points` are pairs (accuracy, MACs).
        """
        area = (1 - CHANCE) * self.limit
        return hypervolume_2d(points, ("max", "min"), (CHANCE, self.limit)) / area if points else 0.0


def key_of(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def recorded(infeasible_share: float = 1 / 3) -> Problem:
    """Return the recorded problem, with a limit that about `infeasible_share` of its configurations exceed."""
    table = pd.read_csv(TABLE, dtype={"prune": str}, keep_default_na=False)
    keys = [name for name in table.columns if "." in name]
    parts: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        parts.setdefault((*(row[key] for key in keys), row["prune"]), []).append(row)
    schedules = [[float(r) for r in text.split("/")] for text in sorted(set(table["prune"])) if text]
    parameters: dict[str, Any] = {key: {"choice": sorted(table[key].unique().tolist())} for key in keys}
    ratios = sorted({ratio for schedule in schedules for ratio in schedule})
    parameters["prune.ratios"] = {"each": "prune.steps", "item": {"choice": ratios}}
    auxiliary = {"prune.steps": {"int": [1, max(map(len, schedules))]}}
    space = space_from_dict({"name": "recorded", "parameters": parameters, "auxiliary": auxiliary})

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
    """Return a problem; the configurations `best` contain those of the best possible front."""

    def curve(values: dict[str, Any]) -> list[Epoch]:
        return curve_of(key_of(values))

    curves = [curve(values) for values in best]
    problem = Problem(curve=curve, max_epochs=max(map(len, curves)), best=0.0, **described)
    ends = [(e.true, e.macs) for epochs in curves for e in epochs if e.ends]
    return replace(problem, best=problem.hypervolume(ends))


BOUNDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # best accuracy as a function of u, the position of log MACs in its range; shapes of ZDT1 and ZDT3 as accuracies
    "concave": lambda u: 0.35 + 0.5 * np.sqrt(u),
    "convex": lambda u: 0.35 + 0.5 * u**2,
    "gaps": lambda u: 0.35 + 0.5 * np.sqrt(u) + 0.06 * np.sin(6 * np.pi * u) * u,
}
LEAST, MOST = 3e5, 3e7  # smallest and largest MACs of dense networks
DENSE_EPOCHS, RETRAINING = 16, 3


def synthetic(shape: str, limit: float = 3e6) -> Problem:
    """Return a synthetic problem with the front `shape`.

    Parameters: a width, four parameters with the best values 0.3, 0.4, 0.5, 0.6 (the third depends on the width), and
    one or two prune steps.
    """
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
            lost += 0.15 * ratio**2  # in addition to the lower bound at the smaller size
            place = np.log(max(macs, LEAST * 0.02) / LEAST) / np.log(MOST / LEAST)
            final = float(bound(np.array(max(place, 0.0)))) - 0.5 * off - lost + min(place, 0.0) * 0.3
            final = max(final, CHANCE)
            n = RETRAINING if stage else DENSE_EPOCHS
            start = 0.7 * final if stage else CHANCE
            for e in range(1, n + 1):
                true = final - (final - start) * float(np.exp(-e / (slow if not stage else 1.0)))
                observed = true + 0.01 * float(rng.standard_normal())
                epochs.append(Epoch(stage, e, observed, true, macs, e == n))
        return epochs

    best = [
        {"p0": u, "p1": 0.3, "p2": 0.4, "p3": 0.5 + 0.3 * (u - 0.5), "p4": 0.6, "prune.ratios": [r, *more]}
        for u in np.linspace(0, 1, 101).tolist()
        for r in (0.1, 0.2, 0.3, 0.5)
        for more in ([], [0.1], [0.4])
    ]
    return _problem(name=shape, space=space, limit=limit, dense_epochs=DENSE_EPOCHS, curve_of=curve_of, best=best)
