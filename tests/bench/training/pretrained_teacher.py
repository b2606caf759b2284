"""Measure what ImageNet weights gain for a teacher (EfficientNet-Lite0), and for a student distilled from it.

    python tests/bench/training/convert_efficientnet_lite.py pkgs efficientnet-lite0
    python -m tests.bench.training.pretrained_teacher --data real-wavs --weights efficientnet-lite0 --out study
    python -m analysis.paired study/results.csv --pairs lite0_pretrained:lite0_scratch

An arm is one variant of teacher or student (TEACHERS, STUDENTS). A seed sets the division of the training split (by
recording location), initial weights, order of the clips and augmentation. All arms of a seed have the same division, so
arms are compared seed by seed. The best epoch of a teacher is chosen on the held-out part of the training split; all
validation results are measured on it. The test split is opened after the last training, once per network. If the
command was interrupted, repeat it: it trains only the networks that are missing in `results.csv`.
"""

import argparse
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.engine.device import set_up_process
from trainables.engine.evaluation import Deployed, open_test_clips
from trainables.inputs.clips import load_clips, with_enough_epochs
from trainables.outputs.records import write_rows
from trainables.single.fine_tuning import tested
from trainables.teachers.fine_tuning import fine_tuned_teacher, teacher_summary
from trainables.trial.data import load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial

# the other options are those of profile=quick; min_steps=0: no additional epochs for small data sets
STUDENT = ("student=rep_mobile", "student.base_channels=16", "train.epochs=8", "train.min_steps=0")
LITE0 = ("teacher.model.family=cnn", "teacher.model.name=tf_efficientnet_lite0")
SHORT = (  # 340 steps; the default of profile=quick has 2,000 steps of 8 clips at lr 1e-3, without masks
    *("teacher.train.min_steps=0", "teacher.train.epochs=10", "teacher.train.batch_size=32", "teacher.train.lr=1e-2"),
    *("teacher.augment.freq_mask=8", "teacher.augment.time_mask=4", "teacher.augment.mixstyle_p=0.2"),
)
LOW = ("teacher.train.lr=3e-3",)
PRETRAINED = ("teacher.model.pretrained='{weights}'",)
# arm -> overrides of the defaults
TEACHERS = {
    "ast_scratch": (),
    "lite0_scratch": (*LITE0, *SHORT),
    "lite0_pretrained": (*LITE0, *SHORT, *PRETRAINED),
    "lite0_scratch_low_lr": (*LITE0, *SHORT, *LOW),
    "lite0_pretrained_low_lr": (*LITE0, *SHORT, *LOW, *PRETRAINED),
    "lite0_scratch_2000": LITE0,
    "lite0_pretrained_2000": (*LITE0, *PRETRAINED),
}
STUDENTS = {"no_teacher": ""} | {f"of_{arm}": arm for arm in TEACHERS}


def main(argv: list[str] | None = None) -> int:
    """Train all arms, then measure them on the test split; <out>/results.csv has one row per network.

    Return the exit status 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set in TAU's layout")
    parser.add_argument("--weights", type=Path, required=True, help="folder written by convert_efficientnet_lite.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.csv, networks and caches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds (default: 0 1 2)")
    choices = [*TEACHERS, *STUDENTS]
    parser.add_argument("--arms", nargs="+", choices=choices, default=choices, help="arms to train (default: all)")
    args = parser.parse_args(argv)
    set_up_process(1)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.csv"
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    configs = {seed: base_config(args.data, out, seed) for seed in args.seeds}
    done = {(row["arm"], row["seed"]) for row in rows}
    for arm, (seed, config) in product(args.arms, configs.items()):
        if (arm, seed) not in done:
            rows.append(trained(config, arm, args.weights.resolve(), out))
            write_rows(path, rows)
            print(f"{arm}, seed {seed}: validation accuracy {rows[-1]['val_macro_avg_acc']:.3f}", flush=True)
    for row in rows:
        if row["seed"] in configs and np.isnan(row["test_macro_avg_acc"]):
            row["test_macro_avg_acc"] = test_accuracy(configs[row["seed"]], out / row["folder"])
            write_rows(path, rows)
    return 0


def base_config(data: Path, out: Path, seed: int) -> TrialConfig:
    where = (f"data.dataset_dir='{data.resolve()}'", f"data.cache_dir='{out / 'cache'}'", "data.subset=100")
    return compose([*where, f"seed={seed}", *STUDENT])


def trained(config: TrialConfig, arm: str, weights: Path, out: Path) -> dict[str, Any]:
    """Train the network of `arm`; return its row of results.csv, with NaN as test accuracy.

    `weights` is the folder with the ImageNet weights, `out` the folder for the networks.
    """
    started = time.process_time()
    clips = load_clips(config, config.frontend.sample_rate)
    teacher = None
    if arm != "no_teacher":
        overrides = [o.format(weights=weights) for o in TEACHERS[STUDENTS.get(arm, arm)]]
        described = replace(config, teacher=compose(overrides).teacher)
        teacher = fine_tuned_teacher(with_enough_epochs(described, len(clips.train.rows)))
    if arm in TEACHERS:
        assert teacher is not None
        folder, accuracy = teacher, float(str(teacher_summary(teacher)["val_macro_avg_acc"]))
    else:
        folder = out / f"student-{arm}-{config.seed}"
        distill = replace(
            config.distill,
            teacher_ckpts=(str(teacher),) if teacher else (),
            kd_alpha=config.distill.kd_alpha if teacher else 1.0,
        )
        student = with_enough_epochs(replace(config, distill=distill), len(clips.train.rows))
        *_, last = run_trial(Trial(student, load_trial_data(student), folder))
        accuracy = last.val_macro_avg_acc
    return {
        "arm": arm,
        "seed": config.seed,
        "n_train": len(clips.train.rows),
        "n_validation": len(clips.validation.rows),
        "val_macro_avg_acc": accuracy,
        "test_macro_avg_acc": np.nan,
        "cpu_seconds": round(time.process_time() - started),
        "folder": str(folder.relative_to(out)),
    }


def test_accuracy(config: TrialConfig, folder: Path) -> float:
    """Return the macro average accuracy of the network in `folder` on the test split."""
    if (folder / "step0").is_dir():
        clips = open_test_clips(config, config.frontend.sample_rate)
        return Deployed(folder / "step0", "cpu").measure(clips).macro_avg_acc
    return tested(config, folder)[0].macro_avg_acc


if __name__ == "__main__":
    sys.exit(main())
