"""Ray Tune, adapted to a `SearchSession`: the only file that subclasses Ray's classes and uses its private names.

    run_tuner(session, ...)       trains the trials that are left, on the cluster that Ray is connected to

Ray asks the `Stopper` about every result first, before its scheduler and its callbacks: there a result becomes an
event and the decision follows from it. Population based training is the one scheduler that is Ray's own.

Private names of Ray 2.60: `setproctitle`, and PopulationBasedTraining's `_trial_state`, `_perturbation_interval`,
`_exploit`, `_checkpoint_or_exploit`, `_get_new_config`; tests/test_upgrades.py fails where an upgrade has changed them.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune as rt
from pyarrow.fs import FileType
from ray._raylet import setproctitle  # type: ignore[attr-defined] - another package of this name does nothing in a worker
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from search_spaces import Space
from trainables.config.schema import MUTABLE_KEYS
from trainables.ray_trainables import RESERVED
from tune.search.halving import SchedulerError
from tune.search.session import SearchSession
from tune.study.lease import StudyLost
from tune.study.state import TrialState

MAX_FAILURES = 3  # restores of a trial whose actor or node died, in one driver


class NamedProcess:
    """Names a worker's process after the trial that it trains, which is the Trainable's `repr`: for `ps`, `nvidia-smi`
    and the dashboard."""

    def step(self) -> dict[str, Any]:
        setproctitle(f"ray::{self!r}")
        return super().step()  # type: ignore[misc] - the Trainable's


class SessionSearcher(Searcher):
    """Gives Ray the session's trials; `fixed` is the configuration that their values are laid over. No more when
    `stopper` knows that the study is lost."""

    def __init__(self, session: SearchSession, fixed: dict[str, Any], stopper: "SessionStopper"):
        super().__init__()
        self._session, self._fixed, self._stopper = session, fixed, stopper

    def __getstate__(self) -> dict[str, Any]:  # Ray pickles it with its snapshots, which are not used
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        trial: TrialState | None = None
        if self._stopper.lost is None:
            try:
                trial = self._session.next_trial()
            except (StudyLost, OSError) as error:
                self._stopper.lost = error
        if trial is None:
            return Searcher.FINISHED
        own = {"trial": trial.name} | ({"replicate": trial.replicate} if trial.replicate else {})
        return self._fixed | trial.values | own

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the end of a trial is an event already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a study resumes from its journal, and Ray's snapshots are not used."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study resumes from its journal, not from Ray's snapshots")


class SessionStopper(rt.Stopper):
    """Hands each result to the session, whose decision it returns; ends a study that is hopeless or lost."""

    def __init__(self, session: SearchSession):
        self._session = session
        self.lost: StudyLost | OSError | None = None  # another driver has the study, or its storage stayed away

    def __getstate__(self) -> dict[str, Any]:  # Ray pickles it with its snapshots, which are not used
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        try:
            return self.lost is not None or self._session.report(result["config"]["trial"], result)
        except (StudyLost, OSError) as error:
            self.lost = error
            return True

    def stop_all(self) -> bool:
        return self.lost is not None or self._session.hopeless is not None


class SessionCallback(rt.Callback):
    """Ends of trials that Ray alone knows; `step` is called after each step of Ray's loop, with the running trials."""

    def __init__(self, session: SearchSession, stopper: SessionStopper, step: Callable[[list[str]], None]):
        self._session, self._stopper, self._step = session, stopper, step

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration, trials, trial: Trial, **info) -> None:
        self._guarded(lambda: self._session.stopped(trial.config["trial"], by="ray tune"))

    def on_trial_error(self, iteration, trials, trial: Trial, **info) -> None:
        self._guarded(lambda: self._session.crashed(trial.config["trial"], crash_of(trial)))

    def on_step_end(self, iteration, trials, **info) -> None:
        running = [t.config["trial"] for t in trials if t.status == Trial.RUNNING]
        self._guarded(lambda: self._step(running))

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do what writes, unless the study is lost."""
        if self._stopper.lost is None:
            try:
                action()
            except (StudyLost, OSError) as error:
                self._stopper.lost = error


def run_tuner(
    session: SearchSession,
    trainable: type[rt.Trainable],
    fixed: dict[str, Any],
    *,
    scheduler: TrialScheduler,
    n_trials: int,
    resources: dict[str, float],
    max_concurrent: int | None,
    storage: str,
    run: str,
    step: Callable[[list[str]], None],
) -> None:
    """Train the `n_trials` trials that are left; checkpoints go to <storage>/<run>/<trial>. StudyLost when another
    driver took the study over, OSError when the storage stayed away."""
    stopper = SessionStopper(session)
    rt.Tuner(
        rt.with_resources(type(trainable.__name__, (NamedProcess, trainable), {}), resources),
        tune_config=rt.TuneConfig(
            search_alg=SessionSearcher(session, fixed, stopper),
            scheduler=scheduler,
            num_samples=n_trials,
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=rt.RunConfig(
            name=run,
            storage_path=storage,
            callbacks=[SessionCallback(session, stopper, step)],
            checkpoint_config=rt.CheckpointConfig(checkpoint_frequency=1),  # the trials remove their old ones
            failure_config=rt.FailureConfig(max_failures=MAX_FAILURES),
            stop=stopper,
            verbose=0,
        ),
    ).fit()
    if stopper.lost:
        raise stopper.lost


def ray_scheduler(name: str, space: Space, dense_epochs: int, seed: int) -> TrialScheduler:
    """Ray's part of the scheduler called `name`: none but for population based training."""
    return Population(space, dense_epochs, seed) if name == "pbt" else FIFOScheduler()


