"""Measure what distillation, RepConv branches and progressive pruning gain against their controls, over seeds.

    TAU24_PATH=... python -m tests.bench.training.training_study --out study --seeds 0 1 2 3 4 student.base_channels=24
    python -m analysis.paired study/raw.csv --pairs plain_kd:plain_ce,rep_kd:rep_ce,progressive_25:one_shot_25

A seed sets the division into training and validation clips, the teacher, all initial weights and the order of the
clips. All arms of a seed use the same division and the same teacher (`teacher=...`). The arms:

    plain_ce         dense CP-Mobile, trained with labels alone (cross-entropy)
    plain_kd         dense CP-Mobile, trained with distillation: kd_alpha and kd_temp of the configuration
    plain_field      the same with the field's kd_alpha=0.17 and kd_temp=2
    plain_two        plain_kd with an ensemble of two teachers, the second with the overrides of --second-teacher
    rep_*            the same four with Rep-Mobile (with RepConv branches)
    progressive_25   rep_kd, pruned in `--steps` prune steps to 25 % of its MACs (`--shares`), retrained after each step
    one_shot_25      rep_kd, pruned once to the widths of progressive_25, retrained for the same total number of epochs
    scratch_25       as one_shot_25, but with new weights and distillation, for the epochs of rep_kd and retraining

The file raw.csv has one row for each arm and seed, networks-SEED/curves.csv the learning curves, and
teachers.csv the accuracy of the teachers. A row is written when its arm is done, so a killed study can be continued.
The test split is measured once per network, after its training, and is not used for any choice.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from ascmodels.checkpoint import load_student
from ascmodels.students import Widths
from ascmodels.teachers import read_extra
from tests.bench.training.rows import Row, add, trained_and_tested
from trainables.config.schema import TrialConfig
from trainables.single.command import configure, guarded, prepare
from trainables.single.fine_tuning import tested
from trainables.single.run_folder import LAST
from trainables.teachers.fine_tuning import teacher_summary
from trainables.trial.data import TrialData
from trainables.trial.start import Start
from trainables.trial.trial import Trial

LOSSES = {
    "ce": ("distill.kd_alpha=1",),
    "kd": (),
    "field": ("distill.kd_alpha=0.17", "distill.kd_temp=2"),
    "two": (),  # with two teachers
}
STUDENTS = {"plain": "cp_mobile", "rep": "rep_mobile"}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for the results")
    p.add_argument("--storage", type=Path, default=Path("runs"), help="folder for caches and networks (default: runs)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="random seeds (default: 0 1 2 3 4)")
    p.add_argument("--losses", nargs="+", choices=LOSSES, default=["ce", "kd"], help="losses (default: ce kd)")
    p.add_argument("--second-teacher", nargs="+", default=[], help="overrides of the second teacher (for loss two)")
    p.add_argument("--steps", type=int, default=3, help="number of prune steps of the arms progressive (default: 3)")
    p.add_argument(
        "--shares", type=int, nargs="*", default=[25], help="MACs after pruning in %% of the dense MACs (default: 25)"
    )
    options, words = p.parse_known_args(argv)

    def work(console: Console) -> int:
        options.out.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            Study(options, words, seed, console).run()
        return 0

    return guarded(work)


class Study:
    """The training of all arms for one seed."""

    def __init__(self, options: argparse.Namespace, words: list[str], seed: int, console: Console):
        self.options, self.words, self.seed, self.console = options, words, seed, console
        self.folder = options.out.resolve() / f"networks-{seed}"

    def run(self) -> None:
        for name, student in STUDENTS.items():
            for loss in self.options.losses:
                config, data = self.load(student, loss)
                self.arm(f"{name}_{loss}", Trial(config, data, self.folder / f"{name}_{loss}"))
        for share in self.options.shares:
            self.pruned(share)

    def pruned(self, share: int) -> None:
        config, data = self.load("rep_mobile", "kd")
        dense = Trial(config, data, self.folder / "unused").sizes[0][0]
        base, _ = load_student(self.folder / "rep_kd" / LAST)
        steps = self.options.steps
        epochs = config.prune.epochs
        small = replace(config, prune=replace(config.prune, n_steps=steps, target_macs=dense * share / 100))
        progressive = f"progressive_{share}"
        self.arm(progressive, Trial(small, data, self.folder / progressive, Start(base)))
        _, extra = load_student(self.folder / progressive / LAST)
        widths = Widths(**extra["point"]["widths"])
        once = replace(small, prune=replace(small.prune, epochs=steps * epochs))
        self.arm(f"one_shot_{share}", Trial(once, data, self.folder / f"one_shot_{share}", Start(base, widths)))
        longer = replace(config, train=replace(config.train, epochs=config.train.epochs + steps * epochs))
        self.arm(f"scratch_{share}", Trial(longer, data, self.folder / f"scratch_{share}", Start(widths=widths)))

    def load(self, student: str, loss: str) -> tuple[TrialConfig, TrialData]:
        """Return the configuration and the data of a training with `loss`; fine-tune its teachers if they are new."""
        words = [f"student={student}", f"seed={self.seed}", *self.words, *LOSSES[loss]]
        config, data = prepare(configure(words, self.options.storage), self.console)
        if loss == "two":
            other, _ = prepare(configure([*words, *self.options.second_teacher], self.options.storage), self.console)
            both = config.distill.teacher_ckpts + other.distill.teacher_ckpts
            config, data = prepare(replace(config, distill=replace(config.distill, teacher_ckpts=both)), self.console)
        for teacher in config.distill.teacher_ckpts if config.distill.taught else ():
            add(self.options.out / "teachers.csv", Path(teacher).name, self.seed, lambda t=teacher: measured(config, t))
        return config, data

    def arm(self, name: str, trial: Trial) -> None:
        add(
            self.options.out / "raw.csv", name, self.seed, lambda: trained_and_tested(trial, f"seed {self.seed} {name}")
        )
        curves = [pd.read_csv(f).assign(arm=f.parent.name, seed=self.seed) for f in self.folder.glob("*/results.csv")]
        kept = ["arm", "seed", "stage", "epochs", "train_loss", "val_macro_avg_acc"]
        pd.concat(curves)[kept].to_csv(self.folder / "curves.csv", index=False)


def measured(config: TrialConfig, teacher: str) -> Row:
    """Return the accuracy of a teacher on the held-out clips, and on the test split."""
    return {
        "model": read_extra(Path(teacher))["model"]["config"]["name"],
        "val_macro_avg_acc": teacher_summary(Path(teacher))["val_macro_avg_acc"],
        "test_macro_avg_acc": tested(config, Path(teacher))[0].macro_avg_acc,
    }


if __name__ == "__main__":
    sys.exit(main())
