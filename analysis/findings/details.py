"""Read the files of single trials: learning curves (results.csv) and confusion matrices (info.json).

Both are optional: a copy of a study without the folder experiments/ has none, and a damaged file counts as none.
"""

import csv
import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis import front, replicates
from analysis.results import Study


@dataclass(frozen=True)
class Curve:
    """The validation accuracy after each epoch of a trial, and the stage of each epoch."""

    accuracies: list[float | None]  # shares in [0, 1]; None: not measured
    stages: list[int]  # 0: dense training; k: retraining after prune step k

    def dense(self) -> list[float]:
        """Return the accuracies of the dense training, up to the first one that was not measured."""
        values = [a for a, stage in zip(self.accuracies, self.stages, strict=True) if stage == 0]
        return [a for a in values[: values.index(None) if None in values else None] if a is not None]


def learning_curves(study: Study, trials: Container[str] | None = None) -> dict[str, Curve]:
    """Return trial -> learning curve, for the trials with a measured network whose results.csv can be read.

    If `trials` is given, only these trials are read.
    """
    folders = {name: folder for name, folder in _folders(study).items() if trials is None or name in trials}
    curves = {name: read_curve(folder / "results.csv") for name, folder in folders.items()}
    return {name: curve for name, curve in curves.items() if curve}


def read_curve(file: Path) -> Curve | None:
    """Return the learning curve in the file results.csv of a trial; None if it is missing, empty or damaged.

    A last row that is cut off is left out: the trial may be running.
    """
    try:
        text = file.read_text(encoding="utf-8")
        rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), strict=True))
        accuracies = [float(row["val_macro_avg_acc"]) if row["val_macro_avg_acc"] else None for row in rows]
        stages = [int(row["stage"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    valid = all(a is None or 0 <= a <= 1 for a in accuracies) and all(0 <= stage < 1000 for stage in stages)
    return Curve(accuracies, stages) if rows and valid else None


def confusions(study: Study) -> dict[tuple[str, int], npt.NDArray[np.int64]]:
    """Return (trial, step) -> confusion matrix [C, C] of each network on the front.

    Element [i, j] is the number of validation clips of scene i that were taken for scene j, summed over the seeds of a
    mean. The scenes have the order of the columns val_acc/... Networks without a readable matrix are left out.
    """
    n_classes, found = len(study.prefixed("val_acc/")), {}
    for point in front.pareto_points(study).to_dict("records"):
        trial, step = str(point["trial_id"]), int(point["step"])
        networks = replicates.networks(study.raw, trial, step).to_dict("records")
        made = [_matrix(study.path, network, n_classes) for network in networks]
        matrices = [matrix for matrix in made if matrix is not None]
        if matrices and len(matrices) == len(made):
            found[trial, step] = np.sum(matrices, axis=0)
    return found


def _matrix(folder: Path, network: dict, n_classes: int) -> npt.NDArray[np.int64] | None:
    """Return the confusion matrix of a network, given as a row of points.csv; None if there is none."""
    try:
        info = json.loads((folder / network["checkpoint"]).parent.joinpath("info.json").read_bytes())
        (matrix,) = (point["confusion"] for point in info["points"] if point["step"] == network["step"])
        counts = np.asarray(matrix, dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    return counts if counts.shape == (n_classes, n_classes) and n_classes and counts.min() >= 0 else None


def _folders(study: Study) -> dict[str, Path]:
    """Return trial -> its folder, for trials with a measured network; it is the parent folder of its checkpoints."""
    if "checkpoint" not in study.raw:
        return {}
    pairs = zip(study.raw["trial_id"], study.raw["checkpoint"], strict=True)
    return {str(trial): (study.path / str(checkpoint)).parent for trial, checkpoint in pairs}
