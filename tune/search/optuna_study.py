"""The Optuna study of a search: objectives with their directions, and Optuna's samplers by name."""

import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

OBJECTIVES = {"val_macro_avg_acc": "max", "macs": "min"}  # the only place that defines the directions

CONSTRAINT = "limits"  # relative excess of the cheapest stage; for Optuna, <= 0 is feasible

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    # multivariate: one joint density, so the trials are sorted once per draw instead of once per parameter
    "tpe": lambda seed: _tpe(seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def new_optuna_study(sampler: str) -> optuna.Study:
    """Return an empty Optuna study with our objectives and the sampler of that name."""
    ways = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    directions = [ways[way] for way in OBJECTIVES.values()]
    return optuna.create_study(directions=directions, sampler=SAMPLERS[sampler](0))


def sampler_attributes(trial: FrozenTrial) -> dict[str, Any]:
    """Return the system attributes that an Optuna sampler stored in a trial when it was drawn (NSGA-II: generation)."""
    return {k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints:")}
