"""Run a new or resumed study: prepare its data, start Ray, train its trials. A search and a refit share this."""

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from analysis.manifest import Baseline, Dataset, Prepared, StudyManifest, Teacher
from analysis.typed_json import ResultsError
from ascmodels.checkpoint import CheckpointError
from data.signals import INTERRUPTED, interruptible
from data.tau import DatasetError
from data.untrusted import Terminal
from search_spaces import Space, SpaceError, space_from_dict
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.loop import TrainingDiverged
from trainables.inputs.fingerprint import DataFingerprint, differences
from trainables.outputs.disk import disk_message
from trainables.outputs.records import REFIT
from tune.driver import Search, close
from tune.options import Repeat
from tune.planning.changes import with_changes
from tune.planning.checks import check_machine, local_gpus
from tune.prepare import Part, prepare, ray_runner
from tune.ray_start import RAY_LOG, check_cluster, log_to_file, on_cluster, start_ray, stop_ray, with_gpus
from tune.resume import resume_command
from tune.search.failures import reason_of
from tune.search.halving import SchedulerError
from tune.study.access import StudyAccess
from tune.study.journal import JournalError
from tune.study.lease import StudyLost
from tune.study.manifest import StudyError, write_manifest
from tune.study.retry import Retry

OWN_ERRORS = (
    *(CheckpointError, ConfigError, DatasetError, JournalError, ResultsError, SchedulerError, SpaceError, StudyError),
    *(StudyLost, TrainingDiverged),
)
USER_ERRORS = (*OWN_ERRORS, OSError)  # OSError: for example a full disk when the report is written


