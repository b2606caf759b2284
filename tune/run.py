"""Search for accurate, small acoustic scene classifiers.

    # start a new study in runs/:
    python tune/run.py --space kd_prune
    # start study X, continue it, or print its report if it is complete:
    python tune/run.py --space kd_prune --name X --resume auto
    # search your own space, with these settings for all trials:
    python tune/run.py --space my_space.yaml \\
        --subset=25 train.epochs=20 profile=full
    # estimate the cost without training:
    python tune/run.py --space kd_prune --dry-run

Settings of all trials are flags of the DCASE baseline (--kd_alpha,
--batch_size, ...) or Hydra overrides (key=value).
"""

import argparse
import json
import logging
import runpy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "trainables" / "checkout.py"))

import optuna
import ray
from rich.console import Console
from rich.markup import escape

from analysis.manifest import Baseline, Dataset, Prepared, ResultsError, StudyManifest, Teacher
from analysis.report import print_front, write_report
from analysis.results import load_study
from ascmodels.checkpoint import CheckpointError
from data.signals import INTERRUPTED, interruptible
from data.tau import DatasetError
from data.untrusted import Terminal
from search_spaces import Space, SpaceError, space_from_dict
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.loop import TrainingDiverged
from trainables.inputs.fingerprint import DataFingerprint, differences
from trainables.outputs.records import EXPERIMENTS
from tune.arguments import cluster_options
from tune.checks import check_machine, local_gpus
from tune.cli import typed_command
from tune.driver import Search, close
from tune.options import Request, new_study, read_request
from tune.planning.dry_run import dry_run
from tune.prepare import Part, prepare, ray_runner
from tune.ray_start import RAY_LOG, check_cluster, log_to_file, on_cluster, start_ray, with_gpus
from tune.reporting.tables import rebuild_tables
from tune.resume import find_study, resume_command, resumed, with_changes
from tune.search.failures import reason_of
from tune.search.halving import SchedulerError
from tune.search.sampler import MAX_REJECTIONS
from tune.study.access import StudyAccess, open_study
from tune.study.journal import JournalError, read_state
from tune.study.lease import StudyLost
from tune.study.manifest import StudyError, read_manifest, write_manifest
from tune.study.retry import Retry

