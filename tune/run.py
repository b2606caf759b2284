"""Search for accurate, small acoustic scene classifiers.

    python tune/run.py --space kd_prune                              a new study under runs/
    python tune/run.py --space kd_prune --name X --resume            continue X, or start it
    python tune/run.py --space my_space.yaml --subset=25 train.epochs=20 profile=full

Other flags are those of the DCASE baseline (--kd_alpha, --batch_size, ...) or Hydra overrides (key=value).
"""

import argparse
import difflib
import importlib.metadata
import logging
import math
import os
import shlex
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import ray
import ray.tune as rt
import torch
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from rich.console import Console
from rich.markup import escape

from analysis.report import front_table, write_report
from analysis.results import load_study
from ascmodels.checkpoint import CheckpointError
from ascmodels.pruning import schedule_sizes
from data.tau import SCENES, DatasetError, dataset_root
from search_spaces import Space, SpaceError, load_space, space_from_dict
from trainables.baseline import NAME as BASELINE
from trainables.baseline import baseline_accuracy
from trainables.config import (
    ConfigError,
    TrialConfig,
    compose,
    flags,
    flags_to_overrides,
    key_types,
    type_name,
)
from trainables.ray_trainables import KDTrainable, PruneTrainable
from trainables.teachers import fine_tuned_teacher, teacher_summary
from trainables.trial import TrialData, load_trial_data
from tune.schedulers import SCHEDULERS
from tune.search import MAX_REJECTIONS, OBJECTIVES, FeasibleOptunaSearch, read_rejected
from tune.study import StudyError, StudyWriter, lock, now, read_manifest, write_manifest