def check_population(space: Space) -> None:
    """SchedulerError where population based training cannot search `space`."""
    if wrong := sorted(set(space.parameters) - set(MUTABLE_KEYS)):
        raise SchedulerError(
            f"--scheduler pbt: trials take over one another's weights, so all must train one network; space "
            f"{space.name} searches {', '.join(wrong)}. Fix these in its `base` and search only "
            f"{', '.join(MUTABLE_KEYS)} (space pbt does), or use --scheduler mo_asha"
        )


class Population(PopulationBasedTraining):
    """Population based training (Jaderberg et al. 2017) of the rates that `space` searches, of one network.

    Every eighth of the dense phase a trial of the worst quarter takes over weights and configuration of a better one of
    the best quarter, and changes the searched rates. Not after the dense phase: its networks are points of the front.
    Where trials wait for a worker, they take turns; one that is an eighth ahead may fall back by it, but once only.
    Its draws come from (seed, trial, epoch).
    """

    def __init__(self, space: Space, dense_epochs: int, seed: int):
        check_population(space)
        self._specs, self._dense_epochs, self._seed = space.parameters, dense_epochs, seed
        self._fell_back: set[tuple[str, int]] = set()  # trial, and the epoch that it fell back from
        super().__init__(
            time_attr="training_iteration",
            metric="val_macro_avg_acc",
            mode="max",
            perturbation_interval=max(1, dense_epochs // 8),
            hyperparam_mutations={key: _domain(spec) for key, spec in space.parameters.items()},
            require_attrs=False,
            log_config=False,
        )

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        # Ray refuses a search algorithm together with PBT, because it would learn from configurations that it has not
        # drawn; ours draws the first generation, and a space of rates alone leaves it little to mislearn
        super().on_trial_add(_NoSearch, trial)  # type: ignore[arg-type]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result.get("stage", 0) or result.get("epochs", 0) >= self._dense_epochs:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def _checkpoint_or_exploit(self, trial, tune_controller, upper_quantile, lower_quantile) -> None:
        if trial in lower_quantile and upper_quantile:  # Ray draws the donor from Python's global generator
            donors = sorted(upper_quantile, key=lambda donor: donor.config["trial"])
            upper_quantile = [donors[int(self._generator(trial, 0).integers(len(donors)))]]
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

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
        rng = self._generator(trial, 1)
        values = {key: explored(spec, trial_to_clone.config[key], rng) for key, spec in self._specs.items()}
        own = {key: trial.config[key] for key in (*RESERVED, "replicate") if key in trial.config}
        return trial_to_clone.config | values | own, {}

    def _generator(self, trial: Trial, purpose: int) -> np.random.Generator:
        state = self._trial_state.get(trial)
        epoch = int(state.last_train_time) if state else 0
        return np.random.default_rng([self._seed, zlib.crc32(trial.config["trial"].encode()), epoch, purpose])


def explored(spec: Any, value: Any, rng: np.random.Generator) -> Any:
    """Another value of a rate (Jaderberg et al. 2017, section 4.1): with a chance of a quarter a fresh draw; else a
    number times 0.8 or 1.2, within its range, and a choice's neighbour."""
    fresh = rng.random() < 0.25
    if "choice" in spec:
        choices = list(spec["choice"])
        if fresh or value not in choices:
            return choices[int(rng.integers(len(choices)))]
        return choices[int(np.clip(choices.index(value) + rng.choice([-1, 1]), 0, len(choices) - 1))]
    kind, (low, high) = next(iter(spec.items()))
    if not fresh:
        return float(np.clip(value * rng.choice([0.8, 1.2]), low, high))
    if kind == "loguniform":
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return float(rng.uniform(low, high))


class _NoSearch:
    search_alg = None


def _domain(spec: Any) -> Any:
    """A range of a space as Ray writes it."""
    if "choice" in spec:
        return list(spec["choice"])
    kind, (low, high) = next(iter(spec.items()))
    return {"uniform": rt.uniform, "loguniform": rt.loguniform}[kind](low, high)


def _trial_name(trial: Any) -> str:
    return trial.config["trial"]


def crash_of(trial: Trial) -> str:
    """Why Ray gave a trial up, in a line."""
    if trial.error_file and Path(trial.error_file).is_file():
        lines = [line for line in Path(trial.error_file).read_text().splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return "unknown error"
