"""Functions that prepare a study for display: the role of each point (front, dominated, ...; see `roles`), error bars,
and values as short texts.

The terminal table, the figures and the HTML report use them. Sentences about a study are in page/sentences.py.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import front, replicates
from analysis.results import Study

DASH = "\N{EN DASH}"  # shown for a missing value
KEYS = {  # last part of a configuration key -> its column header; tables have this order of columns
    "kd_alpha": "alpha",
    "kd_temp": "T",
    "lr": "lr",
    "base_channels": "width",
    "branches": "branches",
}


def percent(share: Any) -> str:
    return DASH if absent(share) else f"{100 * share:.1f}"


def millions(count: Any) -> str:
    number = math.nan if absent(count) else count / 1e6
    return DASH if absent(number) else f"{number:.2f}" if number >= 1 else f"{number:#.3g}"


def thousands(count: Any) -> str:
    return DASH if absent(count) else f"{count / 1e3:.1f}"


def value_text(value: Any) -> str:
    """Return a value of a configuration as short text; a dash if it is missing.

    Examples: 0.00213 (float), 32 (integer), 3x3+1x1 (list of branches), 0.3/0.2 (list of prune ratios).
    """
    if absent(value):
        return DASH
    if isinstance(value, float | np.floating):
        return str(int(value)) if value % 1 == 0 else f"{value:.3g}"
    text = str(value)
    if text[:1] + text[-1:] not in ("[]", "()"):
        return text
    items = re.findall(r"[^\s,'\"\[\]()]+", text)
    if items and all(re.fullmatch(r"[-+.\de]+", item) for item in items):
        return "/".join(f"{float(item):.3g}" for item in items)
    separator = " / " if "+" in text else "+"  # an item with a + is a set of branches of one network stage
    return separator.join(items) or "none"


def absent(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and not math.isfinite(value))


def standard_error(accuracy: Any, clips: int | None) -> npt.NDArray[np.float64]:
    """Return the binomial standard error sqrt(p (1 - p) / n) of accuracies p in [0, 1] measured on n = `clips` clips.

    The result is NaN if `clips` is None (unknown).
    """
    share = np.asarray(accuracy, dtype=np.float64)
    return np.sqrt(share * (1 - share) / (clips or math.nan))


def error_bars(study: Study, points: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the lower and upper ends [2, N] of the error bars of the validation accuracy of `points`, in [0, 1].

    An error bar is the 95 % interval of a mean over seeds, or one binomial standard error below and above the accuracy
    of a single run. Unknown ends are NaN.
    """
    if study.replicated:
        return points[["val_macro_avg_acc_low", "val_macro_avg_acc_high"]].to_numpy(float).T
    accuracy = points["val_macro_avg_acc"].to_numpy(float)
    error = standard_error(accuracy, validation_clips(study))
    return np.stack([accuracy - error, accuracy + error])


def span(point: Mapping[Any, Any], column: str = "val_macro_avg_acc") -> str:
    """Return the 95 % interval of the mean accuracy of a point as text in per cent; a dash for one seed.

    `column` names the accuracy. The ends of its interval are the values of `point` for `column` + "_low" and "_high".
    """
    low, high = point.get(f"{column}_low"), point.get(f"{column}_high")
    return DASH if absent(low) else f"{percent(low)}{DASH}{percent(high)}"


def validation_clips(study: Study) -> int | None:
    return study.manifest.prepared.dataset.n_validation


def baseline(study: Study) -> tuple[str, float, float | None] | None:
    """Return the name, validation accuracy and test accuracy of the baseline of a study; None if it has no baseline.

    Accuracies are in [0, 1]. The test accuracy is None if it was not measured.
    """
    found = study.manifest.prepared.baseline
    if found is None or found.val_macro_avg_acc is None or absent(found.val_macro_avg_acc):
        return None
    test = found.test_macro_avg_acc
    return found.name or "baseline", found.val_macro_avg_acc, None if absent(test) else test


def roles(study: Study) -> npt.NDArray[np.str_]:
    """Return the role [N] of each row of `study.points`; figures draw each role with its own marker.

    - "front": on the Pareto front
    - "dominated": a candidate that is not on the front
    - "single": only one seed was measured, in a study with replicates
    - "infeasible": exceeds a limit
    - "unmeasured": accuracy, MACs or an objective is not finite; the point is not drawn
    """
    points = study.points
    finite = replicates.measured(points) & np.isfinite(front.objective_values(study)).all(axis=1)
    single = (points["n_seeds"] == 1).to_numpy(bool) if study.replicated else np.zeros(len(points), dtype=bool)
    parts = {
        "unmeasured": ~finite,
        "infeasible": ~points["feasible"].to_numpy(bool),
        "single": single,
        "front": front.front_mask(study),
    }
    return np.select(list(parts.values()), list(parts), "dominated")


def trial_counts(study: Study) -> tuple[dict[str, int], int]:
    """Return two values: a dict from status to number of trials, and the number of measured points.

    Samples that were rejected before training are not counted. The numbers of trials are those in study.json; if it has
    none, they are counted in points.csv.
    """
    counts = study.manifest.progress.trials
    if counts is None:
        by_trial = dict(zip(study.raw["trial_id"], study.raw["status"], strict=True))
        counts = {status: list(by_trial.values()).count(status) for status in by_trial.values()}
    trials = {name: int(number) for name, number in counts.items() if name != "rejected" and number}
    return trials, int((roles(study) != "unmeasured").sum())


def short_config(points: pd.DataFrame) -> pd.DataFrame:
    """Return the sampled configuration of each point as a table of short texts, one column per key.

    The header of a column is short, e.g. `lr` for train.lr. All prune ratios are joined in the column `ratios`, e.g.
    "0.3/0.2".
    """
    columns = [str(column) for column in points.columns if str(column).startswith("config/")]
    ratios = [column for column in columns if column.startswith("config/prune.") and "ratio" in column]
    others = [column.removeprefix("config/") for column in columns if column not in ratios]
    tails = [key.rsplit(".", 1)[-1] for key in others]
    named: dict[str, list[str]] = {}
    for key, tail in zip(others, tails, strict=True):
        clear = tails.count(tail) == 1 or key == f"train.{tail}"  # `lr` is train.lr; prune.lr keeps its name
        named[KEYS.get(tail, tail) if clear else key] = [f"config/{key}"]
    order = list(KEYS.values())
    names = sorted(named, key=lambda name: order.index(name) if name in order else len(order))
    if ratios:
        named["ratios"] = ratios
        names.append("ratios")
    texts = {name: [_joined(row) for row in points[named[name]].to_numpy(object)] for name in names}
    return pd.DataFrame(texts, index=points.index)


def _joined(values: npt.NDArray[Any]) -> str:
    return "/".join(value_text(value) for value in values if not absent(value)) or DASH
