"""Search for accurate, small acoustic scene classifiers.

    python tune/run.py --space kd_prune                              a new study under runs/
    python tune/run.py --space kd_prune --name X --resume auto       start X, continue it, or say that it is complete
    python tune/run.py --space my_space.yaml --subset=25 train.epochs=20 profile=full
    python tune/run.py --space kd_prune --dry-run                    what it would cost; nothing is trained

Other flags are those of the DCASE baseline (--kd_alpha, --batch_size, ...) or Hydra overrides (key=value).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import ray
import ray.tune as rt
from ray.exceptions import RayError
from rich.console import Console
from rich.markup import escape

from analysis.front import pareto_points
from analysis.report import print_front, write_report
from analysis.results import ResultsError, load_study
from ascmodels.checkpoint import CheckpointError
from data.tau import DatasetError
from search_spaces import Space, SpaceError, space_from_dict
from trainables.config import MUTABLE_KEYS, ConfigError, TrialConfig
from trainables.ray_trainables import KDTrainable, PruneTrainable
from trainables.records import EXPERIMENTS, now
from tune.dry_run import dry_run
from tune.gate import NetworkGate
from tune.gauges import Gauges
from tune.history import earlier_points
from tune.journal import Journal, JournalError, StudyLog, fold, read_events
from tune.mirror import Mirror
from tune.options import open_study, parser
from tune.prepare import prepare
from tune.ray_start import start_ray, take_sigterm_for_ctrl_c
from tune.resume import front_configurations
from tune.schedulers import SchedulerError, build_scheduler, rungs_digest
from tune.search import MAX_REJECTIONS, FeasibleOptunaSearch
from tune.study import StudyError, is_complete, lock, n_trials, read_manifest, write_manifest
from tune.writer import Hopeless, StudyWriter, catch_up

USER_ERRORS = (
    *(CheckpointError, ConfigError, DatasetError, JournalError, ResultsError, SchedulerError, SpaceError, StudyError),
    OSError,  # a disk that is full when the report is written
)
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0 finished, 1 no point was measured, 2 bad input, 130 interrupted."""
    console = Console()
    words = sys.argv[1:] if argv is None else argv
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options, rest = parser(__doc__ or "").parse_known_args(words)
    take_sigterm_for_ctrl_c()
    try:
        folder, manifest = open_study(options, rest, words)
        if options.dry_run:
            space = space_from_dict(manifest["space"])
            told = dry_run(space, TrialConfig.from_flat(manifest["config"]), manifest, console)
            return 0 if told["feasible"] else 1
        with lock(folder):
            return run_study(folder, manifest, options, console)
    except USER_ERRORS as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted before the search; the same command with --resume goes on")
        return INTERRUPTED


