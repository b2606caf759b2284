"""Search for accurate, small acoustic scene classifiers.

    python tune/run.py --space kd_prune                              a new study under runs/
    python tune/run.py --space kd_prune --name X --resume            continue X, or start it
    python tune/run.py --space my_space.yaml --subset=25 train.epochs=20 profile=full

Other flags are those of the DCASE baseline (--kd_alpha, --batch_size, ...) or Hydra overrides (key=value).
"""

import json
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import ray
import ray.tune as rt
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from rich.console import Console
from rich.markup import escape

from analysis.report import print_front, write_report
from analysis.results import ResultsError, load_study
from ascmodels.checkpoint import CheckpointError
from data.tau import SCENES, DatasetError
from search_spaces import Space, SpaceError, space_from_dict
from trainables.baseline import NAME as BASELINE
from trainables.baseline import baseline_accuracy
from trainables.clips import TrialData, load_clips, with_enough_epochs
from trainables.config import (
    ConfigError,
    TrialConfig,
)
from trainables.ray_trainables import KDTrainable, PruneTrainable
from trainables.records import EXPERIMENTS, now
from trainables.teachers import fine_tuned_teacher, teacher_summary, validation_hash
from trainables.trial import load_trial_data
from tune.options import check_resource, open_study, parser
from tune.schedulers import SCHEDULERS
from tune.search import MAX_REJECTIONS, FeasibleOptunaSearch, read_searcher
from tune.study import KEPT, StudyError, StudyWriter, lock, mend_snapshot, read_manifest, write_manifest

USER_ERRORS = (CheckpointError, ConfigError, DatasetError, ResultsError, SpaceError, StudyError)
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
        with lock(folder):
            return run_study(folder, manifest, options.address, console)
    except USER_ERRORS as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted before the search; the same command with --resume goes on")
        return INTERRUPTED


