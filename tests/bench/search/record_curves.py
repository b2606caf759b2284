"""Record the learning curves of a complete grid of trials, which tests/bench/search/search_quality.py replays.

    python -m data.synthetic DATA --train 1200 --test 10
    TAU24_PATH=DATA python tests/bench/search/record_curves.py --storage FOLDER      (about 15 minutes on one idle core)

The grid has 192 trials: 32 dense networks (width, expansion, learning rate, kd_alpha) with six pruning plans each. A
dense network is trained once, and the first prune step is trained once for all plans that start with it. Training,
distillation, pruning, retraining and measurement are those of a real study (`trainables/trial/`). The clips are
synthetic; the features and the number of epochs are small.

The rows of a dense network are written to FOLDER/curves.csv after its last plan, so a killed recording can be
continued with the same command. At the end, data/curves.csv.gz in this folder is written. The column `prune` contains
the prune ratios up to the row, e.g. "0.25/0.5". The curve of the trial with these ratios consists of the rows with "",
"0.25" and "0.25/0.5".
"""

import argparse
import gzip
import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from problems import TABLE
from rich.console import Console

from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.single.command import prepare
from trainables.trial.data import TrialData
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial

GRID: dict[str, tuple[Any, ...]] = {
    "student.base_channels": (8, 16, 24, 32),
    "student.expansion_rate": (1.5, 3.0),
    "train.lr": (0.002, 0.008),
    "distill.kd_alpha": (0.3, 1.0),
}
RATIOS = (0.25, 0.5)  # choices for each of one or two prune steps
SMALL = (
    *("student=cp_mobile", "teacher=cnn_small", "teacher.train.min_steps=400", "train.device=cpu"),
    *("frontend.sample_rate=8000", "frontend.n_fft=512", "frontend.win_length=512", "frontend.hop_length=400"),
    *("frontend.n_mels=48", "augment.freq_mask=6", "train.epochs=8", "train.min_steps=0", "train.batch_size=32"),
    *("prune.epochs=2", "prune.lr=2.5e-3", "data.validation_share=0.3"),
)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--storage", type=Path, required=True, help="folder for caches and curves.csv")
    folder = p.parse_args(argv).storage.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "curves.csv"
    grid = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    prepared: dict[bool, tuple[TrialConfig, TrialData]] = {}  # whether a teacher is used -> configuration and data
    for number, values in enumerate(grid):
        if part.is_file() and values in pd.read_csv(part, usecols=list(GRID)).to_dict("records"):
            continue
        config = compose([*SMALL, f"data.cache_dir='{folder / 'cache'}'", *(f"{k}={v}" for k, v in values.items())])
        taught = config.distill.taught
        if taught not in prepared:
            prepared[taught] = prepare(config, Console())
        teachers, data = prepared[taught][0].distill.teacher_ckpts, prepared[taught][1]
        config = replace(config, distill=replace(config.distill, teacher_ckpts=teachers))
        started = time.process_time()
        rows = record(config, data, folder / "trial")
        pd.DataFrame([values | row for row in rows]).to_csv(part, mode="a", header=not part.is_file(), index=False)
        print(
            f"dense network {number + 1} of {len(grid)}: {values}, {time.process_time() - started:.0f} s CPU time",
            flush=True,
        )
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_bytes(gzip.compress(part.read_bytes(), mtime=0))
    print(f"wrote {TABLE}, {TABLE.stat().st_size} bytes")
    return 0


def record(config: TrialConfig, data: TrialData, folder: Path) -> list[dict[str, Any]]:
    """Train a dense network and all networks pruned from it; return their rows of curves.csv, one row per epoch."""
    dense = Trial(config, data, folder)
    rows = [_row("", r) for r in run_trial(dense)]
    for first in RATIOS:
        once = _forked(dense, data, [first])
        rows += [_row(f"{first}", r) for r in run_trial(once)]
        for second in RATIOS:
            rows += [_row(f"{first}/{second}", r) for r in run_trial(_forked(once, data, [first, second]))]
    return rows


def _forked(ended: Trial, data: TrialData, ratios: list[float]) -> Trial:
    """Return a trial that continues after the last stage of the trial `ended`, with the prune ratios `ratios`."""
    config = TrialConfig.from_flat(ended.config.flat() | {"prune.ratios": ratios})
    trial = Trial(config, data, ended.folder)
    trial.points = list(ended.points)
    trial.stage, trial.epochs = ended.stage, ended.epochs
    trial.place(ended.model.rebuilt())
    return trial


def _row(prune: str, r: Any) -> dict[str, Any]:
    accuracy = round(r.val_macro_avg_acc, 4)
    return {"prune": prune, "stage": r.stage, "epoch": r.epoch, "acc": accuracy, "macs": r.macs, "params": r.params}


if __name__ == "__main__":
    sys.exit(main())
