"""Start, continue, extend or plan a study: the work of the command tune/run.py."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import optuna
import torch
from rich.console import Console
from rich.markup import escape

from analysis.manifest import StudyManifest
from analysis.outputs import print_front, write_report
from analysis.results import load_study
from data.signals import INTERRUPTED
from search_spaces import space_from_dict
from trainables.config.schema import TrialConfig
from trainables.outputs.records import EXPERIMENTS
from tune.arguments import cluster_options
from tune.cli import typed_command
from tune.commands import refit
from tune.commands.driving import guarded, run_study, stopped
from tune.driver import Search, close
from tune.options import Repeat, Request, check_new, new_study, read_request
from tune.planning.dry_run import dry_run
from tune.reporting.tables import rebuild_tables
from tune.reporting.tracked_front import track_front
from tune.resume import find_study, resumed
from tune.search.sampler import MAX_REJECTIONS
from tune.study.access import StudyAccess, open_study
from tune.study.journal import read_state
from tune.study.manifest import StudyError, read_manifest, write_manifest


def command(words: Sequence[str]) -> int:
    """Do what the command line `words` asks; return the exit status (`tune.run.main`)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)  # the driver only measures small networks; the CPU cores are for the trials
    again = Repeat()

    def work(console: Console) -> int:
        with again.interrupts.storage():
            request = read_request(words)
        status = run_command(request, again, console)
        if request.options.refit and not request.options.dry_run and status == 0 and again.folder:
            status = refit_after(request, again, console)
        return status

    return guarded(work, again)


def refit_after(request: Request, again: Repeat, console: Console) -> int:
    """Train the front of the complete study `again.folder` again on all clips (--refit); return the exit status."""
    assert again.folder
    options = argparse.Namespace(**vars(request.options))
    options.study, options.pick, options.seeds = request.uri(again.folder.name) or str(again.folder), [], options.refit
    return refit.refit(options, request.words, refit.Again(interrupts=again.interrupts), console)


def run_command(request: Request, again: Repeat, console: Console) -> int:
    """Start or continue the study of `request`; return the exit status. Set the fields of `again`, from which a message
    about an interrupt or an error tells the user how to continue."""

    def warn(message: str) -> None:
        console.print(f"[yellow]warning: {escape(message)}[/yellow]", highlight=False, soft_wrap=True)

    options = request.options
    more = bool(options.extend or options.confirm)
    with again.interrupts.storage():
        name = find_study(request.storage, request.remote, options, warn) if options.resume or more else None
    again.cluster = cluster_options(options)
    if name is not None and not options.dry_run:
        with open_study(request.storage / name, request.uri(name), again.interrupts) as access:
            again.folder, again.before = access.folder, read_manifest(access.folder) if more else None
            manifest, unfinished = resumed(
                access.folder, request.uri(name), read_state(access.folder), options, request.overrides
            )
            if unfinished:
                return run_study(access, manifest, options, again, console, print_end)
            return finish(access, manifest, console)
    manifest = new_study(request)
    if options.dry_run:
        space = space_from_dict(manifest.resolved.space)
        estimate = dry_run(space, TrialConfig.from_flat(manifest.resolved.config), manifest.requested, console)
        return 0 if estimate["feasible"] else 1
    folder = again.folder = Path(manifest.resolved.folder)
    if manifest.resolved.remote is None:  # an object store is checked after this driver has its lease
        check_new(folder, manifest)
    with open_study(folder, manifest.resolved.remote, again.interrupts) as access:
        check_new(folder, manifest)  # another process may have started it meanwhile
        return run_study(access, manifest, options, again, console, print_end)


def print_end(
    access: StudyAccess, manifest: StudyManifest, search: Search, cluster: str | None, console: Console
) -> int:
    """Print how the search ended and, for a complete study, its report; return the exit status. StudyError if trials
    failed one after another for the same reason, or if no sample was feasible."""
    if stopped(access, manifest, search, cluster, console):
        return INTERRUPTED
    state, n_trials = search.log.state, manifest.requested.n_trials
    if state.exhausted:
        console.print(
            f"the search space is exhausted after {state.n_ended} of {n_trials} trials: {MAX_REJECTIONS} samples in "
            f"a row were rejected. Rejected samples by reason: {escape(json.dumps(state.rejected))}; examples: "
            f"{escape(json.dumps(state.examples))}",
            highlight=False,
            soft_wrap=True,
        )
    if state.n_ended == 0:
        limits = json.dumps({k: getattr(manifest.resolved.limits, k) for k in ("macs", "bytes", "precision")})
        raise StudyError(
            f"every sample of space {search.space.name} was rejected under the limits {limits}. Number of samples by "
            f"reason: {json.dumps(state.rejected)}. Start another study with wider --limits, or with another space"
        )
    status = report(access, console)
    track(access, search, console)
    return status


def finish(access: StudyAccess, manifest: StudyManifest, console: Console) -> int:
    """Restore lost or outdated tables of a complete study, and print its report; return the exit status of `report`."""
    console.print(f"[bold]asc-tune[/bold] study {escape(access.folder.name)}", highlight=False)
    console.print("this study is complete already: no trial is started, and its report follows")
    if manifest.resolved.code:  # studies of older versions have no journal
        state = rebuild_tables(access.folder, manifest.resolved.config, access.ended_elsewhere())
        if read_manifest(access.folder).progress.status != "complete":
            manifest = close(access, manifest, state)
    if manifest != read_manifest(access.folder):  # the study or its data set has moved; evaluate.py needs the new paths
        write_manifest(access.folder, manifest)
    return report(access, console)


def track(access: StudyAccess, search: Search, console: Console) -> None:
    """Log the front of a complete study to W&B; a warning is printed if the files of the run cannot be uploaded."""
    paths = track_front(load_study(access.folder), search.log.state, search.wandb)
    if access.mirror is None:
        return
    try:
        for path in paths:
            access.mirror.store.push(path, f"wandb/{path.name}")
    except OSError as error:
        line = f"warning: the W&B run of the study was not uploaded: {escape(str(error))}; it is in {paths[0]}"
        console.print(f"[yellow]{line}[/yellow]", highlight=False, soft_wrap=True)


def report(access: StudyAccess, console: Console) -> int:
    """Print the front; write report.html, front.png and front.csv. Return the exit status: 0, or 1 without points."""
    study = load_study(access.folder)
    print_front(study)
    for path in write_report(access.folder).values():
        console.print(f"  {escape(str(path))}", highlight=False, soft_wrap=True)
    access.push(last=True)
    if study.points.empty:
        files = f"{escape(str(access.folder / EXPERIMENTS))}/*/info.json"
        console.print(f"no network was measured; the field `failure` in {files} contains the reasons")
        return 1
    place = study.manifest.resolved.remote or access.folder
    line = f"to measure the test accuracy of these points: {typed_command('evaluate')} {place}"
    console.print(escape(line), highlight=False, soft_wrap=True)
    return 0