def run_study(folder: Path, manifest: dict[str, Any], options: argparse.Namespace, console: Console) -> int:
    """Everything a study does, in order: prepare data, teacher and baseline; start Ray; search; report."""
    place = manifest["remote"] or folder
    console.print(f"[bold]asc-tune[/bold] study {escape(folder.name)} in {escape(str(place))}", highlight=False)
    mirror = Mirror(folder, manifest["remote"]) if manifest["remote"] else None
    if manifest["status"] == "complete":
        console.print("this study is complete already; its report follows")
        if read_manifest(folder)["status"] != "complete":  # its driver was killed after the last trial
            events = list(read_events(folder))
            log = fold(events)
            catch_up(folder, events, log, manifest["config"])
            close(folder, manifest, log, mirror)
        return report(folder, console)
    space, started, address = space_from_dict(manifest["space"]), time.monotonic(), options.address
    journal: Journal | None = None
    try:
        if address:  # first, so that a cluster that does not answer is told at once
            start_ray(address, manifest, console)
        try:
            config, prepared = prepare(TrialConfig.from_flat(manifest["config"]), space, console)
            folder.mkdir(exist_ok=True)
            manifest |= prepared | {"status": "running"}
            write_manifest(folder, manifest)
            journal = Journal(folder, lambda told: console.print(f"[yellow]{escape(told)}[/yellow]"))
            catch_up(folder, journal.earlier, journal.log, config.flat())
            begin(folder, manifest, journal, options, console)
        except OSError as error:  # an unwritable cache, a full disk
            raise StudyError(f"the study could not be prepared: {error}") from error
        if not address:
            start_ray(None, manifest, console)
        writer = StudyWriter(folder, journal, n_trials(manifest), console, mirror.push if mirror else lambda last: None)
        search(folder, space, config, manifest, journal, writer, console)
        log = journal.log
    except (OSError, rt.TuneError, RayError) as error:
        raise StudyError(f"the search broke off: {error}; {how_to_go_on(folder, manifest, address)}") from error
    finally:
        ray.shutdown()
        if journal:
            journal.close()
    manifest["wall_s"] = round(manifest.get("wall_s", 0) + time.monotonic() - started, 1)
    close(folder, manifest, log, mirror)
    complete = is_complete(manifest, log)
    ended = log.n_ended
    if writer.hopeless:
        raise StudyError(
            f"every trial so far failed for one reason: {writer.hopeless}. When it is mended, "
            f"{how_to_go_on(folder, manifest, address)}"
        )
    if not complete:
        told = f"interrupted after {ended} of {n_trials(manifest)} trials; {how_to_go_on(folder, manifest, address)}"
        console.print(told, highlight=False, soft_wrap=True)
        return INTERRUPTED
    if log.exhausted:
        console.print(
            f"the space is used up after {ended} of {n_trials(manifest)} trials: {MAX_REJECTIONS} samples in a "
            f"row were rejected, {escape(json.dumps(log.rejected))}, for example {escape(json.dumps(log.examples))}",
            highlight=False,
            soft_wrap=True,
        )
    if ended == 0:
        raise StudyError(
            f"no configuration of space {space.name} fits the limits {manifest['limits']}: widen the limits or "
            "narrow the space"
        )
    status = report(folder, console)
    if mirror:
        mirror.push(last=True)
    return status


def begin(
    folder: Path, manifest: dict[str, Any], journal: Journal, options: argparse.Namespace, console: Console
) -> None:
    """A new driver's first events: crashed trials are tried again, and the front's configurations get more seeds."""
    journal.add("run", command=manifest["command"])
    log = journal.log
    running = [t.name for t in log.trials.values() if not t.ended]
    crashed = [t for t in log.trials.values() if t.crashed]
    for trial in crashed:
        journal.add("retry", trial=trial.name)
    if log.runs > 1:
        told = f"going on with {len(running)} open and {len(crashed)} crashed trial(s) of {len(log.trials)}"
        console.print(told, highlight=False)
    if options.confirm and not running:
        front = pareto_points(load_study(folder)).to_dict("records")
        for config_id in front_configurations(front, log):
            known = sum(t.config_id == config_id for t in log.trials.values())
            manifest["confirmations"] += [f"{config_id}r{i}" for i in range(known, known + options.confirm)]
        write_manifest(folder, manifest)  # first: a kill may come between the events
    elif options.confirm and not set(running) <= set(manifest["confirmations"]):
        console.print("its open trials come first; then give --confirm again")
    for name in manifest["confirmations"]:
        if name not in log.trials:
            config_id, _, replicate = name.partition("r")
            first = log.trials[config_id]
            shared = {"config_id": config_id, "params": first.params, "values": first.values, "excess": 0.0}
            journal.add("trial", trial=name, replicate=int(replicate), confirms=True, **shared)


def close(folder: Path, manifest: dict[str, Any], log: StudyLog, mirror: Mirror | None) -> None:
    """Write down how a study stands when its driver ends."""
    manifest |= {"trials": log.counts(), "rejected_reasons": dict(log.rejected), "finished": now()}
    manifest |= {"drivers": log.runs, "epochs_repeated": sum(t.repeated for t in log.trials.values())}
    manifest["status"] = "complete" if is_complete(manifest, log) else "interrupted"
    try:
        write_manifest(folder, manifest)
        if mirror:
            mirror.pull_networks()
            mirror.push(last=True)
    except OSError as error:
        raise StudyError(f"the study's end could not be written down: {error}; give the command again") from error


