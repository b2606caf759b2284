"""Search problems for tests/bench/search/search_quality.py, with recorded or with synthetic learning curves.

A `Problem` maps a configuration to the learning curve of its trial, over dense training and all prune steps; nothing is
trained. The best possible front is known.

- recorded: the curves in tests/bench/search/data/curves.csv.gz, made by tests/bench/search/record_curves.py
- synthetic: the accuracy is a bound f(log MACs), minus a penalty for the distance of the other parameters from their
  best values. One of these parameters also sets how fast a network learns, so that learning curves cross. The accuracy
  that the search receives has noise, as on a small validation set.
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
CHANCE = 0.1  # accuracy of guessing one of ten scenes


@dataclass(frozen=True)
class Epoch:
    """One epoch of a learning curve."""

    stage: int  # 0: dense training, k: retraining after prune step k
    epoch: int  # 1, 2, ... within the stage
    acc: float  # validation accuracy that is reported to the search
    true: float  # accuracy without noise, used for the hypervolume
    macs: float
    ends: bool  # True at the last epoch of the stage


@dataclass(frozen=True)
class Problem:
    """A search problem: a space, a limit on MACs, and the learning curve of each configuration."""

    name: str
    space: Space
    limit: float  # MACs
    dense_epochs: int
    max_epochs: int  # largest number of epochs of a trial, over all stages
    curve: Callable[[dict[str, Any]], list[Epoch]]  # configuration -> learning curve
    best: float  # hypervolume of the best possible front

    def feasible(self, values: dict[str, Any]) -> bool:
        return self.excess(values) <= 0

    def excess(self, values: dict[str, Any]) -> float:
        """Return the relative excess of a configuration over the MACs limit: least MACs of its networks / limit - 1.

        It is known before training. A value of at most 0 means that a network fits the limit.
        """
        return min(e.macs for e in self.curve(values)) / self.limit - 1

    def hypervolume(self, points: list[tuple[float, float]]) -> float:
        """Return the hypervolume of `points`, which are pairs (accuracy, MACs).

        It is the dominated share of the rectangle from accuracy CHANCE to 1 and from 0 MACs to the limit.
        """
        area = (1 - CHANCE) * self.limit
        return hypervolume_2d(points, ("max", "min"), (CHANCE, self.limit)) / area if points else 0.0


def key_of(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def recorded(infeasible_share: float = 1 / 3) -> Problem:
    """Return the problem with recorded learning curves.

    The MACs limit is chosen such that all networks of a share `infeasible_share` of the configurations exceed it.
    """
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
    """Return a problem with the other fields `described`.

    `curve_of` maps the JSON text of a configuration to its learning curve. The best possible front is that of the
    configurations `best`.
    """

    def curve(values: dict[str, Any]) -> list[Epoch]:
        return curve_of(key_of(values))

    curves = [curve(values) for values in best]
    problem = Problem(curve=curve, max_epochs=max(map(len, curves)), best=0.0, **described)
    ends = [(e.true, e.macs) for epochs in curves for e in epochs if e.ends]
    return replace(problem, best=problem.hypervolume(ends))


BOUNDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # highest accuracy as a function of u, log MACs scaled to [0, 1]; shapes similar to ZDT1 (concave) and ZDT3 (gaps)
    "concave": lambda u: 0.35 + 0.5 * np.sqrt(u),
    "convex": lambda u: 0.35 + 0.5 * u**2,
    "gaps": lambda u: 0.35 + 0.5 * np.sqrt(u) + 0.06 * np.sin(6 * np.pi * u) * u,
}
LEAST, MOST = 3e5, 3e7  # smallest and largest MACs of dense networks
DENSE_EPOCHS, RETRAINING = 16, 3  # epochs of dense training, and of retraining after a prune step


def synthetic(shape: str, limit: float = 3e6) -> Problem:
    """Return a synthetic problem whose front has the given shape (a key of BOUNDS); `limit` is its limit on MACs.

    The search space has six parameters: the width p0, which sets the dense MACs; p1 to p4, with the best values 0.3,
    0.4, 0.5 (changes with the width) and 0.6; and the ratios of one or two prune steps.
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
            lost += 0.15 * ratio**2  # pruning costs more accuracy than the smaller size alone
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
