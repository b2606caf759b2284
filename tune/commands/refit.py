"""Train the networks of a study's front again on all clips: the work of the command tune/refit.py.

A refit is a study of its own, in the folder `refit` of the study. Its manifest lists its trials, so nothing is sampled.
"""

import argparse
import importlib.metadata
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.front import pareto_points
from analysis.manifest import Prepared, Progress, Refitted, StudyManifest
from analysis.replicates import networks
from analysis.results import Study, load_study
from data.signals import INTERRUPTED
from trainables.config.differences import PLACES
from trainables.inputs.code import code_files
from trainables.outputs.records import REFIT, now
from tune.arguments import cluster_options
from tune.cli import typed_command
from tune.commands.driving import guarded, run_study, stopped
from tune.commands.evaluate import place_of
from tune.driver import Search
from tune.options import Repeat
from tune.planning.changes import CODE, with_code_and_space
from tune.prepare import on_all_clips
from tune.reporting.tables import rebuild_tables
from tune.resume import FREE, moved
from tune.study.access import StudyAccess, open_study
from tune.study.events import PointMeasured
from tune.study.journal import read_events
from tune.study.manifest import NAME, StudyError, is_complete, read_manifest, write_manifest
from tune.study.state import StudyState


@dataclass
class Again(Repeat):
    """How a user continues a refit after an interrupt or an error: with the same command."""

    def how(self) -> str:
        return "repeat the command: it continues"


