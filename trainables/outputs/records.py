"""The results of a trial and their files: one `Record` per epoch, one `Point` per measured network.

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

EXPERIMENTS = "experiments"  # folder of a study, or of the single runs, with one folder per trial


@dataclass(frozen=True)
class Point:
    """A deployed network and its validation figures; accuracies are in [0, 1]."""

    step: int  # 0 is the dense network
    epochs: int  # epochs trained so far, over all stages
    val_macro_avg_acc: float
    val_loss: float
    macs: int
    params: int
    bytes_fp32: int
    bytes_fp16: int
    bytes_int8: int
    sparsity: float  # share of the parameters removed, in [0, 1)
    feasible: bool  # within the limits
    class_acc: dict[str, float]
    device_acc: dict[str, float]
    group_acc: dict[str, float]
    widths: dict[str, list[int]]
    checkpoint: str  # folder of the deployed network, relative to the trial's
    val_ece: float | None = None  # expected calibration error; None (like the next two) in points of older versions
    train_macro_avg_acc: float | None = None  # accuracy on the augmented clips of the last epoch
    confusion: list[list[int]] | None = None  # [C, C] numbers of validation clips, rows are the true scenes
    val_acc_pruned: float | None = None  # accuracy after pruning, before retraining; None: not measured


@dataclass(frozen=True)
class Record:
    """The result of one epoch. `macs` and `params` are those of the deployed network at this epoch."""

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
    seconds: float  # time for training and validation
    point: Point | None  # the measured network, at the last epoch of a stage; None: another epoch
    finished: bool  # True at the last epoch of the last stage


# columns of points.csv with the figures of a point
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
    """Return a row of points.csv: the point's figures, the path of its network below `folder`, the configuration."""
    row: dict[str, Any] = {"trial_id": trial_id, **{k: point.get(k) for k in FIGURES}, "status": status}
    row["checkpoint"] = f"{folder}/{point['checkpoint']}"
    row |= {f"val_acc/{scene}": value for scene, value in point["class_acc"].items()}
    row |= {f"val_device_acc/{device}": value for device, value in point["device_acc"].items()}
    row |= {f"val_group_acc/{group}": value for group, value in point["group_acc"].items()}
    return row | {f"config/{k}": json.dumps(v) if isinstance(v, list) else v for k, v in config.items()}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write `rows` to the csv file at `path`, replacing it; its columns are `columns`, then all other keys of rows."""
    replace_text(path, rows_text(rows, columns))


def points_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the content of points.csv for rows of `point_row`; the first columns name trial and configuration."""
    return rows_text(rows, ["trial_id", "config_id", "replicate", *FIGURES, "status"])


def rows_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Return `rows` as csv text; its columns are `columns`, then all other keys of the rows."""
    names = list(dict.fromkeys([*columns, *(k for row in rows for k in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_info(folder: Path, info: Mapping[str, Any], durable: bool = True) -> None:
    """Write the `info.json` of one trial (configuration, status, points), replacing it."""
    make_folder(folder)
    replace_text(folder / "info.json", json.dumps(info, indent=1), durable)


def now() -> str:
    """Return the current time in UTC, to the second (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def point_dict(point: Point) -> dict[str, Any]:
    """Return a point as plain JSON values."""
    return json.loads(json.dumps(asdict(point)))
