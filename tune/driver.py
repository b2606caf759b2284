"""The driver of a study: it replays the journal into the reducers and runs Ray Tune for the remaining trials.

search = Search(held, manifest, space, patience, console)      # replays the journal
search.begin(confirm=None)                                     # writes the first events of this driver
search.run()                                                   # trains the remaining trials
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
from search_spaces import Space
from trainables.config.schema import MUTABLE_KEYS, TrialConfig
from trainables.inputs.code import code_hash
from trainables.ray_trainables import KDTrainable, PruneTrainable
from tune.reporting.front import RunningFront
from tune.reporting.gauges import Gauges
from tune.reporting.progress import ProgressLines
from tune.reporting.tables import StudyTables, replay
from tune.resume import front_configurations
from tune.search.feasibility import NetworkGate
from tune.search.halving import build_rungs
from tune.search.ray_adapter import ray_scheduler, run_tuner
from tune.search.replay import earlier_points
from tune.search.sampler import FeasibleSampler
from tune.search.session import SearchSession
from tune.study.events import DriverFinished, DriverStarted, Event, TrialCreated, TrialRetried
from tune.study.hold import Held
from tune.study.journal import Journal, Reading
from tune.study.log import StudyLog
from tune.study.manifest import write_manifest
from tune.study.reader import open_place
from tune.study.state import StudyState
from tune.study.waiting import Patience


class Search:
    """The reducers of a study, its journal, and the Ray Tune run of the remaining trials."""

    def __init__(self, held: Held, manifest: StudyManifest, space: Space, patience: Patience, console: Console):
        self.held, self.manifest, self.space, self.console, self._patience = held, manifest, space, console, patience
        self.config = TrialConfig.from_flat(manifest.resolved.config)
        settings, folder = manifest.asked, held.folder
        self.log = StudyLog(lambda events: self.journal.append(events))
        self.sampler = FeasibleSampler(
            space,
            NetworkGate(self.config.flat()),
            sampler=settings.sampler,
            seed=settings.seed,
            replicates=settings.seeds_per_config,
        )
        self.rungs = build_rungs(settings.scheduler, self.config.train.epochs)
        self.session: SearchSession | None = None  # None before `run`
        self.front = RunningFront()
        self.tables = StudyTables(folder, self.log.state, self.config.flat(), patience)
        check = ReplayCheck(self.digests)
        self.log.attach(self.sampler, self.front, self.tables, *([self.rungs] if self.rungs else []), check)
        reading = Reading(folder)
        self.tables.elsewhere = held.ended_elsewhere()
        replay(reading, self.log, self.tables)
        self.tables.elsewhere = ()
        if check.differing:
            console.print(
                f"[yellow]warning: the replayed journal gives another state of {' and '.join(check.differing)} than "
                "its last driver recorded. This is expected after a change of code or space; otherwise please report it"
                "[/yellow]",
                highlight=False,
            )
        self.journal = Journal(folder, reading.after, held.generation, patience, held.check)

    def digests(self) -> dict[str, str | None]:
        """Return hashes of the sampler's and the rungs' states, which decide what is drawn and what is stopped."""
        return {"sampler": self.sampler.digest(), "rungs": self.rungs.digest() if self.rungs else None}

    def begin(self, confirm: int | None) -> StudyManifest:
        """Write this driver's first events: crashed trials are retried, and each configuration of the front gets
        `confirm` more seeds (None: no seeds). Return the manifest, which lists the added trials."""
        log, state, folder = self.log, self.log.state, self.held.folder
        first, n_open, crashed = not state.drivers, len(state.open), state.crashed
        log.add(DriverStarted(command=self.manifest.asked.command))
        log.add(*(TrialRetried(trial=trial.name) for trial in crashed))
        if not first:
            self.console.print(
                f"continuing with {n_open} open and {len(crashed)} crashed trial(s) of {len(state.trials)}",
                highlight=False,
            )
        self.sampler.complete_replicates(log)
        self.sampler.settle(log)
        if confirm:
            self.tables.flush(last=True)
            front = pareto_points(load_study(folder)).to_dict("records")
            names = list(self.manifest.asked.confirmations)
            for config_id in front_configurations(front, state):
                known = sum(t.config_id == config_id for t in state.trials.values())
                names += [f"{config_id}r{i}" for i in range(known, known + confirm)]
            self.manifest = self.manifest.changed(confirmations=tuple(names))
            self._patience(lambda: write_manifest(folder, self.manifest))  # before the events: a kill may come between
        log.add(*confirmations(self.manifest, state))
        if self.manifest.asked.warm_start and not state.trials and not state.rejected:  # no sample was drawn yet
            for study in self.manifest.asked.warm_start:
                place = open_place(study)
                new = self.sampler.import_points(log, earlier_points(self.space, place.folder))
                self.console.print(f"warm start: {new} point(s) of {escape(study)}", highlight=False, soft_wrap=True)
        return self.manifest

    def run(self, trainable: type[rt.Trainable] | None = None) -> None:
        """Train the remaining trials: first those that have not ended, then new ones."""
        manifest, log, settings = self.manifest, self.log, self.manifest.asked
        folder, remote = self.held.folder, self.manifest.resolved.remote
        n_trials = max(settings.n_trials, len(log.state.trials))
        progress = ProgressLines(self.console, log.state, self.front, n_trials, self.config.flat())
        gauges = Gauges(folder.name, log.state, self.front)
        log.attach(progress)
        session = self.session = SearchSession(log, self.sampler, self.rungs, settings.scheduler, n_trials)
        root = f"{remote or folder}/ray"
        fixed = self.config.flat() | {"checkpoints": root, "code": code_hash()}
        fixed |= {"remote": remote} if remote else {"study_dir": str(folder)}
        fixed["generation"] = self.held.generation or None
        fixed["fingerprint"] = manifest.prepared.dataset.fingerprint
        # confirmations repeat configurations unchanged, but population based training would change them
        confirming = bool(log.state.open) and all(trial.confirms for trial in log.state.open)
        scheduler = "fifo" if confirming else settings.scheduler
        if scheduler == "pbt":
            fixed["adopt"] = [*MUTABLE_KEYS, "replicate"]
        if shares_dense(self.space):
            fixed["parents"] = str(Path(self.config.data.cache_dir) / "parents")
        if trainable is None:
            prunes = bool(self.config.prune.rounds) or any(k.startswith("prune.") for k in self.space.parameters)
            trainable = PruneTrainable if prunes else KDTrainable

        def step(running: list[str]) -> None:
            self.held.check()
            self.tables.flush()
            self._patience(self.held.push)
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
            )
        finally:
            gauges.step([], last=True)
        log.add(DriverFinished(digests=self.digests()))
        self.tables.flush(last=True)


class ReplayCheck:
    """Reducer that compares the state digests recorded by each earlier driver with those of the replay."""

    def __init__(self, digests: Callable[[], dict[str, str | None]]):
        self._digests = digests
        self.differing: list[str] = []  # names of the states whose digests differ

    def apply(self, event: Event) -> None:
        if isinstance(event, DriverFinished) and event.digests:
            now = self._digests()
            self.differing = [name for name, digest in event.digests.items() if now.get(name) != digest]


def confirmations(manifest: StudyManifest, state: StudyState) -> list[TrialCreated]:
    """Return the trials that `--confirm` requested and that do not exist yet."""
    new = []
    for name in manifest.asked.confirmations:
        if name not in state.trials:
            config_id, _, replicate = name.partition("r")
            first = state.trials[config_id]
            shared = {"config_id": config_id, "params": first.params, "values": first.values, "key": first.key}
            new.append(TrialCreated(trial=name, replicate=int(replicate), confirms=True, **shared))
    return new


def shares_dense(space: Space) -> bool:
    """Return whether two samples of `space` can have the same dense phase: the space prunes, and the keys that it
    searches besides `prune.*` have finitely many values."""
    dense = [spec for key, spec in space.parameters.items() if not key.startswith("prune.")]
    prunes = len(dense) < len(space.parameters)
    return prunes and not any(is_continuous(spec) for spec in dense)


def is_continuous(spec: Any) -> bool:
    """Return whether `spec` is a range of floats, not of integers or choices. For a key whose value is a list, this is
    asked of the range of its entries."""
    return "uniform" in spec or "loguniform" in spec or ("item" in spec and is_continuous(spec["item"]))