USER_ERRORS = (CheckpointError, ConfigError, DatasetError, SpaceError, StudyError)
DEFAULTS = {"num_samples": 12, "scheduler": "mo_asha", "seed": 0, "max_concurrent": None}
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0 finished, 2 bad input, 1 no result, 130 interrupted."""
    console = Console()
    words = sys.argv[1:] if argv is None else argv
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options, rest = parser().parse_known_args(words)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))  # Ray snapshots at SIGINT
    try:
        folder, manifest = open_study(options, flags_to_overrides(rest), words)
        with lock(folder):
            return run_study(folder, manifest, options, console)
    except USER_ERRORS as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted before the search; the same command with --resume goes on")
        return INTERRUPTED


def run_study(folder: Path, manifest: dict[str, Any], options: argparse.Namespace, console: Console) -> int:
    """Everything a study does, in order: prepare data, teacher and baseline; search; report."""
    space = space_from_dict(manifest["space"])
    config = TrialConfig.from_flat(manifest["config"])
    console.print(f"[bold]asc-tune[/bold] study {folder.name} in {folder}", highlight=False, soft_wrap=True)
    if manifest["status"] == "complete":
        console.print("this study is complete already; its report follows")
        return report(folder, console)
    started = time.monotonic()
    config, prepared = prepare(config, space, console)
    manifest |= prepared
    manifest["status"] = "running"
    folder.mkdir(exist_ok=True)
    write_manifest(folder, manifest)
    resources = start_ray(options, console)
    try:
        grid = tuner(folder, space, config, manifest, resources).fit()
    finally:
        ray.shutdown()
    manifest = read_manifest(folder)
    ended = sum(n for status, n in manifest["trials"].items() if status not in ("running", "rejected"))
    starved = not read_points(folder) and sum(read_rejected(folder).values()) >= MAX_REJECTIONS
    complete = ended == manifest["num_samples"] or (starved and len(grid) == 0)
    manifest["wall_s"] = manifest.get("wall_s", 0) + round(time.monotonic() - started, 1)
    write_manifest(folder, manifest | {"status": "complete" if complete else "interrupted", "finished": now()})
    if not complete:
        console.print(
            f"interrupted after {ended} of {manifest['num_samples']} trials; to go on:\n"
            f"  python tune/run.py --resume --name {folder.name} --storage {folder.parent}",
            highlight=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    if starved:
        raise StudyError(
            f"{MAX_REJECTIONS} sampled configurations in a row were rejected ({read_rejected(folder)}): the space has "
            f"almost no point within {manifest['limits']}; widen the limits or narrow the space"
        )
    return report(folder, console)


def prepare(config: TrialConfig, space: Space, console: Console) -> tuple[TrialConfig, dict[str, Any]]:
    """Cached waveforms, the baseline, the teacher with its logits: what all trials share. Paths become absolute."""
    paths = {
        "dataset_dir": str(dataset_root(config.data.dataset_dir)),  # TAU24_PATH may be another one at a resume
        "split_dir": config.data.split_dir and str(Path(config.data.split_dir).resolve()),
        "cache_dir": str(Path(config.data.cache_dir).resolve()),
    }
    config = replace(config, data=replace(config.data, **paths))
    alone = replace(config, distill=replace(config.distill, kd_alpha=1.0))
    data = load_trial_data(alone, progress=True)
    tell_data(config, data, console)
    accuracy = baseline_accuracy(data.train, data.validation, config.frontend)
    console.print(f"baseline: {BASELINE}: {accuracy:.1%} validation", highlight=False)
    teachers = []
    if config.distill.kd_alpha < 1 or "distill.kd_alpha" in space.parameters:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # transformers': ours tells more
        folders = [str(Path(f).resolve()) for f in config.distill.teacher_ckpts]
        folders = folders or [str(fine_tuned_teacher(config, progress=True))]
        config = replace(config, distill=replace(config.distill, teacher_ckpts=tuple(folders)))
        load_trial_data(replace(config, distill=replace(config.distill, kd_alpha=0.5)), progress=True)
        teachers = [teacher_summary(Path(f)) for f in folders]
        for teacher in teachers:
            console.print(f"teacher: {teacher['name']}: {teacher['val_macro_avg_acc']:.1%} validation", highlight=False)
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


def tuner(
    folder: Path, space: Space, config: TrialConfig, manifest: dict[str, Any], resources: dict[str, float]
) -> rt.Tuner:
    """Ray's Tuner for a new study, or the restored one where a snapshot is there."""
    prunes = "prune.ratios" in space.parameters or bool(config.prune.ratios)
    trainable = rt.with_resources(PruneTrainable if prunes else KDTrainable, resources)
    results = folder / "ray"
    if rt.Tuner.can_restore(str(results)):
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
            checkpoint_config=rt.CheckpointConfig(checkpoint_frequency=1, num_to_keep=3),
            failure_config=rt.FailureConfig(max_failures=2),
            verbose=0,
        ),
    )


def _trial_name(trial: Any) -> str:
    return trial.config["trial"]


