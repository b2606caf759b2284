"""Replicates: what trials of one configuration with different seeds say together, as a mean with an interval.

`points.csv` and `test.csv` have a row for each network of each trial; `config_id` names a configuration's first trial
and `replicate` (0, 1, ...) which of its seeds a trial has. Files without these columns hold one seed each.

Only complete trials count. Intervals are Student's t at 95 % on the mean, and need two seeds at least.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

CONFIDENCE = 0.95
ACCURACY = "val_macro_avg_acc"
_FIXED = ("trial_id", "config_id", "replicate", "step", "status", "checkpoint", "feasible")  # no means of these
_WHOLE = ("epochs", "macs", "params", "bytes_fp32", "bytes_fp16", "bytes_int8")


def interval(values: npt.ArrayLike) -> dict[str, float]:
    """`sd` of single values, and `low` and `high` of the interval of their mean; NaN for fewer than two values."""
    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 2:
        return {"sd": np.nan, "low": np.nan, "high": np.nan}
    sd = float(numbers.std(ddof=1))
    half = _t(len(numbers)) * sd / np.sqrt(len(numbers))
    return {"sd": sd, "low": numbers.mean() - half, "high": numbers.mean() + half}


def identified(raw: pd.DataFrame) -> pd.DataFrame:
    """`raw` with the columns `config_id` and `replicate`, where a file has none: each trial is its configuration."""
    missing = {"config_id": raw["trial_id"], "replicate": 0}
    return raw.assign(**{column: value for column, value in missing.items() if column not in raw})


def replicated(raw: pd.DataFrame) -> bool:
    """Whether any configuration has two complete replicates."""
    if "config_id" not in raw:
        return False
    trials = _rows(raw, raw["status"] == "complete").drop_duplicates(["config_id", "replicate"])
    return bool(trials["config_id"].duplicated().any())


def mean_points(raw: pd.DataFrame) -> pd.DataFrame:
    """One row a configuration and step, named after its first trial: means over the `n_seeds` complete replicates.

    Adds `n_seeds` and the accuracy's `_std`, `_low`, `_high` (clipped to [0, 1]). Feasible is what is feasible for
    every seed; the checkpoint is the first complete replicate's. A configuration without a complete trial shows the
    first of its trials, with `n_seeds` 0.
    """
    complete = (raw["status"] == "complete").to_numpy(bool)
    known = raw["config_id"].isin(list(raw["config_id"][complete]))
    first = raw["replicate"] == raw.groupby("config_id")["replicate"].transform("min")
    chosen = _rows(raw, complete | (~known & first))
    keys = ["config_id", "step"]
    made = chosen.sort_values("replicate", kind="stable").drop_duplicates(keys).sort_index().set_index(keys)
    groups = chosen.groupby(keys)
    numeric = [c for c in raw.select_dtypes("number") if c not in _FIXED and not c.startswith("config/")]
    means = _strict_means(groups, numeric)
    for column in numeric:
        values = means[column].reindex(made.index)
        whole = column in _WHOLE and bool(np.isfinite(values.to_numpy(float)).all())
        made[column] = values.round().astype("int64") if whole else values
    made["feasible"] = groups["feasible"].all().reindex(made.index)
    made["n_seeds"] = groups.size().reindex(made.index).where(made["status"] == "complete", 0)
    made = made.join(_spread(groups, ACCURACY))
    made = made.reset_index()
    made["trial_id"] = made["config_id"]
    order = [c for c in raw.columns if c not in ("trial_id", "config_id", "replicate")]
    added = [c for c in made.columns if c not in raw.columns]
    at = order.index(ACCURACY) + 1
    return pd.DataFrame(made, columns=["trial_id", *order[:at], *added, *order[at:]])


def mean_tests(raw: pd.DataFrame, raw_test: pd.DataFrame) -> pd.DataFrame:
    """Test figures of the measured networks as one row a configuration and step, with `test_n_seeds` and the
    accuracy's `_std`, `_low`, `_high`."""
    known = raw.loc[raw["status"] == "complete", ["trial_id", "config_id", "step"]]
    names = [c for c in raw_test.columns if c.startswith("test_")]
    joined = raw_test[["trial_id", "step", *names]].merge(known, on=["trial_id", "step"])
    groups = joined.groupby(["config_id", "step"])
    made = _strict_means(groups, names)
    made.insert(0, "test_n_seeds", groups.size())
    made = made.join(_spread(groups, "test_macro_avg_acc")).reset_index()
    return made.rename(columns={"config_id": "trial_id"})


def networks(raw: pd.DataFrame, trial: str, step: int) -> pd.DataFrame:
    """The complete networks in `raw` that a point of the study stands for; its own where there are no replicates."""
    return _rows(raw, (raw["config_id"] == trial) & (raw["step"] == step) & (raw["status"] == "complete"))


def _rows(frame: pd.DataFrame, mask: npt.ArrayLike) -> pd.DataFrame:
    return frame.take(np.flatnonzero(mask))


def _strict_means(groups, columns: list[str]) -> pd.DataFrame:
    """Means in which one value that is missing makes the mean missing."""
    whole = groups[columns].count().eq(groups.size(), axis=0)
    return groups[columns].mean().where(whole)


def _spread(groups, column: str) -> pd.DataFrame:
    """Standard deviation and the ends of the mean's interval, clipped to [0, 1]; NaN with one seed."""
    mean, n = _strict_means(groups, [column])[column], groups.size()
    sd = groups[column].std(ddof=1).where(mean.notna())
    half = _t(n) * sd / np.sqrt(n)
    ends = {"_std": sd, "_low": (mean - half).clip(0, 1), "_high": (mean + half).clip(0, 1)}
    return pd.DataFrame({f"{column}{name}": values for name, values in ends.items()})


def _t(n):
    """Student's t for the interval of a mean of n values; NaN for n = 1."""
    return stdtrit(np.where(np.asarray(n) > 1, np.asarray(n) - 1.0, np.nan), (1 + CONFIDENCE) / 2)
