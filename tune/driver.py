"""The work of a driver (a process that runs a study): restore the study's state and train its remaining trials.

with open_study(folder, None) as access:                         # exclusive access to the study in `folder`
    search = Search(access, manifest, space, retry, console)     # restores the state: replays the journal's events
    search.begin(confirm=None)                                   # writes this driver's first events; no --confirm
    search.run()                                                 # trains the remaining trials with Ray Tune

`manifest` is the content of study.json. `retry` repeats a write while the storage is unavailable.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.tune as rt
from rich.console import Console
from rich.markup import escape

from analysis.front import pareto_points
from analysis.manifest import StudyManifest
from analysis.results import load_study
from data.signals import Interrupts
from search_spaces import Space
from trainables.config.schema import MUTABLE_KEYS, TrialConfig
from trainables.inputs.code import code_hash
from trainables.outputs.records import now
from trainables.outputs.tracking import choose_mode
from trainables.ray_trainables import KDTrainable, PruneTrainable
from tune.ray_start import RAY_LOG
from tune.reporting.front import RunningFront
from tune.reporting.gauges import Gauges
from tune.reporting.progress import ProgressLines
from tune.reporting.tables import StudyTables, replay
from tune.resume import front_configurations
from tune.search.feasibility import NetworkGate
from tune.search.given import GivenTrials, missing_trials
from tune.search.halving import build_rungs
from tune.search.ray_adapter import ray_scheduler, run_tuner
from tune.search.replay import earlier_points
from tune.search.sampler import FeasibleSampler
from tune.search.session import SearchSession
from tune.study.access import StudyAccess
from tune.study.events import DriverFinished, DriverStarted, Event, TrialCreated, TrialRetried
from tune.study.journal import FOLDER as JOURNAL
from tune.study.journal import Reading
from tune.study.log import StudyLog
from tune.study.manifest import StudyError, is_complete, write_manifest
from tune.study.reader import open_place
from tune.study.retry import Retry
from tune.study.state import StudyState
from tune.study.writer import Journal


class Search:
    """The search of one driver (a process that runs a study).

    Its state follows from the events of the journal, which the constructor replays. `access` is the exclusive access to
    the study, and `manifest` the content of study.json. `retry` repeats a write while the storage is unavailable.
    Messages are printed on `console`.
    """

    def __init__(self, access: StudyAccess, manifest: StudyManifest, space: Space, retry: Retry, console: Console):
        self.access, self.manifest, self.space, self.console, self._retry = access, manifest, space, console, retry
        self.config = TrialConfig.from_flat(manifest.resolved.config)
        settings, folder = manifest.requested, access.folder
        self.log = StudyLog(lambda events: self.journal.append(events))
        refits = settings.refit_of is not None
        self.sampler = (
            GivenTrials()
            if refits
            else FeasibleSampler(
                space,
                NetworkGate(self.config.flat()),
                sampler=settings.sampler,
                seed=settings.seed,
                replicates=settings.seeds_per_config,
            )
        )
        self.rungs = build_rungs(settings.scheduler, self.config.train.epochs)
        self.session: SearchSession | None = None  # None before `run`, as the W&B mode of the study's runs
        self.wandb: str | None = None
        self.front = RunningFront()
        self.tables = StudyTables(folder, self.log.state, self.config.flat(), retry)
        check = ReplayCheck(self.digests)
        judged = [] if refits else [self.front]  # refitted networks have no validation accuracy
        self.log.attach(self.sampler, *judged, self.tables, *([self.rungs] if self.rungs else []), check)
        reading = Reading(folder)
        self.tables.elsewhere = access.ended_elsewhere()
        replay(reading, self.log, self.tables)
        self.tables.elsewhere = ()
        if check.differing:
            console.print(
                f"[yellow]warning: the state of the {' and '.join(check.differing)}, restored from the journal, "
                "differs from the state that the last driver recorded. The study continues with the restored state. "
                "This is expected if the code or the space has changed; if not, please report it[/yellow]",
                highlight=False,
            )
        self.journal = Journal(folder, reading.after, access.generation, retry, access.check)

    def digests(self) -> dict[str, str | None]:
        """Return hashes of the state that decides on the next samples (key "sampler") and on early stopping (key
        "rungs"; None for fifo and pbt, which have no rungs)."""
        return {"sampler": self.sampler.digest(), "rungs": self.rungs.digest() if self.rungs else None}

    def begin(self, confirm: int | None) -> StudyManifest:
        """Write the first events of this driver, and return the manifest.

        Crashed trials are retried, missing replicates are created, and a new study gets the points of the --warm-start
        studies. `confirm`, the value of --confirm, is the number of new trials with other seeds for each configuration
        on the front (None: no such trials). The returned manifest lists the names of the trials of every --confirm.
        """
        log, state, folder = self.log, self.log.state, self.access.folder
        first, n_open, crashed = not state.drivers, len(state.open), state.crashed
        log.add(DriverStarted(command=self.manifest.requested.command))
        log.add(*(TrialRetried(trial=trial.name) for trial in crashed))
        if not first:
            self.console.print(
                f"continuing with {n_open} unfinished and {len(crashed)} crashed of {len(state.trials)} trial(s)",
                highlight=False,
            )
        if isinstance(self.sampler, GivenTrials):
            log.add(*missing_trials(self.manifest, state))
            return self.manifest
        self.sampler.complete_replicates(log)
        self.sampler.settle(log)
        if confirm:
            self.tables.flush(last=True)
            front = pareto_points(load_study(folder)).to_dict("records")
            names = list(self.manifest.requested.confirmations)
            for config_id in front_configurations(front, state):
                known = sum(t.config_id == config_id for t in state.trials.values())
                names += [f"{config_id}r{i}" for i in range(known, known + confirm)]
            self.manifest = self.manifest.changed(confirmations=tuple(names))
            self._retry(lambda: write_manifest(folder, self.manifest))  # before the events: a kill may come between
        log.add(*confirmations(self.manifest, state))
        if self.manifest.requested.warm_start and not state.trials and not state.rejected:  # no sample was drawn yet
            for study in self.manifest.requested.warm_start:
                place = open_place(study)
                new = self.sampler.import_points(log, earlier_points(self.space, place.folder))
                line = f"warm start: the sampler starts with {new} point(s) of {escape(study)}"
                self.console.print(line, highlight=False, soft_wrap=True)
        return self.manifest

    def run(self, trainable: type[rt.Trainable] | None = None) -> None:
        """Train the remaining trials with Ray Tune: first those that have not ended, then new ones.

        `trainable` is the class of the trials; tests set it. None selects PruneTrainable (dense training, then prune
        steps) if the study prunes, else KDTrainable (dense training only).
        """
        manifest, log, settings = self.manifest, self.log, self.manifest.requested
        folder, remote = self.access.folder, self.manifest.resolved.remote
        n_trials = max(settings.n_trials, len(log.state.trials))
        teacher = max((t.val_macro_avg_acc or 0.0 for t in manifest.prepared.teachers), default=0.0) or None
        progress = ProgressLines(
            *(self.console, log.state, self.front, n_trials, self.config.flat(), folder / RAY_LOG, teacher)
        )
        gauges = Gauges(folder.name, log.state, self.front)
        log.attach(progress)
        session = self.session = SearchSession(log, self.sampler, self.rungs, settings.scheduler, n_trials)
        root = f"{remote or folder}/ray"
        fixed = self.config.flat() | {"checkpoints": root, "code": code_hash()}
        fixed |= {"remote": remote} if remote else {"study_dir": str(folder)}
        fixed["generation"] = self.access.generation or None
        fixed["fingerprint"] = manifest.prepared.dataset.fingerprint
        fixed["wandb"] = self.wandb = choose_mode(
            lambda message: self.console.print(f"[yellow]{escape(message)}[/yellow]", highlight=False, soft_wrap=True)
        )
        # confirmations repeat configurations unchanged, but population based training would change them
        confirming = bool(log.state.open) and all(trial.confirms for trial in log.state.open)
        scheduler = "fifo" if confirming else settings.scheduler
        if scheduler != "pbt":  # its trials copy each other's newest epochs
            fixed["checkpoint_interval"] = settings.checkpoint_interval
        else:
            fixed["adopt"] = [*MUTABLE_KEYS, "replicate"]
        if shares_dense(self.space):
            fixed["parents"] = str(Path(self.config.data.cache_dir) / "parents")
        if trainable is None:
            prunes = bool(self.config.prune.rounds) or any(k.startswith("prune.") for k in self.space.parameters)
            trainable = PruneTrainable if prunes else KDTrainable

        def step(running: list[str]) -> None:
            self.access.check()
            self.tables.flush()
            self._retry(self.access.push)
            gauges.step(running)

        try:
            run_tuner(
                session,
                trainable,
                fixed,
                scheduler=ray_scheduler(scheduler, self.space, self.config.train.epochs, settings.seed),
                n_trials=n_trials - log.state.n_ended,
                resources={"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial or 0.0},
                max_concurrent=settings.max_concurrent,
                storage=root,
                run=f"run{self.journal.generation:03d}",
                step=step,
                warn=progress.warn,
            )
        finally:
            gauges.step([], last=True)
        log.add(DriverFinished(digests=self.digests()))
        self.tables.flush(last=True)


class ReplayCheck:
    """Reducer that compares the state during a replay with the state that earlier drivers had when they ended.

    The event DriverFinished has hashes of the driver's state. When this event is replayed, they are compared with the
    result of `digests()`, the hashes of the replayed state. `differing` lists the parts of the state ("sampler",
    "rungs") whose hashes differ at the last such event.
    """

    def __init__(self, digests: Callable[[], dict[str, str | None]]):
        self._digests = digests
        self.differing: list[str] = []

    def apply(self, event: Event) -> None:
        if isinstance(event, DriverFinished) and event.digests:
            now = self._digests()
            self.differing = [name for name, digest in event.digests.items() if now.get(name) != digest]


def confirmations(manifest: StudyManifest, state: StudyState) -> list[TrialCreated]:
    """Return the events that create the missing trials of --confirm, which repeat configurations with new seeds.

    `manifest` lists the names of all trials of --confirm; those that `state` does not have are missing.
    """
    new = []
    for name in manifest.requested.confirmations:
        if name not in state.trials:
            config_id, _, replicate = name.partition("r")
            first = state.trials[config_id]
            shared = {"config_id": config_id, "params": first.params, "values": first.values, "key": first.key}
            new.append(TrialCreated(trial=name, replicate=int(replicate), confirms=True, **shared))
    return new


def shares_dense(space: Space) -> bool:
    """Return whether two samples of `space` may have the same dense training, so that their trials can share it.

    This is so if the space searches pruning (`prune.*`), and each other key that it searches has finitely many values.
    """
    dense = [spec for key, spec in space.parameters.items() if not key.startswith("prune.")]
    prunes = len(dense) < len(space.parameters)
    return prunes and not any(is_continuous(spec) for spec in dense)


def is_continuous(spec: Any) -> bool:
    """Return whether `spec`, a range of a search space, has infinitely many values: floats, or lists of floats."""
    return (
        ("uniform" in spec and "step" not in spec)
        or "loguniform" in spec
        or ("item" in spec and is_continuous(spec["item"]))
    )


def close(
    access: StudyAccess, manifest: StudyManifest, state: StudyState, interrupts: Interrupts | None = None
) -> StudyManifest:
    """Write the status (complete or interrupted) and the counts in `state` into the manifest, and return it.

    StudyError if the storage cannot be written. If this command was interrupted before (`interrupts`), its caller wants
    exit status 130, so KeyboardInterrupt with the same text is raised instead.
    """
    interrupts = interrupts or Interrupts()
    manifest = manifest.changed(
        trials=state.counts(),
        rejected_reasons=dict(state.rejected),
        finished=now(),
        drivers=state.drivers,
        epochs_repeated=sum(t.repeated for t in state.trials.values()),
        status="complete" if is_complete(manifest, state) else "interrupted",
    )
    try:
        with interrupts.storage():
            (access.folder / JOURNAL).stat()  # while the storage is away, make no folder in its place
            write_manifest(access.folder, manifest)
            access.push(last=True)
    except OSError as error:
        message = (
            f"the final status of study {access.folder.name} could not be written: {error}. Fix the storage, then "
            "repeat the command"
            + (f" with --resume --name {access.folder.name}" if manifest.requested.refit_of is None else "")
        )
        raise (KeyboardInterrupt if interrupts.received.is_set() else StudyError)(message) from error
    return manifest
