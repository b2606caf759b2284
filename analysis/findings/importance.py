"""Importance of the searched parameters for each objective: PED-ANOVA (Watanabe et al. 2023, IJCAI), as in Optuna 5.

For each parameter, the density of its values in the best points is compared with its density in all points. The Pearson
divergence of the two densities is the importance. The densities are kernel estimates on a grid, with the bandwidth of
Scott's rule and a weak uniform prior. Optuna itself is not needed (a test compares both).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from analysis import replicates, summary
from analysis.results import Study, take

LEAST = 10  # points; with fewer, no importance is computed
ENOUGH = 50  # points from which a small importance is taken as a little effect
LITTLE = 0.03
STEPS = "prune steps"  # a parameter of the points: the number of prune steps behind the network
_GRID = 50  # points of the grid of a continuous parameter
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parameter:
    """A searched parameter, and its values [N] in the points: positions on a grid of `size` values."""

    name: str
    positions: npt.NDArray[np.int64]
    size: int
    ordered: bool  # numbers have a kernel with a width, categories do not


def importances(study: Study) -> dict[str, dict[str, float]]:
    """Return objective -> parameter -> importance, most important first; the importances of an objective sum to 1.

    Points are the rows of `study.points` whose objectives are finite, feasible or not. Lists are left out, except that
    the number of prune steps is a parameter. The result is empty if there are fewer than `LEAST` points, or if no
    parameter varies.
    """
    objectives = study.objectives
    finite = replicates.measured(study.points) & np.isfinite(study.points[list(objectives)].to_numpy(float)).all(axis=1)
    points = take(study.points, finite)
    if len(points) < LEAST:
        return {}
    searched = parameters(study.manifest.resolved.space.get("parameters"), points.to_dict("records"))
    if not searched:
        return {}
    found = {}
    for objective, direction in objectives.items():
        loss = points[objective].to_numpy(float) * (1 if direction == "min" else -1)
        top = best(loss, quantile(len(loss)))
        raw = {p.name: divergence(p, top) for p in searched}
        total = sum(raw.values())
        shares = {name: value / total if total else 1 / len(raw) for name, value in raw.items()}
        found[objective] = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return found


def without_effect(found: dict[str, dict[str, float]], n: int) -> str:
    """Return a sentence that names the parameters with little importance for every objective; empty if there are none.

    `found` is the result of `importances` for `n` points. With fewer than `ENOUGH` points, it is empty, too.
    """
    names = next(iter(found.values()), {})
    little = [name for name in names if all(shares[name] < LITTLE for shares in found.values()) and name != STEPS]
    if n < ENOUGH or not little:
        return ""
    return (
        f"Little visible effect on any objective (importance below {100 * LITTLE:.0f} %): {', '.join(little)}. The "
        "next search can fix such a parameter, unless its range was too narrow to matter."
    )


def quantile(n: int) -> float:
    """Return the share of `n` points that count as the best: a tenth, but at least five points."""
    return max(0.1, min(0.5, 5 / n))


def best(loss: _Floats, share: float) -> npt.NDArray[np.bool_]:
    """Return a mask [N] of the `share` of N points with the least `loss`, and of those as good as the worst of them."""
    return loss <= np.sort(loss)[math.ceil(share * len(loss)) - 1]


def parameters(space: Any, points: Sequence[Mapping[Any, Any]]) -> list[Parameter]:
    """Return the searched parameters that vary in `points`, in the order of the space.

    `space` maps keys to ranges, as in the YAML file of a search space. A number outside its range is moved to its end.
    """
    found = []
    for key, spec in space.items() if isinstance(space, dict) else ():
        values = [point.get(f"config/{key}") for point in points]
        if not isinstance(spec, dict) or "each" in spec or any(summary.absent(value) for value in values):
            continue
        if (scale := scale_of(spec)) is not None:
            if (numbers := scale.numbers(values)) is not None:
                found.append(on_grid(key, numbers, scale))
        elif "choice" in spec or "subset" in spec:
            texts = [str(value) for value in values]
            names = sorted(set(texts))
            found.append(Parameter(key, np.array([names.index(text) for text in texts]), len(names), False))
    steps = np.array([int(point["step"]) for point in points])
    found.append(Parameter(STEPS, steps, int(steps.max()) + 1, True))
    return [p for p in found if len(set(p.positions.tolist())) > 1]


@dataclass(frozen=True)
class Scale:
    """The range of a numeric parameter: `low` to `high`, in steps of `step` (None: continuous) or `logarithmic`."""

    low: float
    high: float
    logarithmic: bool
    step: float | None

    def numbers(self, values: Sequence[Any]) -> list[float] | None:
        """Return `values` as floats; None if one of them is no number that the scale can have."""
        floats = [float(v) for v in values if isinstance(v, int | float | np.number) and math.isfinite(v)]
        if len(floats) < len(values) or (self.logarithmic and min(floats, default=1) <= 0):
            return None
        return floats


def scale_of(spec: Any) -> Scale | None:
    """Return the scale of the range `spec` of a search space; None if it is not numeric, or not valid."""
    kind = next((k for k in ("uniform", "loguniform", "int") if isinstance(spec, dict) and k in spec), None)
    limits = spec[kind] if kind else None
    step = spec.get("step", 1 if kind == "int" else None) if kind else None
    if not isinstance(limits, list) or len(limits) != 2:
        return None
    if not all(isinstance(v, int | float) and abs(v) < 1e300 for v in (*limits, step or 1)):  # NaN is not below
        return None
    low, high = map(float, limits)
    if not low < high or (kind == "loguniform" and low <= 0) or (step is not None and not 0 < step <= high - low):
        return None
    return Scale(low, high, kind == "loguniform", step)


def on_grid(name: str, values: Sequence[float], scale: Scale) -> Parameter:
    """Return a numeric parameter whose `values` [N] are rounded to a grid on its `scale`.

    The grid has at most 50 values, at equal distances, or at equal ratios if the scale is logarithmic. With steps, it
    has the values low, low + step, ... high if these are fewer.
    """
    low, high, x = scale.low, scale.high, np.asarray(values)
    size = min(round((high - low) / scale.step) + 1, _GRID) if scale.step else _GRID
    if scale.logarithmic:
        low, high, x = math.log(low), math.log(high), np.log(x)
    positions = np.ceil((x - low) / ((high - low) / (size - 1)) - 0.5)  # a tie goes to the lower value
    return Parameter(name, np.clip(positions, 0, size - 1).astype(np.int64), size, True)


def divergence(parameter: Parameter, top: npt.NDArray[np.bool_]) -> float:
    """Return the Pearson divergence of a parameter's densities in the points `top` (mask [N]) and in all points."""
    estimate = _ordered_density if parameter.ordered else _category_density
    among, everywhere = (
        estimate(np.bincount(parameter.positions[chosen], minlength=parameter.size)) + 1e-12
        for chosen in (top, np.ones(len(top), dtype=bool))
    )
    return float(everywhere @ (among / everywhere - 1) ** 2)


