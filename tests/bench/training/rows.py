"""Rows of a table of trained networks: one for each arm (variant of a training) and seed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from trainables.engine.evaluation import Deployed, open_test_clips
from trainables.outputs.records import write_rows
from trainables.single.command import drive
from trainables.trial.trial import Trial

Row = dict[str, Any]


def add(path: Path, arm: str, seed: int, train: Callable[[], Row]) -> None:
    """Append the row that `train` returns to the csv file `path`, unless it has a row of this arm and seed.

    The row is written when `train` is done, so a benchmark that was killed can be repeated: it trains what is missing.
    """
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
        return
    started = time.monotonic()
    row = {"arm": arm, "seed": seed, **train()}
    write_rows(path, [*rows, row | {"seconds": round(time.monotonic() - started, 1)}])


def trained_and_tested(trial: Trial, label: str) -> Row:
    """Train `trial` with a progress bar named `label`; return sizes and metrics of its last network.

    The test split is measured once, after the training.
    """
    drive(trial, label)
    point, config = trial.points[-1], trial.config
    test = open_test_clips(config, config.frontend.sample_rate)
    tested = Deployed(trial.folder / point.checkpoint, config.train.device).measure(test)
    return {
        "val_macro_avg_acc": point.val_macro_avg_acc,
        "test_macro_avg_acc": tested.macro_avg_acc,
        "test_unseen_acc": tested.group_acc.get("unseen"),
        "val_loss": point.val_loss,
        "test_loss": tested.loss,
        "macs": point.macs,
        "params": point.params,
        "epochs": point.epochs,
    }