def guarded(work: Callable[[Console], int], again: Repeat) -> int:
    """Call `work`, the body of a command, with a console for its output; return the exit status of the command.

    After an error of `USER_ERRORS`, a line without a traceback is printed, and the status is 2. After Ctrl-C or
    SIGTERM, a line on how to continue is printed (the text of the KeyboardInterrupt, or that of `again`), and the
    status is 130.
    """
    console = Terminal()
    try:
        with interruptible() as again.interrupts:
            return again.interrupts.leave(work(console))
    except USER_ERRORS as error:
        console.print(f"[red]error:[/red] {escape(disk_message(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt as interrupt:
        how = str(interrupt) or f"to continue, {again.how()}"
        console.print(f"interrupted; {escape(how)}", highlight=False, soft_wrap=True)
        return INTERRUPTED


def run_study(
    access: StudyAccess,
    manifest: StudyManifest,
    options: argparse.Namespace,
    again: Repeat,
    console: Console,
    end: Callable[[StudyAccess, StudyManifest, Search, str | None, Console], int],
) -> int:
    """Run a new or resumed study, from the preparation of its data to its end; return the command's exit status.

    `end` prints how the study ended, and returns the exit status.
    """
    folder, started, address = access.folder, time.monotonic(), options.address
    place = manifest.resolved.remote or folder
    what = "study" if manifest.requested.refit_of is None else f"{REFIT} of study"
    name = manifest.requested.refit_of or folder.name
    console.print(f"[bold]asc-tune[/bold] {what} {escape(name)} in {escape(str(place))}", highlight=False)
    log_to_file(folder / RAY_LOG)
    again.interrupts.advice = again.how()

    def warn(message: str) -> None:
        console.print(f"[yellow]{escape(message)}[/yellow]", highlight=False)

    retry = Retry(warn, interrupts=again.interrupts)
    search: Search | None = None
    try:
        if address:  # first, so that an unreachable cluster is reported at once
            start_ray(address, console, folder / RAY_LOG, options.allow_open_cluster)
            manifest = on_cluster(manifest)
        else:
            if options.gpus_per_trial is not None:  # a resume may run on another number of GPUs
                manifest = with_gpus(manifest, local_gpus())
            check_machine(manifest.requested.cpus_per_trial, manifest.requested.gpus_per_trial)
        space = space_from_dict(manifest.resolved.space)
        manifest = prepared(folder, manifest, space, options, console).changed(status="running")
        start_ray(address, console, folder / RAY_LOG, options.allow_open_cluster)
        check_cluster(manifest.requested.cpus_per_trial, manifest.requested.gpus_per_trial or 0.0)
        access.check()
        retry(lambda: write_manifest(folder, manifest))
        retry(lambda: access.push(last=True))  # the study now exists in the object store, too
        search = Search(access, manifest, space, retry, console)
        manifest = search.begin(options.confirm)
        again.interrupts.advice = resume_command(folder, manifest, again.cluster)
        search.run()
    except OWN_ERRORS:
        raise
    except Exception as error:  # one line for the user; the traceback is in the log
        logging.getLogger("ray").error("the search stopped", exc_info=error)
        how = resume_command(folder, manifest, again.cluster) if search else again.how()
        raise StudyError(
            f"the search stopped: {reason_of(error)}. The traceback is in {folder / RAY_LOG}. After fixing the cause, "
            f"{how}"
        ) from error
    except KeyboardInterrupt:
        if search is None:
            raise
    finally:
        stop_ray()
        if search:
            search.journal.close()
    assert search is not None
    manifest = manifest.changed(wall_s=round(manifest.progress.wall_s + time.monotonic() - started, 1))
    manifest = close(access, manifest, search.log.state, again.interrupts)
    return end(access, manifest, search, again.cluster, console)


def stopped(
    access: StudyAccess, manifest: StudyManifest, search: Search, cluster: str | None, console: Console
) -> bool:
    """Return whether the study is not complete; print how to continue it. StudyError if trials failed one after
    another for the same reason."""
    resume = resume_command(access.folder, manifest, cluster)
    if search.session and search.session.hopeless:
        raise StudyError(
            "the search stopped, because the newest trials failed for the same reason before any network was measured: "
            f"{search.session.hopeless}. After fixing the cause, {resume}"
        )
    if manifest.progress.status == "complete":
        return False
    line = f"interrupted after {search.log.state.n_ended} of {manifest.requested.n_trials} trials; {resume}"
    console.print(escape(line), highlight=False, soft_wrap=True)
    return True


def prepared(
    folder: Path, manifest: StudyManifest, space: Space, options: argparse.Namespace, console: Console
) -> StudyManifest:
    """Prepare data, baseline and teachers, which all trials share; return `manifest` with a description of them.

    DatasetError if the data have changed since the start of the study and --allow-changes is not given.
    """
    before = manifest.prepared.dataset.fingerprint
    known = DataFingerprint.from_dict(before) if before else None
    as_task = ray_runner(manifest.requested.cpus_per_trial, manifest.requested.gpus_per_trial or 0.0)

    def run(part: Part, flat: dict[str, Any]) -> Any:
        # only now: a resumed study usually has all parts in the cache
        start_ray(options.address, console, folder / RAY_LOG, options.allow_open_cluster)
        check_cluster(manifest.requested.cpus_per_trial, manifest.requested.gpus_per_trial or 0.0)
        return as_task(part, flat)

    config = TrialConfig.from_flat(manifest.resolved.config)
    config, found = prepare(config, space, console, run, None if options.allow_changes else known)
    if known and (changes := differences(known, DataFingerprint.from_dict(found["dataset"]["fingerprint"]))):
        manifest = with_changes(folder, manifest, [f"the data have changed: {'; '.join(changes)}"], True)
    elif found["baseline"]:  # the data are unchanged, so the baseline's test accuracy is still valid
        old = manifest.prepared.baseline
        found["baseline"]["test_macro_avg_acc"] = old.test_macro_avg_acc if old else None
    dataset = Dataset(**found["dataset"] | {"notes": tuple(found["dataset"]["notes"])})
    teachers = tuple(Teacher(**teacher) for teacher in found["teachers"])
    baseline = Baseline(**found["baseline"]) if found["baseline"] else None
    return replace(manifest, prepared=Prepared(dataset, baseline, teachers)).changed(config=config.flat())
