"""Prepare what all trials of a study share: waveforms, accuracy of the baseline, teachers and their logits.

    config, prepared = prepare(config, space, console)                                 # everything in this process
    config, prepared = prepare(config, space, console, ray_runner(cpus=1, gpus=1))     # expensive parts as Ray tasks

`config` is the base configuration of the study, and `prepared` goes into its manifest, study.json. The expensive parts
of the preparation are the functions `measure_baseline`, `fine_tune_teacher` and `compute_logits`. Their results are
cached in the folder `data.cache_dir`, and a part runs only if its result is not in the cache. A `Runner` runs
a part: `run_here` runs it in this process, and the function that `ray_runner` returns runs it as a Ray task.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from rich.console import Console
from rich.markup import escape

from analysis.manifest import StudyManifest
from data.tau import SCENES, count_clips
from search_spaces import Space
from trainables.config.compose import compose
from trainables.config.distill import described
from trainables.config.schema import TrialConfig
from trainables.engine.baseline import NAME as BASELINE
from trainables.engine.baseline import baseline_file, cached_baseline, read_baseline
from trainables.inputs.clips import SplitClips, load_clips, with_enough_epochs
from trainables.inputs.fingerprint import DataFingerprint, check_unchanged, fingerprint
from trainables.teachers.cached_logits import ensemble_weights, logits_path
from trainables.teachers.fine_tuning import (
    fine_tuned_teacher,
    quiet_transformers,
    teacher_folder,
    teacher_summary,
    validation_hash,
)
from trainables.trial.data import load_trial_data

Flat = dict[str, Any]  # a flat TrialConfig, and "fingerprint" (`DataFingerprint.as_dict`) if the data were read
Part = Callable[[Flat], Any]  # measure_baseline, fine_tune_teacher or compute_logits; returns JSON values
Runner = Callable[[Part, Flat], Any]  # runs a `Part` with its argument, here or as a Ray task; returns its result
# a space that searches one of these keys may need a teacher even if the base configuration does not
TEACHER_KEYS = ("distill.kd_alpha", "distill.feature_weight")


def prepare(
    config: TrialConfig,
    space: Space,
    console: Console,
    run: Runner | None = None,
    known: DataFingerprint | None = None,
) -> tuple[TrialConfig, dict[str, Any]]:
    """Prepare what all trials of a study share, with messages on `console`. Return the resolved configuration, and
    JSON values for the study's manifest under the keys config, dataset, baseline and teachers.

    In the returned configuration, the epochs are sufficient for `train.min_steps` optimiser steps on this data set, and
    `distill.teacher_ckpts` has the paths of the teachers. Teachers are prepared if `config` uses them, or if `space`
    searches a key that may need them. `run` runs the expensive parts, which are `measure_baseline`, `fine_tune_teacher`
    and `compute_logits`, in this process or as Ray tasks (None: in this process). `known` is the fingerprint of the
    data with which the study was started (None: do not compare). If the data have changed since then, DatasetError is
    raised before anything is computed.
    """
    run = run or run_here
    data = load_clips(config, config.frontend.sample_rate, progress=True)
    print_data(config, data, console)
    found = fingerprint(config, data)
    if known:
        check_unchanged(known, found)
    requested, config = config, with_enough_epochs(config, len(data.train.rows))
    if config.train.epochs > requested.train.epochs:
        console.print(
            f"epochs: {config.train.epochs} dense and {config.prune.epochs} after each prune step, because "
            f"train.min_steps={requested.train.min_steps} requires so many optimiser steps, and there are only "
            f"{len(data.train.rows)} training clips (set train.epochs to choose another number)",
            highlight=False,
            soft_wrap=True,
        )
    accuracy = _baseline(config, data, found, run, console) if config.data.validation_share else None
    teachers: list[dict[str, Any]] = []
    if config.distill.taught or set(TEACHER_KEYS) & set(space.parameters):
        quiet_transformers()
        if config.distill.taught and "distill.kd_alpha" not in space.parameters:
            console.print(described(config.distill), highlight=False, soft_wrap=True)
        config = _with_teachers(config, data, found, run, console)
        _logits(config, data, found, run, console)
        teachers = [teacher_summary(Path(f)) for f in config.distill.teacher_ckpts]
        for teacher in teachers:
            measured = teacher["val_macro_avg_acc"]
            line = f"teacher: {escape(teacher['name'])}: "
            line += "trained on all clips, so not validated" if measured is None else f"{measured:.1%} validation"
            if config.data.validation_share and teacher["validation"] != validation_hash(data.validation):
                line += "; it was fine-tuned on another division of the clips into training and validation, so "
                line += "validation accuracies may be too high"
            console.print(line, highlight=False, soft_wrap=True)
    dataset = {
        "dataset_dir": config.data.dataset_dir,
        "subset": config.data.subset,
        "n_train": len(data.train.rows),
        "n_validation": len(data.validation.rows),
        "n_classes": len(SCENES),
        "n_clips": count_clips(Path(config.data.dataset_dir or "")),
        "holdout": (
            f"{config.data.validation_share:.0%} of the training split, whole recording locations"
            if config.data.validation_share
            else "none: all clips of the split are training clips"
        ),
        "notes": list(data.notes),
        "fingerprint": found.as_dict(),
    }
    baseline = None
    if accuracy is not None:
        baseline = {"name": BASELINE, "val_macro_avg_acc": accuracy, "test_macro_avg_acc": None}
    return config, {"config": config.flat(), "dataset": dataset, "baseline": baseline, "teachers": teachers}


def print_data(config: TrialConfig, data: SplitClips, console: Console) -> None:
    """Print the numbers of clips, and the notes that the loader of the clips made, for example on skipped files."""
    n_train, n_validation = len(data.train.rows), len(data.validation.rows)
    console.print(
        f"data: split{config.data.subset}, "
        + (
            f"{n_train} training and {n_validation} validation clips (held out by recording location); the networks of "
            f"the search do not learn from these {n_validation}, those of a refit (tune/refit.py) do"
            if n_validation
            else f"all {n_train} clips are training clips, so nothing is validated"
        )
        + "; the test split stays closed",
        highlight=False,
        soft_wrap=True,
    )
    for note in data.notes:
        console.print(f"  note: {escape(note)}", highlight=False, soft_wrap=True)


def _baseline(config: TrialConfig, data: SplitClips, found: DataFingerprint, run: Runner, console: Console) -> float:
    path = baseline_file(data.train, data.validation, config.frontend, Path(config.data.cache_dir))
    accuracy, took = read_baseline(path), "from the cache"
    if accuracy is None:
        console.print(f"baseline: fitting a {BASELINE} ({len(data.train.rows)} clips)", highlight=False, soft_wrap=True)
        accuracy, took = _timed(run, measure_baseline, config, found)
    console.print(f"baseline: {BASELINE}: {accuracy:.1%} validation ({took})", highlight=False, soft_wrap=True)
    return accuracy


def _with_teachers(
    config: TrialConfig, data: SplitClips, found: DataFingerprint, run: Runner, console: Console
) -> TrialConfig:
    """Return `config` with absolute paths in `distill.teacher_ckpts`; if it names no teacher, fine-tune one first.

    `found` is the fingerprint of `data`. `run` runs the function `fine_tune_teacher`, in this process or as a Ray task.
    """
    folders = [str(Path(f).resolve()) for f in config.distill.teacher_ckpts]
    if not folders:
        folder, took = str(teacher_folder(config, data)), "from the cache"
        if not Path(folder).is_dir():
            teacher = config.teacher
            console.print(
                f"teacher: fine-tuning {teacher.model.family} ({teacher.train.epochs} epochs on "
                f"{len(data.train.rows)} clips)",
                highlight=False,
            )
            folder, took = _timed(run, fine_tune_teacher, config, found)
        console.print(f"teacher: fine-tuned ({took})", highlight=False, soft_wrap=True)
        folders = [folder]
    return replace(config, distill=replace(config.distill, teacher_ckpts=tuple(folders)))


def _logits(config: TrialConfig, data: SplitClips, found: DataFingerprint, run: Runner, console: Console) -> None:
    d = config.distill
    folders = [Path(f) for f in d.teacher_ckpts if not Path(f).is_file()]
    if d.mode == "online" and d.ensemble != "greedy":
        folders = []  # the teachers compute logits for each batch during training; nothing is cached
    missing = [f for f in folders if not logits_path(config, f, data.train.cache.content).is_file()]
    if missing:
        n_clips = len(data.train.rows) + len(data.validation.rows)
        console.print(
            f"logits: computing the logits of {len(missing)} teacher(s) for {n_clips} clips",
            highlight=False,
            soft_wrap=True,
        )
        _, took = _timed(run, compute_logits, config, found)
        console.print(f"logits: computed ({took})", highlight=False, soft_wrap=True)
    else:
        compute_logits(_flat(config, found))  # reads the cached logits and raises an error if they are not valid
        if folders:
            console.print("logits: read from the cache", highlight=False, soft_wrap=True)


def _timed(run: Runner, part: Part, config: TrialConfig, found: DataFingerprint) -> tuple[Any, str]:
    """Run a function such as `fine_tune_teacher`; return its result and the duration as text ("12 s").

    `part` is the function, and `run` runs it, in this process or as a Ray task. It gets the flat `config` and `found`,
    the fingerprint of the data.
    """
    started = time.monotonic()
    result = run(part, _flat(config, found))
    return result, f"{time.monotonic() - started:.0f} s"


def _flat(config: TrialConfig, found: DataFingerprint) -> Flat:
    return config.flat() | {"fingerprint": found.as_dict()}


def measure_baseline(flat: Flat) -> float:
    """Return the validation accuracy (0 to 1) of the baseline, a logistic regression; later calls read a cache.

    `flat` has the values of all configuration keys and, under the key "fingerprint", the fingerprint of the data.
    """
    config, known = _parsed(flat)
    data = load_clips(config, config.frontend.sample_rate, content=known.sound if known else None)
    return cached_baseline(data.train, data.validation, config.frontend, Path(config.data.cache_dir))


def fine_tune_teacher(flat: Flat) -> str:
    """Fine-tune the teacher that the configuration keys `teacher.*` describe; return its folder in the cache.

    `flat` has the values of all configuration keys and, under the key "fingerprint", the fingerprint of the data.
    """
    config, known = _parsed(flat)
    quiet_transformers()
    return str(fine_tuned_teacher(config, _on_terminal(), known.sound if known else None))


def compute_logits(flat: Flat) -> None:
    """Compute the logits of the teachers in `distill.teacher_ckpts` for all clips, unless they are cached.

    `flat` has the values of all configuration keys and, under the key "fingerprint", the fingerprint of the data.
    """
    config, known = _parsed(flat)
    quiet_transformers()
    distilling = replace(config, distill=replace(config.distill, kd_alpha=0.5))  # any weight below 1 loads logits
    load_trial_data(distilling, _on_terminal(), known)


def _parsed(flat: Mapping[str, Any]) -> tuple[TrialConfig, DataFingerprint | None]:
    config = TrialConfig.from_flat({k: v for k, v in flat.items() if k != "fingerprint"})
    return config, DataFingerprint.from_dict(flat["fingerprint"]) if "fingerprint" in flat else None


def _on_terminal() -> bool:
    """Return whether standard error is a terminal, so that a progress bar can be shown; in a Ray task it is not."""
    return sys.stderr.isatty()


def run_here(part: Part, flat: Flat) -> Any:
    """Run `part`, a function such as `fine_tune_teacher`, with the flat configuration `flat`; return its result.

    It runs in this process. This function is the default `Runner` of `prepare`.
    """
    return part(flat)


def ray_runner(cpus: float, gpus: float) -> Runner:
    """Return a function that runs a part of the preparation, such as `fine_tune_teacher`, as a Ray task.

    The task reserves `cpus` CPUs and `gpus` GPUs. Connect to Ray before you call the returned function, a `Runner`.
    train.device=auto is resolved in the task, so a driver without a GPU fine-tunes on the GPU of a worker. An exception
    in the task is raised as it is, without Ray's RayTaskError around it. Ctrl-C stops the task.
    """

    def run(part: Part, flat: Flat) -> Any:
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(part).remote(flat)
        try:
            return ray.get(task)
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, Exception) else error) from None
        except KeyboardInterrupt:
            ray.cancel(task, force=True)  # results are written to temporary files and renamed, so none is left partial
            raise

    return run


def on_all_clips(source: StudyManifest) -> TrialConfig:
    """Return the base configuration of the study `source`, with all clips of its split as training clips.

    Teachers that the study has fine-tuned itself are left out, so that they are fine-tuned again, on all clips. The
    ensemble weights that the method greedy has chosen on the validation clips are kept.
    """
    config = TrialConfig.from_flat(source.resolved.config)
    distill = config.distill
    if not compose([*source.resolved.space["base"], *source.requested.overrides]).distill.teacher_ckpts:
        distill = replace(distill, teacher_ckpts=())
    if distill.ensemble == "greedy":
        weights: tuple[float, ...] = ()
        if distill.teacher_ckpts:
            weights = ensemble_weights(config, load_clips(config, config.frontend.sample_rate, progress=True))
        distill = replace(distill, ensemble="probabilities", teacher_weights=weights)
    return replace(config, data=replace(config.data, validation_share=0.0), distill=distill)