def start_ray(options: argparse.Namespace, console: Console) -> dict[str, float]:
    """Connect to, or start, Ray; the resources of a trial. StudyError when the cluster cannot give them."""
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # a snapshot every 2 s: little is lost at a kill
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # ours are named in RunConfig
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # our own lines tell the progress
    gpus = options.gpus_per_trial
    if gpus is None:
        gpus = 0.25 if torch.cuda.is_available() else 0.0
    try:
        own = {} if options.address else {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
        context = ray.init(options.address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, ValueError) as error:
        raise StudyError(f"--address {options.address}: no Ray cluster answers there ({error})") from error
    total = ray.cluster_resources()
    needed = {"cpu": options.cpus_per_trial, "gpu": gpus}
    for name, amount in needed.items():
        if amount > total.get(name.upper(), 0):
            ray.shutdown()
            raise StudyError(
                f"--{name}s-per-trial {amount:g}, but this {'cluster' if options.address else 'machine'} has "
                f"{total.get(name.upper(), 0):g} {name.upper()}(s): no trial could ever start"
            )
    url = context.dashboard_url
    told = f"http://{url} (its token: ray get-auth-token)" if url else "not running"
    console.print(f"dashboard: {told}", highlight=False)
    return needed


def open_study(options: argparse.Namespace, overrides: list[str], words: list[str]) -> tuple[Path, dict[str, Any]]:
    """The study's folder and manifest: new, or the one to be resumed. Everything typed is checked first."""
    storage = writable(Path(options.storage))
    if options.resume:
        folder = find_study(storage, options)
        if folder is not None:
            manifest = read_manifest(folder)
            changed = [f"--{k.replace('_', '-')}" for k in DEFAULTS if getattr(options, k) not in (None, manifest[k])]
            changed += ["--limits"] if options.limits else []
            if overrides or changed:
                raise ConfigError(
                    f"--resume continues {folder.name} as it was started; drop {' '.join([*changed, *overrides])}"
                )
            return folder, manifest
    if not options.space:
        raise SpaceError("--space is missing: name a space (kd, rep, prune, kd_prune) or the path of a YAML file")
    space = load_space(options.space)
    config = compose([*space.base, *overrides, *limit_overrides(options.limits)])
    chosen = {k: v if getattr(options, k) is None else getattr(options, k) for k, v in DEFAULTS.items()}
    config = replace(config, seed=chosen["seed"])
    if "train.threads" not in " ".join(overrides):
        config = replace(config, train=replace(config.train, threads=max(1, math.floor(options.cpus_per_trial))))
    check_space(space, config)
    if options.gpus_per_trial and not options.address and not torch.cuda.is_available():
        raise StudyError(
            f"--gpus-per-trial {options.gpus_per_trial:g}, but PyTorch sees no GPU on this machine: leave the flag out "
            "to train on the CPU, or name a cluster that has one with --address"
        )
    name = options.name or f"{space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = storage / name
    if folder.exists():
        raise StudyError(f"{folder} exists already: continue a study with --resume, or choose another --name")
    manifest = {
        "name": name,
        "space": space.as_dict(),
        "config": config.flat(),
        "limits": asdict(config.limits),
        "objectives": OBJECTIVES,
        **chosen,
        "status": "new",
        "created": now(),
        "finished": None,
        "command": shlex.join(["python", "tune/run.py", *words]),
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "ray", "optuna", "torch-pruning")},
        "frontend": asdict(config.frontend),
        "deployed_form": (
            "RepConv branches fused, BN kept, 1 s, batch 1; parameters rounded to "
            + ("fp32" if config.limits.precision == "fp32" else "fp16")
        ),
    }
    return folder, manifest


