"""Objectives of a search and their directions, Optuna's samplers by name, and creation of an empty Optuna study."""

import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

OBJECTIVES = {"val_macro_avg_acc": "max", "macs": "min"}  # the only place that defines the directions

CONSTRAINT = "limits"  # name of Optuna's constraint; its value is `Verdict.excess` (<= 0: feasible)

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: _tpe(seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    # multivariate: one joint density of all parameters, so the trials are sorted once per draw, not per parameter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def new_optuna_study(sampler: str) -> optuna.Study:
    """Return an empty Optuna study with the objectives OBJECTIVES and the sampler SAMPLERS[`sampler`] (seed 0)."""
    ways = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    directions = [ways[way] for way in OBJECTIVES.values()]
    return optuna.create_study(directions=directions, sampler=SAMPLERS[sampler](0))


def sampler_attributes(trial: FrozenTrial) -> dict[str, Any]:
    """Return the system attributes that an Optuna sampler stored when it drew `trial`, such as NSGA-II's generation.

    Optuna also stores the values of constraints as system attributes; these are left out.
    """
    return {k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints:")}
