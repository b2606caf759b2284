"""Convert between the values of a configuration and the parameters of an Optuna trial.

A configuration has one value for each searched key, such as a list of pruning ratios. Optuna has a parameter for each
entry of a list, and one for its length:

values = {"train.lr": 0.01, "prune.ratios": [0.2, 0.3]}
params = params_of(space, values)     # {"train.lr": 0.01, "prune.steps": 2, "prune.ratios[0]": 0.2, ...}
replay(space, params)                 # (values, {parameter: Optuna distribution})
shortened(space, params, 1)           # {"train.lr": 0.01, "prune.steps": 1, "prune.ratios[0]": 0.2}
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
    """Stand-in for an Optuna trial whose `suggest_*` methods return the values of `params`.

    Each call adds the distribution of the parameter to `distributions`. SpaceError if `params` has no value for the
    parameter, or a value outside the distribution.
    """

    params: Mapping[str, Any]
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        distribution = FloatDistribution(low, high, log=log, step=step)
        value = self._value(name, distribution)
        fits = is_number(value) and low <= value <= high
        if step is not None and fits:
            fits = abs((value - low) / step - round((value - low) / step)) < 1e-8
        return self._checked(name, value, distribution, fits)

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
            raise SpaceError(
                f"{name} is missing in the Optuna parameters {dict(self.params)} of a configuration; expected a value "
                f"in {distribution}: use the space that drew this configuration, or one that does not search {name}"
            )
        return self.params[name]

    def _checked(self, name: str, value: Any, distribution: BaseDistribution, fits: bool) -> Any:
        if not fits:
            raise SpaceError(
                f"{name} is {value!r} in the Optuna parameters {dict(self.params)} of a configuration; expected a "
                f"value in {distribution}: use the space that drew this configuration, or a wider range for {name}"
            )
        self.distributions[name] = distribution
        return value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def replay(space: Space, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return ({key: value} of a configuration, {parameter: Optuna distribution}) for the Optuna parameters `params`.

    The distributions follow from the ranges of `space`. SpaceError if `space` cannot draw these parameters.
    """
    recorded = _Recorded(params)
    values = space.sample(recorded)
    if unknown := sorted(set(params) - set(recorded.distributions)):
        name, searched = unknown[0], ", ".join(recorded.distributions)
        raise SpaceError(
            f"Optuna parameter {name} is {params[name]!r}, but space {space.name} does not search it; expected only "
            f"the parameters {searched}: use the space that drew this configuration"
        )
    return values, recorded.distributions


def params_of(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Optuna parameters ({parameter: value}) of the configuration `values` ({key: value}).

    SpaceError if `space` cannot draw the configuration.
    """
    params: dict[str, Any] = {}
    for key, spec in space.parameters.items():
        if key not in values:
            raise SpaceError(
                f"the configuration {dict(values)} has no value for the key {key}, which space {space.name} searches "
                f"in the range {dict(spec)}: add the key to the configuration, or use a space that does not search it"
            )
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
        raise SpaceError(
            f"space {space.name} cannot draw the configuration {dict(values)}; expected values in its ranges: use "
            "another space"
        )
    return params


def shortened(space: Space, params: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """Return the Optuna parameters `params` with only the first `steps` prune steps; None if `space` draws no
    configurations with so few steps.

    A trial with `params` trains this shorter configuration on its way, before prune step `steps` + 1.
    """
    spec = space.parameters.get("prune.ratios", {})
    if "each" not in spec or steps < space.auxiliary[spec["each"]]["int"][0]:
        return None
    kept = {k: v for k, v in params.items() if not k.startswith("prune.ratios[")}
    kept |= {f"prune.ratios[{i}]": params[f"prune.ratios[{i}]"] for i in range(steps)}
    kept[spec["each"]] = steps
    return kept


def earlier_points(space: Space, study: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (Optuna parameters, point) for the networks that the study in folder `study` measured.

    A point is a dict with the measured values of a network. Replicates, and configurations that `space` cannot draw,
    are skipped. The last point of a completed trial has the trial's own parameters. Every other point is the result of
    a configuration with fewer prune steps: it has the parameters of this configuration (`shortened`), and is skipped if
    `space` draws no configurations with so few steps.
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
