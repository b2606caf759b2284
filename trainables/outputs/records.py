"""What a trial reports, and how it is written down: one `Record` an epoch, one `Point` a measured network.

A point is a candidate of the Pareto front: the dense network (step 0) and the one after each prune step.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.files import make_folder, replace_text

EXPERIMENTS = "experiments"  # folder of a study, or of the single runs, that holds one folder a trial


@dataclass(frozen=True)
class Point:
    """A deployed network and its validation figures; accuracies in [0, 1], `sparsity` the share of parameters gone."""

    step: int  # 0 is the dense network
    epochs: int  # trained so far, over all steps
    val_macro_avg_acc: float
    val_loss: float
    macs: int
    params: int
    bytes_fp32: int
    bytes_fp16: int
    bytes_int8: int
    sparsity: float
    feasible: bool  # within the limits
    class_acc: dict[str, float]
    device_acc: dict[str, float]
    group_acc: dict[str, float]
    widths: dict[str, list[int]]
    checkpoint: str  # folder of the deployed network, relative to the trial's
    val_ece: float | None = None  # expected calibration error; none in points of older versions, as the next two
    train_macro_avg_acc: float | None = None  # of the last epoch, on augmented clips
    confusion: list[list[int]] | None = None  # [C, C] validation clips, rows true
    val_acc_pruned: float | None = None  # right after pruning, before retraining, where it was asked for


@dataclass(frozen=True)
class Record:
    """One epoch. `macs` and `params` are the deployed network's as it is now; `point` ends a stage."""

    stage: int
    epoch: int  # 1, 2, ... within the stage
    epochs: int  # 1, 2, ... over all stages
    train_loss: float
    val_loss: float
    val_macro_avg_acc: float
    val_ece: float
    train_macro_avg_acc: float
    macs: int
    params: int
    sparsity: float
    seconds: float
    point: Point | None
    finished: bool  # the last epoch of the last stage


FIGURES = (
    *(
        "step",
        "epochs",
        "val_macro_avg_acc",
        "val_loss",
        "macs",
        "params",
        "bytes_fp32",
        "bytes_fp16",
        "bytes_int8",
    ),
    *("sparsity", "feasible", "val_ece", "train_macro_avg_acc"),
)


def point_row(
    trial_id: str, status: str, folder: str, point: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """One row of points.csv: the point's figures, where its network is, and the sampled configuration."""
    row: dict[str, Any] = {"trial_id": trial_id, **{k: point.get(k) for k in FIGURES}, "status": status}
    row["checkpoint"] = f"{folder}/{point['checkpoint']}"
    row |= {f"val_acc/{scene}": value for scene, value in point["class_acc"].items()}
    row |= {f"val_device_acc/{device}": value for device, value in point["device_acc"].items()}
    row |= {f"val_group_acc/{group}": value for group, value in point["group_acc"].items()}
    return row | {f"config/{k}": json.dumps(v) if isinstance(v, list) else v for k, v in config.items()}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Replace the csv file at `path` by `rows`, with the union of their columns, `columns` first."""
    replace_text(path, rows_text(rows, columns))


def points_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The content of points.csv: `rows` of `point_row`, with the names of trial and configuration."""
    return rows_text(rows, ["trial_id", "config_id", "replicate", *FIGURES, "status"])


def rows_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """A csv of `rows` with the union of their columns, `columns` first."""
    names = list(dict.fromkeys([*columns, *(k for row in rows for k in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_info(folder: Path, info: Mapping[str, Any], durable: bool = True) -> None:
    """Replace the `info.json` of one trial: configuration, status, points."""
    make_folder(folder)
    replace_text(folder / "info.json", json.dumps(info, indent=1), durable)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def point_dict(point: Point) -> dict[str, Any]:
    """A point as plain JSON values."""
    return json.loads(json.dumps(asdict(point)))