OWN_ERRORS = (
    *(CheckpointError, ConfigError, DatasetError, JournalError, ResultsError, SchedulerError, SpaceError, StudyError),
    *(StudyLost, TrainingDiverged),
)
USER_ERRORS = (*OWN_ERRORS, OSError)  # OSError: for example a full disk when the report is written
REPEAT = "repeat the command with"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 for success, 1 if no network was measured (with --dry-run: if no
    sample fits the limits), 2 after an error, 130 after an interrupt."""
    console = Terminal()
    words = sys.argv[1:] if argv is None else argv
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    again = Repeat()
    try:
        with interruptible():
            return run_command(read_request(words, __doc__ or ""), again, console)
    except USER_ERRORS as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print(f"interrupted; to continue, {escape(again.how())}", highlight=False, soft_wrap=True)
        return INTERRUPTED


@dataclass
class Repeat:
    """What a user must type to continue after an interrupt; `run_command` sets the fields as soon as they are known."""

    folder: Path | None = None  # of the study, on this machine
    before: StudyManifest | None = None  # of the study that --extend or --confirm continues
    cluster: str | None = None  # `cluster_options`

    def how(self) -> str:
        """Return how to continue, as a part of a message, such as "repeat the command with --name x --resume auto"."""
        if self.folder is None:
            return "repeat the command"
        if self.before is None:
            return f"{REPEAT} --name {self.folder.name} --resume auto"
        manifest = read_manifest(self.folder)
        added = (manifest.requested.num_samples, manifest.requested.confirmations)
        if added == (self.before.requested.num_samples, self.before.requested.confirmations):
            return f"{REPEAT} --name {self.folder.name}"
        return resume_command(self.folder, manifest, self.cluster)  # the same command would add further trials


def run_command(request: Request, again: Repeat, console: Console) -> int:
    """Start or continue the study of `request`; return the exit status. Set the fields of `again`, from which a message
    about an interrupt or an error tells the user how to continue."""
    options = request.options
    more = bool(options.extend or options.confirm)
    name = find_study(request.storage, request.remote, options) if options.resume or more else None
    again.cluster = cluster_options(options)
    if name is not None and not options.dry_run:
        with open_study(request.storage / name, request.uri(name)) as access:
            again.folder, again.before = access.folder, read_manifest(access.folder) if more else None
            manifest, unfinished = resumed(
                access.folder, request.uri(name), read_state(access.folder), options, request.overrides
            )
            if unfinished:
                return run_study(access, manifest, options, again, console)
            return finish(access, manifest, console)
    manifest = new_study(request)
    if options.dry_run:
        space = space_from_dict(manifest.resolved.space)
        estimate = dry_run(space, TrialConfig.from_flat(manifest.resolved.config), manifest.requested, console)
        return 0 if estimate["feasible"] else 1
    folder = again.folder = Path(manifest.resolved.folder)
    if manifest.resolved.remote is None:  # an object store is checked after this driver has its lease
        check_new(folder, manifest)
    with open_study(folder, manifest.resolved.remote) as access:
        check_new(folder, manifest)  # another process may have started it meanwhile
        return run_study(access, manifest, options, again, console)


def check_new(folder: Path, manifest: StudyManifest) -> None:
    """Raise StudyError if `folder`, which a new study would use, contains a study or other files, or is a file."""
    if (folder / "study.json").exists():
        how = f"continue it with --resume --name {folder.name}, or choose another --name"
        raise StudyError(f"the study {folder} exists already: {how}")
    content = folder.glob("*") if manifest.resolved.remote is None else ()  # a kill may leave an empty folder
    if folder.is_file() or any(not path.name.startswith(".") for path in content):
        raise StudyError(f"{folder} exists already, but is not a study: choose another --name")


def run_study(
    access: StudyAccess, manifest: StudyManifest, options: argparse.Namespace, again: Repeat, console: Console
) -> int:
    """Run a new or resumed study, from the preparation of its data to its report; return the command's exit status."""
    folder, started, address = access.folder, time.monotonic(), options.address
    place = manifest.resolved.remote or folder
    console.print(f"[bold]asc-tune[/bold] study {escape(folder.name)} in {escape(str(place))}", highlight=False)
    log_to_file(folder / RAY_LOG)
    retry = Retry(lambda message: console.print(f"[yellow]{escape(message)}[/yellow]", highlight=False))
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
        ray.shutdown()
        if search:
            search.journal.close()
    assert search is not None
    manifest = manifest.changed(wall_s=round(manifest.progress.wall_s + time.monotonic() - started, 1))
    manifest = close(access, manifest, search.log.state)
    return print_end(access, manifest, search, again.cluster, console)


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
    else:  # the data are unchanged, so the baseline's test accuracy is still valid
        old = manifest.prepared.baseline
        found["baseline"]["test_macro_avg_acc"] = old.test_macro_avg_acc if old else None
    dataset = Dataset(**found["dataset"] | {"notes": tuple(found["dataset"]["notes"])})
    teachers = tuple(Teacher(**teacher) for teacher in found["teachers"])
    return replace(manifest, prepared=Prepared(dataset, Baseline(**found["baseline"]), teachers)).changed(
        config=config.flat()
    )


def print_end(
    access: StudyAccess, manifest: StudyManifest, search: Search, cluster: str | None, console: Console
) -> int:
    """Print how the search ended and, for a complete study, its report; return the exit status. StudyError if trials
    failed one after another for the same reason, or if no sample was feasible."""
    state, n_trials = search.log.state, manifest.requested.n_trials
    resume = resume_command(access.folder, manifest, cluster)
    if search.session and search.session.hopeless:
        raise StudyError(
            "the search stopped, because the newest trials failed for the same reason before any network was measured: "
            f"{search.session.hopeless}. After fixing the cause, {resume}"
        )
    if manifest.progress.status != "complete":
        line = f"interrupted after {state.n_ended} of {n_trials} trials; {resume}"
        console.print(line, highlight=False, soft_wrap=True)
        return INTERRUPTED
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
    return report(access, console)


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
    line = f"to measure the test accuracy of these points: {typed_command('evaluate')} {escape(str(place))}"
    console.print(line, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
