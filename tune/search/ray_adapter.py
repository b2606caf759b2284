"""Connects a `SearchSession` (tune/search/session.py), which supplies and stops the trials of a study, to Ray Tune.

    run_tuner(session, ...)       trains the remaining trials on the cluster that Ray is connected to

Ray passes every result to its stopper first, then to its scheduler and callbacks. Our stopper records the result as
events, and the session decides whether the trial stops. Of Ray's schedulers, only FIFO and a subclass of population
based training are used. These private names of Ray 2.60 are used: `setproctitle`, and PopulationBasedTraining's
`_trial_state`, `_exploit`, `_perturbation_interval`, `_checkpoint_or_exploit`, `_get_new_config`.
A study may come from somebody else, so Ray must load no pickle from it. The name of a run's folder is random, so nobody
can put a pickle there in advance. The Trainables load checkpoints themselves (`KDTrainable.restore`), and no pickled
error is read back (`SessionCallback.on_experiment_end`).
"""

import secrets
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray.tune as rt
from pyarrow.fs import FileType
from ray._raylet import setproctitle  # type: ignore[attr-defined] - the PyPI package has no effect in a worker
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from search_spaces import Space
from trainables.config.schema import MUTABLE_KEYS
from trainables.ray_trainables import RESERVED
from tune.search.failures import crash_of
from tune.search.halving import SchedulerError
from tune.search.session import SearchSession
from tune.study.lease import StudyLost
from tune.study.state import TrialState

MAX_FAILURES = 3  # restores of a trial after the loss of its actor or node, per driver
SYNC_S = 10  # time for Ray's own snapshot at the end, which is not used; the storage may not answer


class NamedProcess:
    """Mixin for a Trainable: gives the worker's process the `repr` of the Trainable as its name, so that `ps`,
    `nvidia-smi` and Ray's dashboard show the trial."""

    def step(self) -> dict[str, Any]:
        setproctitle(f"ray::{self!r}")
        return super().step()  # type: ignore[misc] - the Trainable's


class NotPickled:
    """Mixin for the objects that Ray pickles with its snapshots, which are not used: they have no content there."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SessionSearcher(NotPickled, Searcher):
    """Ray searcher that gets its trials from `session`, and supplies no more after a failed write (`stopper.lost`).
    The searched values of a trial override `fixed`, the configuration that all trials share."""

    def __init__(self, session: SearchSession, fixed: dict[str, Any], stopper: "SessionStopper"):
        super().__init__()
        self._session, self._fixed, self._stopper = session, fixed, stopper

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        trial: TrialState | None = None
        if self._stopper.lost is None:
            try:
                trial = self._session.next_trial()
            except (StudyLost, OSError) as error:
                self._stopper.lost = error
        if trial is None:
            return Searcher.FINISHED
        own = {"trial": trial.name, "replicate": trial.replicate, "widths": trial.widths}
        return self._fixed | trial.values | {k: v for k, v in own.items() if v}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the stopper and the callback below record the end of a trial."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a study resumes from its journal, not from Ray's snapshots."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study has no Ray Tune snapshots to restore: resume it with tune/run.py --resume")


class SessionStopper(NotPickled, rt.Stopper):
    """Ray stopper that reports each result to the session, which decides whether the trial stops. All trials stop if
    the newest ones failed for one reason (`SearchSession.hopeless`), or if the study cannot be written (`lost`)."""

    def __init__(self, session: SearchSession):
        self._session = session
        self.lost: StudyLost | OSError | None = None  # why the study cannot be written: another driver, or no storage

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        try:
            return self.lost is not None or self._session.report(result["config"]["trial"], result)
        except (StudyLost, OSError) as error:
            self.lost = error
            return True

    def stop_all(self) -> bool:
        return self.lost is not None or self._session.hopeless is not None


class SessionCallback(NotPickled, rt.Callback):
    """Ray callback that records the end of a trial without a final result (it crashed, or Ray stopped it). After each
    step of Ray's event loop, it calls `step` with the names of the running trials. If a worker fails and Ray starts its
    trial again, it calls `warn` with a message of one line."""

    def __init__(
        self,
        session: SearchSession,
        stopper: SessionStopper,
        step: Callable[[list[str]], None],
        warn: Callable[[str], None],
    ):
        self._session, self._stopper, self._step, self._warn = session, stopper, step, warn

    def on_trial_complete(self, iteration, trials, trial: Trial, **info) -> None:
        self._guarded(lambda: self._session.stopped(trial.config["trial"], by="ray tune"))

    def on_trial_error(self, iteration, trials, trial: Trial, **info) -> None:
        self._guarded(lambda: self._session.crashed(trial.config["trial"], crash_of(trial)))

    def on_trial_recover(self, iteration, trials, trial: Trial, **info) -> None:
        self._warn(f"{trial.config['trial']} continues from its newest checkpoint after a failure: {crash_of(trial)}")

    def on_step_end(self, iteration, trials, **info) -> None:
        running = [t.config["trial"] for t in trials if t.status == Trial.RUNNING]
        self._guarded(lambda: self._step(running))

    def on_experiment_end(self, trials, **info) -> None:
        for trial in trials:
            trial.run_metadata.pickled_error_filename = None  # else Ray would unpickle this file

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run `action`, which writes to the study, unless an earlier write failed. A failed write stops all trials."""
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
    warn: Callable[[str], None],
) -> None:
    """Train the `n_trials` remaining trials of `session`, with checkpoints in <storage>/<run>-<random digits>/<trial>.

    `fixed` is the configuration that all trials share. A trial reserves `resources`, such as {"cpu": 1, "gpu": 0.5}. At
    most `max_concurrent` trials run at a time (None: as many as the resources allow). `SessionCallback` explains `step`
    and `warn`. StudyLost if another driver took over the study, OSError if the storage stayed unavailable.
    """
    stopper = SessionStopper(session)
    rt.Tuner(
        rt.with_resources(type(trainable.__name__, (NamedProcess, trainable), {}), resources),
        tune_config=rt.TuneConfig(
            search_alg=SessionSearcher(session, fixed, stopper),
            scheduler=scheduler,
            num_samples=n_trials,
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"],
            trial_dirname_creator=lambda trial: trial.config["trial"],
        ),
        run_config=rt.RunConfig(
            name=f"{run}-{secrets.token_hex(4)}",
            storage_path=storage,
            callbacks=[SessionCallback(session, stopper, step, warn)],
            checkpoint_config=rt.CheckpointConfig(
                checkpoint_frequency=0
            ),  # the trials choose when, and delete old ones
            failure_config=rt.FailureConfig(max_failures=MAX_FAILURES),
            stop=stopper,
            sync_config=rt.SyncConfig(sync_timeout=SYNC_S),
            verbose=0,
        ),
    ).fit()
    if stopper.lost:
        raise stopper.lost


