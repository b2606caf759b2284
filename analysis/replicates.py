"""Replicates: trials of one configuration with different seeds, summarised as means with confidence intervals.

`points.csv` and `test.csv` have one row per network of each trial. `config_id` is the name of a configuration's first
trial, and `replicate` (0, 1, ...) is the number of a trial's seed. Files without these columns have one seed per
configuration.

A mean is over all replicates that measured a step, even if their trials stopped, failed or crashed later. If early
stopping ended the weaker seeds before a step, the mean of that step is too high; `sentences.warnings` counts these.
Intervals are Student's t at 95 % on the mean, and need at least two seeds.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

CONFIDENCE = 0.95
ACCURACY = "val_macro_avg_acc"
_FIXED = ("trial_id", "config_id", "replicate", "step", "status", "checkpoint", "feasible")  # columns without means
_INTEGER = ("epochs", "macs", "params", "bytes_fp32", "bytes_fp16", "bytes_int8")


def interval(values: npt.ArrayLike) -> dict[str, float]:
    """Return `sd` of the values and the ends `low` and `high` of their mean's interval; NaN for fewer than two."""
    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 2:
        return {"sd": np.nan, "low": np.nan, "high": np.nan}
    sd = float(numbers.std(ddof=1))
    half = _t(len(numbers)) * sd / np.sqrt(len(numbers))
    return {"sd": sd, "low": numbers.mean() - half, "high": numbers.mean() + half}


def identified(raw: pd.DataFrame) -> pd.DataFrame:
    """Return `raw` with the columns `config_id` and `replicate`; if missing, each trial is its own configuration."""
    missing = {"config_id": raw["trial_id"], "replicate": 0}
    return raw.assign(**{column: value for column, value in missing.items() if column not in raw})


def measured(points: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return a mask [N] of the rows with a measurement: finite accuracy and finite MACs."""
    return np.isfinite(points[ACCURACY].to_numpy(float)) & np.isfinite(points["macs"].to_numpy(float))


def replicated(raw: pd.DataFrame) -> bool:
    """Return whether at least two replicates of any configuration measured the same step."""
    if "config_id" not in raw:
        return False
    return bool(_rows(raw, measured(raw)).duplicated(["config_id", "step"]).any())


def mean_points(raw: pd.DataFrame) -> pd.DataFrame:
    """Return one row per configuration and step: the means over the `n_seeds` replicates that measured the step.

    `trial_id` is the name of the configuration's first trial. `n_seeds` and the accuracy's `_std`, `_low`, `_high`
    (clipped to [0, 1]) are added. A mean is feasible if the networks of all seeds are. Its checkpoint is the one of the
    first replicate that measured the step, and its status counts the trials ("complete", or "2 complete, 1 stopped
    early"). A step that no replicate measured keeps the row of its first replicate, with `n_seeds` 0.
    """
    keys = ["config_id", "step"]
    rows = raw.assign(n_seeds=measured(raw).astype("int64")).sort_values("replicate", kind="stable")
    unknown = rows.groupby(keys)["n_seeds"].transform("max") == 0
    chosen = _rows(rows, (rows["n_seeds"] == 1) | (unknown & ~rows.duplicated(keys)))
    made = chosen.drop_duplicates(keys).sort_index().set_index(keys)  # in the order of the file
    groups = chosen.groupby(keys)
    numeric = [c for c in raw.select_dtypes("number") if c not in _FIXED and not c.startswith("config/")]
    means = _strict_means(groups, numeric)
    for column in numeric:
        values = means[column].reindex(made.index)
        integer = column in _INTEGER and bool(np.isfinite(values.to_numpy(float)).all())
        made[column] = values.round().astype("int64") if integer else values
    made["feasible"] = groups["feasible"].all().reindex(made.index)
    merged = groups.agg({"n_seeds": "sum", "status": _count_statuses})
    made[["n_seeds", "status"]] = merged.reindex(made.index)
    made = made.join(_spread(groups, ACCURACY))
    made = made.reset_index()
    made["trial_id"] = made["config_id"]
    order = [c for c in raw.columns if c not in ("trial_id", "config_id", "replicate")]
    added = [c for c in made.columns if c not in raw.columns]
    at = order.index(ACCURACY) + 1
    return pd.DataFrame(made, columns=["trial_id", *order[:at], *added, *order[at:]])


def mean_tests(raw: pd.DataFrame, raw_test: pd.DataFrame) -> pd.DataFrame:
    """Return the test results, one row per configuration and step: means over the seeds that were measured on test.

    `test_n_seeds` and the accuracy's `_std`, `_low`, `_high` are added.
    """
    known = raw.loc[measured(raw), ["trial_id", "config_id", "step"]]
    names = [c for c in raw_test.columns if c.startswith("test_")]
    joined = raw_test[["trial_id", "step", *names]].merge(known, on=["trial_id", "step"])
    groups = joined.groupby(["config_id", "step"])
    made = _strict_means(groups, names)
    made.insert(0, "test_n_seeds", groups.size())
    made = made.join(_spread(groups, "test_macro_avg_acc")).reset_index()
    return made.rename(columns={"config_id": "trial_id"})


def networks(raw: pd.DataFrame, trial: str, step: int) -> pd.DataFrame:
    """Return the rows of `raw` for one point of the study: one row per seed if the point is a mean, else one row.

    `trial` and `step` identify the point; for a mean, `trial` is the configuration's first trial.
    """
    named = (raw["config_id"] == trial) | (raw["trial_id"] == trial)
    return _rows(raw, (named & (raw["step"] == step)).to_numpy(bool) & measured(raw))


def _count_statuses(statuses: pd.Series) -> str:
    """Return the common status of all trials, or the number of trials per status."""
    counts = Counter(statuses)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {status}" for status, n in counts.items())


def _rows(frame: pd.DataFrame, mask: npt.ArrayLike) -> pd.DataFrame:
    return frame.take(np.flatnonzero(mask))


def _strict_means(groups, columns: list[str]) -> pd.DataFrame:
    """Return means that are NaN if any of the values is missing."""
    complete = groups[columns].count().eq(groups.size(), axis=0)
    return groups[columns].mean().where(complete)


def _spread(groups, column: str) -> pd.DataFrame:
    """Return standard deviation and the ends of the mean's interval, clipped to [0, 1]; NaN with one seed."""
    mean, n = _strict_means(groups, [column])[column], groups.size()
    sd = groups[column].std(ddof=1).where(mean.notna())
    half = _t(n) * sd / np.sqrt(n)
    ends = {"_std": sd, "_low": (mean - half).clip(0, 1), "_high": (mean + half).clip(0, 1)}
    return pd.DataFrame({f"{column}{name}": values for name, values in ends.items()})


def _t(n):
    """Return Student's t for the interval of a mean of n values; NaN for n = 1."""
    return stdtrit(np.where(np.asarray(n) > 1, np.asarray(n) - 1.0, np.nan), (1 + CONFIDENCE) / 2)