def run_study(folder: Path, manifest: dict[str, Any], address: str | None, console: Console) -> int:
    """Everything a study does, in order: prepare data, teacher and baseline; start Ray; search; report."""
    console.print(f"[bold]asc-tune[/bold] study {escape(folder.name)} in {escape(str(folder))}", highlight=False)
    if manifest["status"] == "complete":
        console.print("this study is complete already; its report follows")
        return report(folder, console)
    space, started = space_from_dict(manifest["space"]), time.monotonic()
    try:
        if address:  # first, so that a cluster that does not answer is told at once
            start_ray(address, manifest, console)
        try:
            config, prepared = prepare(TrialConfig.from_flat(manifest["config"]), space, console)
            folder.mkdir(exist_ok=True)
            write_manifest(folder, manifest | prepared | {"status": "running"})
        except OSError as error:  # an unwritable cache, a full disk
            raise StudyError(f"the study could not be prepared: {error}") from error
        if not address:
            start_ray(None, manifest, console)
        tuner(folder, space, config, manifest).fit()
    finally:
        ray.shutdown()
    manifest = read_manifest(folder)
    ended = sum(n for status, n in manifest["trials"].items() if status not in ("running", "rejected"))
    searcher = read_searcher(folder)
    all_ended = not manifest["trials"].get("running")
    complete = all_ended and (ended == manifest["num_samples"] or searcher["exhausted"])
    manifest["wall_s"] = round(manifest.get("wall_s", 0) + time.monotonic() - started, 1)
    write_manifest(folder, manifest | {"status": "complete" if complete else "interrupted", "finished": now()})
    if not complete:
        there = f" --address {address}" if address else ""
        console.print(
            f"interrupted after {ended} of {manifest['num_samples']} trials; to go on:\n"
            f"  {python()} tune/run.py --resume --name {folder.name} --storage {folder.parent}{there}",
            highlight=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    if searcher["exhausted"]:
        console.print(
            f"the space is used up after {ended} of {manifest['num_samples']} trials: {MAX_REJECTIONS} samples in a "
            f"row were rejected, {escape(json.dumps(searcher['rejected']))}, for example "
            f"{escape(json.dumps(searcher['examples']))}",
            highlight=False,
            soft_wrap=True,
        )
    if ended == 0:
        raise StudyError(
            f"no configuration of space {space.name} fits the limits {manifest['limits']}: widen the limits or "
            "narrow the space"
        )
    return report(folder, console)


def prepare(config: TrialConfig, space: Space, console: Console) -> tuple[TrialConfig, dict[str, Any]]:
    """Cached waveforms, the baseline, the teacher with its logits: what all trials share."""
    data = load_clips(config, config.frontend.sample_rate, progress=True)
    tell_data(config, data, console)
    asked, config = config, with_enough_epochs(config, len(data.train.rows))
    if config.train.epochs > asked.train.epochs:
        console.print(
            f"epochs: {config.train.epochs} dense and {config.prune.epochs} after each prune step, so that "
            f"{len(data.train.rows)} clips give {asked.train.min_steps} steps (train.min_steps; a typed train.epochs "
            "is kept)",
            highlight=False,
            soft_wrap=True,
        )
    accuracy = baseline_accuracy(data.train, data.validation, config.frontend)
    console.print(f"baseline: {BASELINE}: {accuracy:.1%} validation", highlight=False)
    teachers = []
    if config.distill.taught or {"distill.kd_alpha", "distill.feature_weight"} & set(space.parameters):
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # transformers': ours tells more
        folders = [str(Path(f).resolve()) for f in config.distill.teacher_ckpts]
        folders = folders or [str(fine_tuned_teacher(config, progress=True))]
        config = replace(config, distill=replace(config.distill, teacher_ckpts=tuple(folders)))
        load_trial_data(replace(config, distill=replace(config.distill, kd_alpha=0.5)), progress=True)
        teachers = [teacher_summary(Path(f)) for f in folders]
        for teacher in teachers:
            told = f"teacher: {teacher['name']}: {teacher['val_macro_avg_acc']:.1%} validation"
            if teacher["validation"] != validation_hash(data.validation):
                told += "; fine-tuned on another division, so it may know this study's validation clips"
            console.print(told, highlight=False, soft_wrap=True)
    dataset = {
        "dataset_dir": config.data.dataset_dir,
        "subset": config.data.subset,
        "n_train": len(data.train.rows),
        "n_validation": len(data.validation.rows),
        "n_classes": len(SCENES),
        "holdout": f"{config.data.validation_share:.0%} of the training split, whole recording locations",
        "notes": list(data.notes),
    }
    baseline = {"name": BASELINE, "val_macro_avg_acc": accuracy, "test_macro_avg_acc": None}
    return config, {"config": config.flat(), "dataset": dataset, "baseline": baseline, "teachers": teachers}


def tuner(folder: Path, space: Space, config: TrialConfig, manifest: dict[str, Any]) -> rt.Tuner:
    """Ray's Tuner for a new study, or the restored one where a snapshot is there."""
    prunes = bool(config.prune.rounds) or any(key.startswith("prune.") for key in space.parameters)
    resources = {"cpu": manifest["cpus_per_trial"], "gpu": manifest["gpus_per_trial"]}
    trainable = rt.with_resources(PruneTrainable if prunes else KDTrainable, resources)
    results = folder / "ray"
    if rt.Tuner.can_restore(str(results)) and mend_snapshot(results, folder / KEPT):
        return rt.Tuner.restore(str(results), trainable, resume_unfinished=True, resume_errored=True)
    search = FeasibleOptunaSearch(space, config.flat(), str(folder), manifest["seed"])
    writer = StudyWriter(folder, list(space.parameters), manifest["num_samples"])
    return rt.Tuner(
        trainable,
        tune_config=rt.TuneConfig(
            search_alg=search,
            scheduler=SCHEDULERS[manifest["scheduler"]](config.train.epochs, results),
            num_samples=manifest["num_samples"],
            max_concurrent_trials=manifest["max_concurrent"] or None,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=rt.RunConfig(
            name=results.name,
            storage_path=str(folder),
            callbacks=[writer, JsonLoggerCallback(), CSVLoggerCallback()],
            checkpoint_config=rt.CheckpointConfig(checkpoint_frequency=1, num_to_keep=10),
            failure_config=rt.FailureConfig(max_failures=2),
            verbose=0,
        ),
    )


def _trial_name(trial: Any) -> str:
    return trial.config["trial"]


def start_ray(address: str | None, manifest: dict[str, Any], console: Console) -> None:
    """Connect to, or start, Ray; StudyError when it cannot give a trial its resources."""
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # a snapshot every 2 s: little is lost at a kill
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # ours are named in RunConfig
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial may fail before its first metric
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # our own lines tell the progress
    try:
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        if host:  # asked first: Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        own = {} if address else {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
        context = ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise StudyError(f"--address {address}: no Ray cluster answers there ({error})") from error
    take_sigterm_for_ctrl_c()
    total = ray.cluster_resources()
    for name in ("cpu", "gpu"):
        check_resource(name, manifest[f"{name}s_per_trial"], total.get(name.upper(), 0), "the cluster")
    told = f"http://{context.dashboard_url} (its token: ray get-auth-token)" if context.dashboard_url else "not running"
    console.print(f"dashboard: {told}", highlight=False)


def take_sigterm_for_ctrl_c() -> None:
    """Ray snapshots at SIGINT only, and `ray.init` takes SIGTERM for a crash: so this is said again after it."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))


def python() -> str:
    """The interpreter as a person would type it from here."""
    used = Path(sys.executable)
    return str(used.relative_to(Path.cwd())) if used.is_relative_to(Path.cwd()) else str(used)


def tell_data(config: TrialConfig, data: TrialData, console: Console) -> None:
    console.print(
        f"data: split{config.data.subset}, {len(data.train.rows)} training and {len(data.validation.rows)} validation "
        "clips (held out by recording location); the test split stays closed",
        highlight=False,
        soft_wrap=True,
    )
    for note in data.notes:
        console.print(f"  note: {escape(note)}", highlight=False, soft_wrap=True)


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
