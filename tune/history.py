"""What is written down, as Optuna's trials: parameters back from values, shorter schedules, earlier studies.

params_of(space, {"train.lr": 0.01, "prune.ratios": [0.2, 0.3]})   # {"train.lr": 0.01, "prune.steps": 2, ...}
replay(space, params)                                              # the values again, and the distributions
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import Space, SpaceError
from tune.journal import read_log


@dataclass
class _Known:
    """Suggests what `params` hold, and notes the distributions asked for; SpaceError for a value outside them."""

    params: Mapping[str, Any]
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self._take(name, FloatDistribution(low, high, log=log))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        # Optuna itself draws from low, low + step, ... <= high
        return self._take(name, IntDistribution(low, low + (high - low) // step * step, step=step))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._take(name, CategoricalDistribution(choices))

    def _take(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self.params:
            raise SpaceError(f"{name} is missing")
        value = self.params[name]
        try:
            inside = distribution._contains(distribution.to_internal_repr(value))
        except (TypeError, ValueError):
            inside = False
        if not inside:
            raise SpaceError(f"{name}={value!r} is outside {distribution}")
        self.distributions[name] = distribution
        return value


def replay(space: Space, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """The configuration values that Optuna's `params` mean in `space`, and their distributions."""
    known = _Known(params)
    return space.sample(known), known.distributions


def params_of(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's parameters for configuration `values`; SpaceError when `space` cannot draw them."""
    params: dict[str, Any] = {}
    for key, spec in space.parameters.items():
        if key not in values:
            raise SpaceError(f"{key} is missing")
        value = values[key]
        if "choice" in spec:
            params[key] = json.dumps(value)
        elif "subset" in spec:
            params |= {f"{key}/{member}": member in value for member in spec["subset"]}
        elif "each" in spec:
            params[spec["each"]] = len(value)
            items = [json.dumps(v) if "choice" in spec["item"] else v for v in value]
            params |= {f"{key}[{i}]": item for i, item in enumerate(items)}
        else:
            params[key] = value
    if replay(space, params)[0] != {key: values[key] for key in space.parameters}:
        raise SpaceError(f"{dict(values)} is no draw of space {space.name}")
    return params


def shortened(space: Space, params: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """`params` with the first `steps` prune steps only: what a trial has trained on its way. None where the space
    does not let the number of steps vary that far."""
    spec = space.parameters.get("prune.ratios", {})
    if "each" not in spec or steps < space.auxiliary[spec["each"]]["int"][0]:
        return None
    kept = {k: v for k, v in params.items() if not k.startswith("prune.ratios[")}
    kept |= {f"prune.ratios[{i}]": params[f"prune.ratios[{i}]"] for i in range(steps)}
    kept[spec["each"]] = steps
    return kept


def earlier_points(space: Space, study: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(parameters, point) of every measured network of an earlier study that `space` could have drawn: of a complete
    trial the last one, of all trials those that a shorter schedule gives."""
    for trial in read_log(study).trials.values():
        if trial.replicate:
            continue
        try:
            params = params_of(space, trial.values)
        except SpaceError:
            continue
        for point in trial.points:
            last = trial.status == "complete" and point is trial.points[-1]
            told = params if last else shortened(space, params, point["step"])
            if told is not None:
                yield told, point
