"""The results of a trial, a `Record` for each epoch and a `Point` for each stage, and the files that contain them.

A point is a measured network, which is a candidate for the Pareto front: the dense network (step 0), or the retrained
network after a prune step.
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

PROJECT = "asc-tune"  # name of the W&B project
EXPERIMENTS = "experiments"  # name of the folder of a study, or of the single runs, that has one folder per trial
REFIT = "refit"  # name of the folder of a study's refit, in the study's folder


def study_label(place: str) -> str:
    """Return the name under which the trials of the study at `place`, a path or URI, are shown and tracked."""
    above, _, name = place.rstrip("/").rpartition("/")
    return f"{above.rpartition('/')[2]}-{REFIT}" if name == REFIT else name


@dataclass(frozen=True)
class Point:
    """The size of a deployed network, and its metrics on the validation clips. Accuracies are in [0, 1].

    Without validation clips (data.validation_share=0), numbers are None, and the dicts of accuracies are empty.
    """

    step: int  # number of prune steps so far; 0: the dense network
    epochs: int  # epochs trained so far, over all stages
    val_macro_avg_acc: float | None
    val_loss: float | None  # mean cross-entropy in nats
    macs: int
    params: int
    bytes_fp32: int  # bytes of the parameters at this precision
    bytes_fp16: int
    bytes_int8: int
    sparsity: float  # share of the dense network's parameters that was removed, in [0, 1)
    feasible: bool  # whether macs and parameter bytes are within `limits.*`
    class_acc: dict[str, float]  # scene -> accuracy
    device_acc: dict[str, float]  # recording device -> accuracy
    group_acc: dict[str, float]  # device group (real, seen, unseen, other) -> accuracy
    widths: dict[str, list[int]]  # channels of each layer (`ascmodels.students.Widths`)
    checkpoint: str  # folder of the deployed network, relative to the folder of the trial
    val_ece: float | None = None  # expected calibration error; it and the next two are None in points of older versions
    train_macro_avg_acc: float | None = None  # accuracy on the augmented clips of the last epoch
    confusion: list[list[int]] | None = None  # [C, C] numbers of clips: rows are true scenes, columns predicted scenes
    val_acc_pruned: float | None = None  # accuracy after pruning, before retraining; None: not measured


@dataclass(frozen=True)
class Record:
    """The result of one epoch. Sizes and validation metrics are those of the deployed form of the trained network.

    Without validation clips (data.validation_share=0), the validation metrics are None.
    """

    stage: int  # 0: dense training; k: retraining after prune step k
    epoch: int  # number of the epoch within the stage, from 1
    epochs: int  # number of the epoch over all stages, from 1
    train_loss: float
    val_loss: float | None
    val_macro_avg_acc: float | None
    val_ece: float | None
    train_macro_avg_acc: float
    macs: int
    params: int
    sparsity: float
    seconds: float  # duration of training and validation
    point: Point | None  # the measured network in the last epoch of a stage, else None
    finished: bool  # True at the last epoch of the last stage


# fields of Point that are columns of points.csv with the same name
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
# columns of a study's points.csv: run time of the study in seconds when the network was measured, summed over drivers
# (pauses between drivers are not counted), and epochs that all trials had reported by then
MOMENT = ("search_s", "search_epochs")


def point_row(
    trial_id: str, status: str, folder: str, point: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the row of points.csv for one point, as a dict from column to value.

    `point` is the point as a dict (`point_dict`). `trial_id`, `status` and `config` are the name, the status and the
    configuration of its trial; each key of `config` becomes a column ({}: no such columns). `folder` is the path of
    the trial's folder. This path, and that of the network in the column `checkpoint`, are relative to points.csv.
    """
    row: dict[str, Any] = {"trial_id": trial_id, **{k: point.get(k) for k in FIGURES}, "status": status}
    row["checkpoint"] = f"{folder}/{point['checkpoint']}"
    row |= {f"val_acc/{scene}": value for scene, value in point["class_acc"].items()}
    row |= {f"val_device_acc/{device}": value for device, value in point["device_acc"].items()}
    row |= {f"val_group_acc/{group}": value for group, value in point["group_acc"].items()}
    return row | {f"config/{k}": json.dumps(v) if isinstance(v, list) else v for k, v in config.items()}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write `rows` as a CSV file to `path`; an existing file is replaced.

    Each key of the rows is a column. The columns named in `columns` come first, in this order. The others follow in the
    order of their first occurrence.
    """
    replace_text(path, rows_text(rows, columns))


def points_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of points.csv for `rows` from `point_row`. The columns that identify the trial come first."""
    return rows_text(rows, ["trial_id", "config_id", "replicate", *FIGURES, "status", *MOMENT])


def rows_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Return `rows` as the text of a CSV file.

    Each key of the rows is a column. The columns named in `columns` come first, in this order. The others follow in the
    order of their first occurrence.
    """
    names = list(dict.fromkeys([*columns, *(k for row in rows for k in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_info(folder: Path, info: Mapping[str, Any], durable: bool = True) -> None:
    """Write `info` (configuration, status and points of one trial) to the file info.json in the trial's `folder`.

    An existing file is replaced. With `durable`, the file is synced to disk before the function returns. Without it,
    a crash of the machine may lose the new content.
    """
    make_folder(folder)
    replace_text(folder / "info.json", json.dumps(info, indent=1), durable)


def now() -> str:
    """Return the current UTC time in ISO 8601 format, with a resolution of 1 s."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def point_dict(point: Point) -> dict[str, Any]:
    """Return `point` as a dict of JSON values (tuples become lists)."""
    return json.loads(json.dumps(asdict(point)))