def command(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Train the points that `options` picks again; return the exit status (`tune.refit.main`).

    `words` is the command line, which the refit records.
    """
    again = Again()
    return guarded(lambda console: refit(options, words, again, console), again)


def refit(options: argparse.Namespace, words: Sequence[str], again: Again, console: Console) -> int:
    """Start, continue or extend the refit of the study `options.study`; return the exit status of the command."""
    again.cluster = cluster_options(options)
    with again.interrupts.storage():
        folder, uri = place_of(options.study)
    with open_study(folder, uri, again.interrupts) as source:
        manifest, picked = picks(source, options.pick)
    with open_study(folder / REFIT, f"{uri}/{REFIT}" if uri else None, again.interrupts) as access:
        again.folder = access.folder
        if (access.folder / NAME).is_file():
            planned = continued(access, read_manifest(access.folder), manifest, picked, options)
            state = rebuild_tables(access.folder, planned.resolved.config, access.ended_elsewhere())
            if is_complete(planned, state) and not state.crashed:
                console.print("all these networks are trained already", highlight=False)
                write_manifest(access.folder, planned)  # with points that were not picked before
                access.push(last=True)
                return print_networks(access, planned, state, console)
        else:
            planned = new_refit(access, manifest, picked, options, words)
        options.confirm = None
        return run_study(access, planned, options, again, console, print_end)


def picks(source: StudyAccess, names: Sequence[str]) -> tuple[StudyManifest, tuple[Refitted, ...]]:
    """Return the manifest of the study `source`, and the configurations of the points `names` to train again.

    If `names` is empty, these are all points of the front. StudyError if the study is not complete or has no journal,
    or if a name is no point of the study.
    """
    folder = source.folder
    manifest = read_manifest(folder)
    if manifest.requested.refit_of is not None:
        raise StudyError(f"{folder} is a refit; expected the study itself: give {folder.parent}")
    if manifest.progress.status != "complete":
        raise StudyError(
            f"study {folder.name} is {manifest.progress.status}; expected a complete study, whose front does not "
            f"change any more: finish it first with tune/run.py --resume --name {folder.name} and its --storage"
        )
    if not manifest.resolved.code:
        raise StudyError(
            f"study {folder.name} has no journal, because an older version of asc-tune made it; expected a study whose "
            "journal has the widths of its networks: start a new study with the same space"
        )
    if manifest.requested.scheduler == "pbt":
        raise StudyError(
            f"study {folder.name} is population based training, which changes the settings of its trials while they "
            "run; expected trials with one configuration: train the best settings with trainables/run_training.py "
            "--validation_share=0"
        )
    manifest = moved(folder, manifest, ())
    state = rebuild_tables(folder, manifest.resolved.config, source.ended_elsewhere())
    study = load_study(folder)
    points = dict.fromkeys(_point(study, name) for name in names)
    if not names:
        front = pareto_points(study)
        points = dict.fromkeys(zip(front["trial_id"].tolist(), front["step"].tolist(), strict=True))
    if not points:
        raise StudyError(
            f"study {folder.name} has no point on its front; expected a network to train again: add trials with "
            f"tune/run.py --extend N --name {folder.name}, or name points with --pick"
        )
    steps: dict[str, set[int]] = {}  # configuration -> picked prune steps
    for trial, step in points:
        (config_id, *_) = networks(study.raw, trial, step)["config_id"]
        steps.setdefault(config_id, set()).add(step)
    return manifest, tuple(_refitted(folder, state, steps))


def _point(study: Study, name: str) -> tuple[str, int]:
    """Return (trial, prune step) of the point with the `name` TRIAL/STEP; StudyError if the study has no such point."""
    trial, _, step = name.partition("/")
    if not step.isdecimal() or networks(study.raw, trial, int(step)).empty:
        raise StudyError(
            f"--pick {name}: study {study.name} has no such point; expected TRIAL/STEP, such as "
            f"{study.raw['trial_id'].iloc[0] if len(study.raw) else 't0000'}/0, for a row of points.csv: correct it"
        )
    return trial, int(step)


def _refitted(folder: Path, state: StudyState, steps: dict[str, set[int]]) -> list[Refitted]:
    """Return the configurations in `steps` (configuration -> picked prune steps) of the study in `folder`.

    `state` is the study's state after all events of its journal. The widths of the networks are those in the journal:
    the numbers of channels after each prune step.
    """
    widths: dict[str, dict[int, dict[str, Any]]] = {}  # trial -> prune step -> widths
    for event in read_events(folder):
        if isinstance(event, PointMeasured) and state.trials[event.trial].config_id in steps:
            widths.setdefault(event.trial, {}).setdefault(event.point["step"], event.point["widths"])
    found = []
    for config_id, picked in steps.items():
        needed, trials = range(max(picked) + 1), [t for t in widths if state.trials[t].config_id == config_id]
        complete = next(widths[t] for t in trials if set(needed) <= set(widths[t]))
        first = state.trials[config_id]
        values = {k: v for k, v in first.values.items() if k != "data.validation_share"}
        plan = tuple(complete[step] for step in needed)
        found.append(Refitted(config_id, first.params, values, tuple(sorted(picked)), plan))
    return found


def new_refit(
    access: StudyAccess,
    source: StudyManifest,
    picked: tuple[Refitted, ...],
    options: argparse.Namespace,
    words: Sequence[str],
) -> StudyManifest:
    """Return the manifest of a new refit of the study with the manifest `source`."""
    config = on_all_clips(source)
    requested = replace(
        source.requested,
        name=REFIT,
        created=now(),
        command=shlex.join(["python", "tune/refit.py", *words]),
        num_samples=len(picked),
        seeds_per_config=options.seeds or 1,
        scheduler="fifo",
        warm_start=(),
        confirmations=(),
        extended_from=(),
        refit_of=source.requested.name,
        refit=picked,
        **{name: getattr(options, name) for name in FREE if getattr(options, name) is not None},
    )
    resolved = replace(
        source.resolved,
        folder=str(access.folder),
        remote=access.mirror.store.uri if access.mirror else None,
        config=config.flat(),
        code=code_files(CODE),
        versions={p: importlib.metadata.version(p) for p in source.resolved.versions},
    )
    return StudyManifest(requested, resolved, Prepared(), Progress())


def continued(
    access: StudyAccess,
    manifest: StudyManifest,
    source: StudyManifest,
    picked: tuple[Refitted, ...],
    options: argparse.Namespace,
) -> StudyManifest:
    """Return the `manifest` of a refit with what `options` and `picked` add: points, seeds, resources.

    The folders of data and caches are those of the study `source`, which may have moved. StudyError if code has changed
    without --allow-changes, or if a configuration would need more prune steps than its refit trains.
    """
    known = {given.config_id: given for given in manifest.requested.refit}
    for new in picked:
        old = known.get(new.config_id, new)
        if len(old.widths) < len(new.widths) or old.widths[: len(new.widths)] != new.widths:
            raise StudyError(
                f"the refit in {access.folder} trains {new.config_id} up to prune step {len(old.widths) - 1}, but "
                f"{new.config_id}/{len(new.widths) - 1} was picked, or the networks have other widths; expected the "
                f"same networks: delete {manifest.resolved.remote or access.folder} and start the refit again"
            )
        known[new.config_id] = replace(old, steps=tuple(sorted({*old.steps, *new.steps})))
    free = {name: getattr(options, name) for name in FREE if getattr(options, name) is not None}
    seeds = max(options.seeds or 1, manifest.requested.seeds_per_config)
    manifest = with_code_and_space(access.folder, manifest, None, options.allow_changes)
    places = {key: source.resolved.config[key] for key in PLACES if key in source.resolved.config}
    return manifest.changed(
        config=manifest.resolved.config | places,
        refit=tuple(known.values()),
        num_samples=len(known),
        seeds_per_config=seeds,
        folder=str(access.folder),
        remote=access.mirror.store.uri if access.mirror else None,
        **free,
    )


def print_end(
    access: StudyAccess, manifest: StudyManifest, search: Search, cluster: str | None, console: Console
) -> int:
    """Print how the refit ended; return the exit status of the command."""
    if stopped(access, manifest, search, cluster, console):
        return INTERRUPTED
    status = print_networks(access, manifest, search.log.state, console)
    access.push(last=True)
    return status


def print_networks(access: StudyAccess, manifest: StudyManifest, state: StudyState, console: Console) -> int:
    """Print the picked networks of a complete refit as a table; return 1 if a trial of the refit failed, else 0."""
    precision = manifest.resolved.limits.precision
    n_clips = manifest.prepared.dataset.n_train
    table = Table("trial", "step", "seeds", "M MACs", f"kB {precision}", title=f"refit on all {n_clips} clips")
    for given in manifest.requested.refit:
        trials = [t for t in state.trials.values() if t.config_id == given.config_id]
        for step in given.steps:
            made = [point for trial in trials for point in trial.points if point["step"] == step]
            if made:
                size = f"{made[0]['macs'] / 1e6:.2f}", f"{made[0][f'bytes_{precision}'] / 1e3:.1f}"
                table.add_row(given.config_id, str(step), str(len(made)), *size)
    console.print(table)
    failed = [trial for trial in state.trials.values() if trial.outcome in ("failed", "crashed")]
    for trial in failed:
        line = f"{trial.name} {trial.status}: {escape(str(trial.reason))}"
        console.print(f"[red]{line}[/red]", highlight=False, soft_wrap=True)
    remote = manifest.resolved.remote
    place = remote.rpartition("/")[0] if remote else access.folder.parent
    again = f"{typed_command('evaluate')} {place}"
    console.print(
        "these networks have no validation accuracy, because they have learned from all clips; to measure them on the "
        f"test split, beside those of the search:\n  {escape(again)}",
        highlight=False,
        soft_wrap=True,
    )
    return int(bool(failed))