def ray_scheduler(name: str, space: Space, dense_epochs: int, seed: int) -> TrialScheduler:
    """Return Ray's scheduler for --scheduler `name`: for pbt, `Population`, which gets the other arguments; else FIFO,
    which stops no trial (for asha and mo_asha, SearchSession stops trials early)."""
    return Population(space, dense_epochs, seed) if name == "pbt" else FIFOScheduler()


def check_population(space: Space) -> None:
    """Raise SchedulerError if `space` searches keys that cannot change during a training (not in MUTABLE_KEYS)."""
    if wrong := sorted(set(space.parameters) - set(MUTABLE_KEYS)):
        raise SchedulerError(
            f"--scheduler pbt: trials copy weights from one another, so all must train the same network, but space "
            f"{space.name} searches {', '.join(wrong)}. Set these keys in its `base` and search only "
            f"{', '.join(MUTABLE_KEYS)}, as space pbt does, or use --scheduler mo_asha"
        )


class Population(PopulationBasedTraining):
    """Population based training (Jaderberg et al. 2017) of one network and the hyperparameters that `space` searches.

    Every 1/8 of the `dense_epochs`, a trial in the worst quarter copies the weights and the configuration of a trial in
    the best quarter (its donor), and perturbs the searched hyperparameters. After the dense training nothing is copied,
    because the networks are then candidates for the front. If trials outnumber workers, they train in turns, and a
    donor may have fewer epochs than the trial. The copy then sets the trial back by up to 1/8 of the dense epochs, at
    most once at each epoch of the trial. Random numbers depend on `seed`, trial and epoch only.
    """

    def __init__(self, space: Space, dense_epochs: int, seed: int):
        check_population(space)
        self._specs, self._dense_epochs, self._seed = space.parameters, dense_epochs, seed
        self._fell_back: set[tuple[str, int]] = set()  # (trial id, epoch) before it copied a donor with fewer epochs
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
        # Ray does not allow a search algorithm with PBT: it would learn from results of configurations that it has not
        # drawn. Our sampler draws the first generation only, and in a space of training settings this error is small
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)  # type: ignore[arg-type]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result.get("stage", 0) or result.get("epochs", 0) >= self._dense_epochs:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def _checkpoint_or_exploit(self, trial, tune_controller, upper_quantile, lower_quantile) -> None:
        if trial in lower_quantile and upper_quantile:  # Ray would draw the donor with Python's global generator
            donors = sorted(upper_quantile, key=lambda donor: donor.config["trial"])
            upper_quantile = [donors[int(self._generator(trial, 0).integers(len(donors)))]]
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        own, other = self._trial_state[trial], self._trial_state[trial_to_clone]
        behind, now = own.last_train_time - other.last_train_time, (trial.trial_id, own.last_train_time)
        # without this limit the trial would lose epochs again and again while its donor waits for a worker
        limited = behind > self._perturbation_interval or (behind > 0 and now in self._fell_back)
        if limited or not (other.last_score or 0.0) > (own.last_score or 0.0):
            return
        checkpoint: Any = other.last_checkpoint  # Ray has already waited until it was saved
        if checkpoint.filesystem.get_file_info(checkpoint.path).type != FileType.NotFound:  # the donor deletes old ones
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
    """Return a perturbed `value` of a hyperparameter (Jaderberg et al. 2017, section 4.1).

    `spec` is its range in the search space. With probability 1/4 the new value is drawn from the range. Otherwise a
    number is multiplied by 0.8 or 1.2 and clipped to the range, and a choice is replaced by a neighbour in its list.
    """
    fresh = rng.random() < 0.25
    if "choice" in spec:
        choices = list(spec["choice"])
        if fresh or value not in choices:
            return choices[int(rng.integers(len(choices)))]
        return choices[int(np.clip(choices.index(value) + rng.choice([-1, 1]), 0, len(choices) - 1))]
    low, high = spec.get("uniform") or spec["loguniform"]
    if not fresh:
        new = float(np.clip(value * rng.choice([0.8, 1.2]), low, high))
    else:
        new = float(rng.uniform(low, high) if "uniform" in spec else np.exp(rng.uniform(np.log(low), np.log(high))))
    return low + round((new - low) / spec["step"]) * spec["step"] if "step" in spec else new


def _domain(spec: Any) -> Any:
    """Convert the range `spec` of a search space to a Ray Tune domain, or to a list for a choice."""
    if "choice" in spec:
        return list(spec["choice"])
    return rt.uniform(*spec["uniform"]) if "uniform" in spec else rt.loguniform(*spec["loguniform"])
