"""Population based training (Jaderberg et al. 2017) of the rates of one network: `--scheduler pbt`."""

from typing import Any

import ray.tune as rt
from pyarrow.fs import FileType
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from search_spaces import Space
from trainables.config import MUTABLE_KEYS
from trainables.ray_trainables import RESERVED


class SchedulerError(ValueError):
    """A scheduler that cannot search this space."""


class Population(PopulationBasedTraining):
    """Population based training of the rates that `space` searches, of one network.

    Every eighth of the dense phase a trial of the worst quarter takes over weights and configuration of a better one of
    the best quarter, and changes the searched rates. Not after the dense phase: its networks are points of the front.
    Where trials wait for a worker, they take turns; one that is an eighth ahead may fall back by it, but once only.
    """

    def __init__(self, space: Space, dense_epochs: int):
        if wrong := sorted(set(space.parameters) - set(MUTABLE_KEYS)):
            raise SchedulerError(
                f"--scheduler pbt: trials take over one another's weights, so all must train one network; space "
                f"{space.name} searches {', '.join(wrong)}. Fix these in its `base` and search only "
                f"{', '.join(MUTABLE_KEYS)} (space pbt does), or use --scheduler mo_asha"
            )
        self._specs, self._dense_epochs = space.parameters, dense_epochs
        self._fell_back: set[tuple[str, int]] = set()  # trial, and the epoch that it fell back from
        super().__init__(
            time_attr="training_iteration",
            metric="val_macro_avg_acc",
            mode="max",
            perturbation_interval=max(1, dense_epochs // 8),
            hyperparam_mutations={key: _domain(spec) for key, spec in space.parameters.items()},
            custom_explore_fn=self._within_ranges,
            require_attrs=False,
            log_config=False,
        )

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        # Ray refuses a search algorithm beside PBT, as it would be told of configurations that it has not drawn; ours
        # draws the first generation, and a space of rates alone leaves it little to mislearn
        super().on_trial_add(_NoSearch, trial)  # type: ignore[arg-type]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result.get("stage", 0) or result.get("epochs", 0) >= self._dense_epochs:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        own, other = self._trial_state[trial], self._trial_state[trial_to_clone]
        behind, now = own.last_train_time - other.last_train_time, (trial.trial_id, own.last_train_time)
        # again and again, if it were let, while the one that it takes over waits for a worker
        if behind > self._perturbation_interval or (behind > 0 and now in self._fell_back):
            return
        if not (other.last_score or 0.0) > (own.last_score or 0.0):
            return
        checkpoint: Any = other.last_checkpoint  # Ray has waited until it is one
        if checkpoint.filesystem.get_file_info(checkpoint.path).type != FileType.NotFound:  # only the latest are kept
            if behind > 0:
                self._fell_back.add(now)
            super()._exploit(tune_controller, trial, trial_to_clone)

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        own = {key: trial.config[key] for key in (*RESERVED, "replicate") if key in trial.config}
        return config | own, operations

    def _within_ranges(self, config: dict[str, Any]) -> dict[str, Any]:
        """Ray multiplies by 0.8 or 1.2, whatever the range."""
        for key, spec in self._specs.items():
            if "choice" not in spec:
                low, high = next(iter(spec.values()))
                config[key] = min(max(config[key], low), high)
        return config


class _NoSearch:
    search_alg = None


def _domain(spec: Any) -> Any:
    """A range of a space as Ray writes it."""
    if "choice" in spec:
        return list(spec["choice"])
    kind, (low, high) = next(iter(spec.items()))
    return {"uniform": rt.uniform, "loguniform": rt.loguniform}[kind](low, high)
