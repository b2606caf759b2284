"""Measure what distillation, RepConv branches and progressive pruning gain against their controls, over seeds.

    TAU24_PATH=... python tests/bench/training_study.py --out analysis/studies/training --seeds 0,1,2,3,4
    python -m analysis.paired analysis/studies/training/raw.csv --pairs plain_kd:plain_ce,rep_kd:rep_ce

A seed sets the division into training and validation clips, the teacher, all initial weights and the order of the
clips. All arms of a seed use the same division and the same teacher. The arms:

    plain_ce      dense CP-Mobile, trained with labels alone (cross-entropy)
    plain_kd      dense CP-Mobile, trained with knowledge distillation
    rep_ce        dense Rep-Mobile (with RepConv branches), trained with labels alone
    rep_kd        dense Rep-Mobile, trained with knowledge distillation
    progressive   rep_kd, pruned in `--steps` prune steps to `--share` of its MACs, with retraining after each step
    one_shot      rep_kd, pruned once to the widths of progressive, and retrained for the same total number of epochs
    scratch       as one_shot, but with new weights and distillation, for the total epochs of rep_kd and retraining

The results of each seed are in raw-SEED.csv; raw.csv is their concatenation, with one header (see the README in
analysis/studies/training). A row is written when its arm is done, so a killed study can be continued. The test
split is measured once per arm, after its training, and is not used for any choice.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from ascmodels.checkpoint import load_student
from ascmodels.students import Widths
from trainables.config.schema import TrialConfig
from trainables.engine.evaluation import Deployed, open_test_clips
from trainables.outputs.records import write_rows
from trainables.single.command import configure, drive, guarded, prepare
from trainables.single.run_folder import LAST
from trainables.trial.data import TrialData
from trainables.trial.start import Start
from trainables.trial.trial import Trial

DENSE = {
    "plain_ce": ("cp_mobile", 1.0),
    "plain_kd": ("cp_mobile", None),
    "rep_ce": ("rep_mobile", 1.0),
    "rep_kd": ("rep_mobile", None),
}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for the results, one file raw-SEED.csv per seed")
    p.add_argument("--storage", type=Path, default=Path("runs"), help="folder for caches and networks (default: runs)")
    p.add_argument("--seeds", default="0,1,2,3,4", help="random seeds, separated by commas (default: %(default)s)")
    p.add_argument("--steps", type=int, default=3, help="number of prune steps of the arm progressive (default: 3)")
    p.add_argument("--share", type=float, default=0.25, help="MACs after pruning / dense MACs (default: 0.25)")
    options, words = p.parse_known_args(argv)

    def work(console: Console) -> int:
        options.out.mkdir(parents=True, exist_ok=True)
        for seed in map(int, options.seeds.split(",")):
            Study(options, words, seed, console).run()
        return 0

    return guarded(work)


class Study:
    """The training of all arms for one seed."""

    def __init__(self, options: argparse.Namespace, words: list[str], seed: int, console: Console):
        self.options, self.words, self.seed, self.console = options, words, seed, console
        self.folder = options.storage.resolve() / f"training-study-{seed}"
        self.raw = options.out / f"raw-{seed}.csv"  # one file per seed, so that seeds can run in parallel

    def run(self) -> None:
        for arm, (student, alpha) in DENSE.items():
            config, data = self.load(student, alpha)
            self.arm(arm, Trial(config, data, self.folder / arm))
        config, data = self.load("rep_mobile", None)
        dense = Trial(config, data, self.folder / "unused").sizes[0][0]
        base, _ = load_student(self.folder / "rep_kd" / LAST)
        steps = self.options.steps
        epochs = config.prune.epochs
        small = replace(config, prune=replace(config.prune, n_steps=steps, target_macs=dense * self.options.share))
        self.arm("progressive", Trial(small, data, self.folder / "progressive", Start(base)))
        _, extra = load_student(self.folder / "progressive" / LAST)
        widths = Widths(**extra["point"]["widths"])
        once = replace(small, prune=replace(small.prune, epochs=steps * epochs))
        self.arm("one_shot", Trial(once, data, self.folder / "one_shot", Start(base, widths)))
        longer = replace(config, train=replace(config.train, epochs=config.train.epochs + steps * epochs))
        self.arm("scratch", Trial(longer, data, self.folder / "scratch", Start(widths=widths)))

    def load(self, student: str, alpha: float | None) -> tuple[TrialConfig, TrialData]:
        weight = [] if alpha is None else [f"distill.kd_alpha={alpha}"]
        words = [f"student={student}", f"seed={self.seed}", *self.words, *weight]
        return prepare(configure(words, self.options.storage), self.console)

    def arm(self, name: str, trial: Trial) -> None:
        rows: list[dict[str, Any]] = pd.read_csv(self.raw).to_dict("records") if self.raw.is_file() else []
        if any(row["arm"] == name for row in rows):
            return
        started = time.monotonic()
        drive(trial, f"seed {self.seed} {name}")
        point, config = trial.points[-1], trial.config
        test = open_test_clips(config, config.frontend.sample_rate)
        tested = Deployed(trial.folder / point.checkpoint, config.train.device).measure(test)
        row = {
            "arm": name,
            "seed": self.seed,
            "val_macro_avg_acc": point.val_macro_avg_acc,
            "test_macro_avg_acc": tested.macro_avg_acc,
            "test_unseen_acc": tested.group_acc.get("unseen"),
            "val_loss": point.val_loss,
            "test_loss": tested.loss,
            "macs": point.macs,
            "params": point.params,
            "epochs": point.epochs,
            "seconds": round(time.monotonic() - started, 1),
        }
        write_rows(self.raw, [*rows, row])


if __name__ == "__main__":
    sys.exit(main())