def check_space(space: Space, config: TrialConfig) -> None:
    """Both ends of every range must make a configuration that can be built and measured."""
    known, base = key_types(), config.flat()
    for key in space.parameters:
        if key not in known:
            near = difflib.get_close_matches(key, known, 2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise SpaceError(f"space {space.name}: unknown configuration key {key!r}{hint}")
    for corner in space.corners():
        try:
            c = TrialConfig.from_flat(base | corner)
            schedule_sizes(c.student, c.prune, c.frontend.n_mels, c.frontend.frames)
        except ValueError as error:
            raise SpaceError(f"space {space.name}: {corner} cannot be built: {error}") from error


def find_study(storage: Path, options: argparse.Namespace) -> Path | None:
    """The study to resume: the named one, else the newest unfinished one (of the space, where one is named)."""
    if options.name:
        folder = storage / options.name
        if not (folder / "study.json").exists():
            if options.space:
                return None  # `--resume` with a new name starts it
            raise StudyError(f"no study {options.name} in {storage} to resume")
        wanted = load_space(options.space) if options.space else None
        if wanted and read_manifest(folder)["space"] != wanted.as_dict():
            raise SpaceError(f"study {options.name} searches another space than {options.space}: choose another --name")
        return folder
    found = []
    for path in storage.glob("*/study.json"):
        manifest = read_manifest(path.parent)
        same = not options.space or manifest["space"] == load_space(options.space).as_dict()
        if same and manifest["status"] != "complete":
            found.append((manifest["created"], path.parent))
    if not found and not options.space:
        raise StudyError(f"no unfinished study in {storage} to resume")
    return max(found)[1] if found else None


def limit_overrides(text: str | None) -> list[str]:
    """`macs=30e6,bytes=128000,precision=fp16` (any of them) as overrides of `limits`."""
    overrides = []
    for item in (text or "").split(","):
        name, equals, value = item.strip().partition("=")
        if not item.strip():
            continue
        if name not in ("macs", "bytes", "precision") or not equals:
            raise ConfigError(
                f"--limits {text}: expected macs=NUMBER,bytes=NUMBER,precision=fp32|fp16|int8, any of them"
            )
        overrides.append(f"limits.{name}={value}")
    return overrides


def writable(storage: Path) -> Path:
    """The storage folder, made where it is missing; StudyError when nothing can be written there."""
    if "://" in str(storage) or str(storage).startswith("s3:"):
        raise StudyError(f"--storage {storage}: only folders for now (local or shared), no object stores")
    storage = storage.expanduser().resolve()
    probe = storage / f".probe-{os.getpid()}"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise StudyError(f"--storage {storage} cannot be written: {error}") from error
    return storage


def tell_data(config: TrialConfig, data: TrialData, console: Console) -> None:
    console.print(
        f"data: split{config.data.subset}, {len(data.train.rows)} training and {len(data.validation.rows)} validation "
        "clips (held out by recording location); the test split stays closed",
        highlight=False,
        soft_wrap=True,
    )
    for note in data.notes:
        console.print(f"  note: {note}", highlight=False, soft_wrap=True)


def read_points(folder: Path) -> int:
    """How many points the study has measured."""
    path = folder / "points.csv"
    return max(0, len(path.read_text().splitlines()) - 1) if path.is_file() else 0


def report(folder: Path, console: Console) -> int:
    """Table in the terminal; report.html, front.png, front.csv in the study's folder."""
    console.print(front_table(load_study(folder)))
    for path in write_report(folder).values():
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    console.print(f"test accuracy of these points: python tune/evaluate.py {folder}", highlight=False, soft_wrap=True)
    return 0


def positive(kind: type) -> Any:
    """An argparse type: a number above 0."""

    def parse(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


def parser() -> argparse.ArgumentParser:
    kinds = key_types()
    listed = "\n".join(f"  --{name} <{type_name(kinds[key])}>  {key}" for name, key in flags().items())
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"configuration flags (also key=value, and groups: student=..., profile=quick|full):\n{listed}",
        allow_abbrev=False,
    )
    p.add_argument("--space", help="kd, rep, prune, kd_prune, or the path of a YAML file")
    p.add_argument("--name", help="of the study; default: space and time")
    p.add_argument("--resume", nargs="?", const="auto", choices=["auto"], help="continue a study; start it if new")
    p.add_argument("--num-samples", type=positive(int), help=f"trials (default {DEFAULTS['num_samples']})")
    p.add_argument("--max-concurrent", type=positive(int), help="trials at a time (default: what the resources allow)")
    p.add_argument("--cpus-per-trial", type=positive(float), default=1.0, help="default 1")
    p.add_argument("--gpus-per-trial", type=float, help="default 0.25 where there is a GPU, else 0")
    p.add_argument("--limits", help="macs=30e6,bytes=128000,precision=fp16 (the default); any of them")
    p.add_argument("--scheduler", choices=list(SCHEDULERS), help=f"early stopping (default {DEFAULTS['scheduler']})")
    p.add_argument("--seed", type=int, help=f"of everything (default {DEFAULTS['seed']})")
    p.add_argument("--storage", default="runs", help="folder of the studies (default runs)")
    p.add_argument("--address", help="of a running Ray cluster (auto, host:port, ray://...); default: this machine")
    return p


if __name__ == "__main__":
    sys.exit(main())