def _ordered_density(counts: npt.NDArray[np.int64]) -> _Floats:
    """Return the kernel density [G] of G grid values with the given counts: normal kernels, cut at the ends."""
    at = np.flatnonzero(counts)
    weights, total, high = counts[at], int(counts.sum()), len(counts) - 1
    mean = (at @ weights) / total
    deviation = math.sqrt(((at - mean) ** 2 @ weights) / max(1, total - 1))
    summed = np.cumsum(weights)
    lower = at[np.searchsorted(summed, total // 4, side="left")]
    upper = at[min(len(at) - 1, int(np.searchsorted(summed, total * 3 // 4, side="right")))]
    scott = 1.059 * min((upper - lower) / 1.34, deviation) * total**-0.2
    centres = np.append(at, high / 2)  # the last kernel is the prior
    widths = np.append(np.full(len(at), max(scott, 0.5 / 1.64)), high + 1.0)
    shares = np.append(weights, 1.0) / (total + 1)
    edges = (np.arange(len(counts) + 1)[:, None] - 0.5 - centres) / widths  # [G + 1, K]
    below = ndtr(edges)
    return np.diff(below, axis=0) / (below[-1] - below[0]) @ shares


def _category_density(counts: npt.NDArray[np.int64]) -> _Floats:
    """Return the density [C] of C categories with the given counts: each kernel has a uniform part."""
    at = np.flatnonzero(counts)
    kernels = np.full((len(at) + 1, len(counts)), 1 / (len(at) + 1))
    kernels[np.arange(len(at)), at] += 1
    kernels /= kernels.sum(axis=1, keepdims=True)
    return np.append(counts[at], 1.0) / (counts.sum() + 1) @ kernels


def at_edges(study: Study, front_points: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Return sentences about numeric parameters whose range seems too narrow.

    That is so if at least three points of the front, and more than half of them, have the largest or the smallest
    value, or one in the outer tenth of a continuous range.
    """
    lines = []
    space = study.manifest.resolved.space.get("parameters")
    for key, spec in space.items() if isinstance(space, dict) else ():
        scale = scale_of(spec)
        values = scale.numbers([point.get(f"config/{key}") for point in front_points]) if scale else None
        if scale is None or not values:
            continue
        grid = on_grid(key, values, scale)
        exact = bool(scale.step) and round((scale.high - scale.low) / scale.step) < _GRID  # one grid position per value
        margin = 0 if exact else round(0.1 * (grid.size - 1))
        for word, at in (("largest", grid.positions >= grid.size - 1 - margin), ("smallest", grid.positions <= margin)):
            count = int(at.sum())
            if count >= 3 and count > len(values) / 2:
                limit = scale.high if word == "largest" else scale.low
                value = f"the {word} {key} ({limit:g})" if exact else f"a {key} near the {word} ({limit:g})"
                lines.append(f"{count} of {len(values)} points of the front have {value}: consider a wider range.")
    return lines