def search(
    folder: Path,
    space: Space,
    config: TrialConfig,
    manifest: dict[str, Any],
    journal: Journal,
    writer: StudyWriter,
    console: Console,
    trainable: type[rt.Trainable] | None = None,
) -> None:
    """Ray's Tuner over the trials that are left: those that have not ended, then new ones."""
    root = f"{manifest['remote'] or folder}/ray"
    where = {"remote": manifest["remote"]} if manifest["remote"] else {"study_dir": str(folder)}
    fixed = config.flat() | where | {"checkpoints": root}
    if manifest["scheduler"] == "pbt":
        fixed["adopt"] = [*MUTABLE_KEYS, "replicate"]
    if shares_dense(space):
        fixed["parents"] = str(Path(config.data.cache_dir) / "parents")
    searcher = FeasibleOptunaSearch(
        space,
        fixed,
        NetworkGate(config.flat()),
        sampler=manifest["sampler"],
        seed=manifest["seed"],
        events=journal,
        replicates=manifest["seeds_per_config"],
    )
    if manifest["warm_start"] and not journal.log.trials and not journal.log.rejected:  # nothing was drawn yet
        for study in manifest["warm_start"]:
            told = searcher.tell_known(earlier_points(space, Path(study)))
            console.print(f"warm start: {told} point(s) of {escape(study)}", highlight=False, soft_wrap=True)
    scheduler = build_scheduler(manifest["scheduler"], config.train.epochs, space, journal.earlier)
    journal.earlier.clear()
    left = max(n_trials(manifest), len(journal.log.trials)) - journal.log.n_ended
    if trainable is None:
        prunes = bool(config.prune.rounds) or any(key.startswith("prune.") for key in space.parameters)
        trainable = PruneTrainable if prunes else KDTrainable
    resources = {"cpu": manifest["cpus_per_trial"], "gpu": manifest["gpus_per_trial"]}
    rt.Tuner(
        rt.with_resources(trainable, resources),
        tune_config=rt.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=left,
            max_concurrent_trials=manifest["max_concurrent"] or None,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=rt.RunConfig(
            name=f"run{journal.log.runs:03d}",
            storage_path=root,
            callbacks=[writer, Gauges(folder.name, journal.log)],
            checkpoint_config=rt.CheckpointConfig(checkpoint_frequency=1),  # the trials remove their old ones
            failure_config=rt.FailureConfig(max_failures=3),
            stop=Hopeless(writer),
            verbose=0,
        ),
    ).fit()
    journal.add("rungs", digest=rungs_digest(scheduler))


def shares_dense(space: Space) -> bool:
    """Whether two draws can have one dense phase: what is searched of it has a finite number of values."""
    dense = [spec for key, spec in space.parameters.items() if not key.startswith("prune.")]
    prunes = len(dense) < len(space.parameters)
    return prunes and not any("uniform" in spec or "loguniform" in spec for spec in dense)


def _trial_name(trial: Any) -> str:
    return trial.config["trial"]


def how_to_go_on(folder: Path, manifest: dict[str, Any], address: str | None) -> str:
    storage = manifest["remote"].rpartition("/")[0] if manifest["remote"] else folder.parent
    there = f" --address {address}" if address else ""
    return f"to go on:\n  {python()} tune/run.py --resume --name {folder.name} --storage {storage}{there}"


def python() -> str:
    """The interpreter as a person would type it from here."""
    used = Path(sys.executable)
    return str(used.relative_to(Path.cwd())) if used.is_relative_to(Path.cwd()) else str(used)


def report(folder: Path, console: Console) -> int:
    """Table in the terminal; report.html, front.png, front.csv in the study's folder. 1 when nothing was measured."""
    study = load_study(folder)
    print_front(study)
    for path in write_report(folder).values():
        console.print(f"  {escape(str(path))}", highlight=False, soft_wrap=True)
    if study.points.empty:
        console.print(f"no trial measured a point; {escape(str(folder / EXPERIMENTS))}/*/info.json tell why")
        return 1
    told = f"test accuracy of these points: {python()} tune/evaluate.py {escape(str(folder))}"
    console.print(told, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
