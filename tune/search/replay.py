"""Convert configurations to Optuna parameters: recorded ones, those with fewer prune steps, those of earlier studies.

params_of(space, {"train.lr": 0.01, "prune.ratios": [0.2, 0.3]})   # {"train.lr": 0.01, "prune.steps": 2, ...}
replay(space, params)                                              # the values and their distributions
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import Space, SpaceError
from tune.study.journal import read_state


@dataclass
class _Recorded:
    """Stand-in for an Optuna trial that suggests the values of `params` and records their distributions. SpaceError for
    a value outside its distribution."""

    params: Mapping[str, Any]
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        distribution = FloatDistribution(low, high, log=log)
        value = self._value(name, distribution)
        return self._checked(name, value, distribution, is_number(value) and low <= value <= high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        # Optuna itself draws from low, low + step, ... <= high
        distribution = IntDistribution(low, low + (high - low) // step * step, step=step)
        value = self._value(name, distribution)
        fits = isinstance(value, int) and is_number(value) and low <= value <= high and (value - low) % step == 0
        return self._checked(name, value, distribution, fits)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        distribution = CategoricalDistribution(choices)
        value = self._value(name, distribution)
        return self._checked(name, value, distribution, any(type(c) is type(value) and c == value for c in choices))

    def _value(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self.params:
            raise SpaceError(f"parameter {name} is missing in the configuration; expected a value in {distribution}")
        return self.params[name]

    def _checked(self, name: str, value: Any, distribution: BaseDistribution, fits: bool) -> Any:
        if not fits:
            raise SpaceError(f"{name}={value!r}: expected a value in {distribution}")
        self.distributions[name] = distribution
        return value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def replay(space: Space, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return the configuration values of Optuna's `params` in `space`, and their distributions. SpaceError if the space
    cannot draw them."""
    recorded = _Recorded(params)
    values = space.sample(recorded)
    if unknown := sorted(set(params) - set(recorded.distributions)):
        name, searched = unknown[0], ", ".join(recorded.distributions)
        raise SpaceError(f"{name}={params[name]!r}: space {space.name} does not search {name}; it searches {searched}")
    return values, recorded.distributions


def params_of(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return Optuna's parameters for configuration `values`; SpaceError if `space` cannot draw them."""
    params: dict[str, Any] = {}
    for key, spec in space.parameters.items():
        if key not in values:
            raise SpaceError(f"key {key} is missing in the configuration; expected a value in {dict(spec)}")
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
        raise SpaceError(f"space {space.name} cannot draw {dict(values)}; expected values in its ranges")
    return params


def shortened(space: Space, params: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """Return `params` with only the first `steps` prune steps. A trial of `params` has trained this configuration, too.
    None if the space does not allow this number of steps."""
    spec = space.parameters.get("prune.ratios", {})
    if "each" not in spec or steps < space.auxiliary[spec["each"]]["int"][0]:
        return None
    kept = {k: v for k, v in params.items() if not k.startswith("prune.ratios[")}
    kept |= {f"prune.ratios[{i}]": params[f"prune.ratios[{i}]"] for i in range(steps)}
    kept[spec["each"]] = steps
    return kept


def earlier_points(space: Space, study: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (parameters, point) of every measured network of an earlier study that `space` could have drawn.

    The last point of a complete trial has the trial's parameters; every other point has the parameters shortened to its
    number of prune steps. Replicates are skipped.
    """
    for trial in read_state(study).trials.values():
        if trial.replicate:
            continue
        try:
            params = params_of(space, trial.values)
        except SpaceError:
            continue
        for point in trial.points:
            last = trial.outcome == "completed" and point is trial.points[-1]
            point_params = params if last else shortened(space, params, point["step"])
            if point_params is not None:
                yield point_params, point
