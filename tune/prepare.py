"""What all trials of a study share, made before the first: cached waveforms, the baseline, the teacher's logits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from data.tau import SCENES
from search_spaces import Space
from trainables.baseline import NAME as BASELINE
from trainables.baseline import baseline_accuracy
from trainables.clips import TrialData, load_clips, with_enough_epochs
from trainables.config import TrialConfig
from trainables.teachers import fine_tuned_teacher, teacher_summary, validation_hash
from trainables.trial import load_trial_data


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


def tell_data(config: TrialConfig, data: TrialData, console: Console) -> None:
    console.print(
        f"data: split{config.data.subset}, {len(data.train.rows)} training and {len(data.validation.rows)} validation "
        "clips (held out by recording location); the test split stays closed",
        highlight=False,
        soft_wrap=True,
    )
    for note in data.notes:
        console.print(f"  note: {escape(note)}", highlight=False, soft_wrap=True)
