"""Summarise replicates (trials of one configuration with different seeds) as means with confidence intervals.

points.csv has one row per network of each trial. Its column `config_id` is the name of the first trial of the
configuration, and `replicate` (0, 1, ...) numbers the seeds of a configuration. Files that older versions wrote do not
have these two columns; each configuration then has one seed.

The mean for a prune step is over all replicates that were measured after this step, even if their trials were stopped,
failed or crashed later. If early stopping ended weaker seeds before a step, the mean for this step is too high; the
report states how many points of the front have such a mean. Confidence intervals of means are 95 % intervals of
Student's t distribution, and need at least two seeds.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

CONFIDENCE = 0.95
ACCURACY = "val_macro_avg_acc"
_FIXED = ("trial_id", "config_id", "replicate", "step", "status", "checkpoint", "feasible")  # columns without means
_MOMENT = ("search_s", "search_epochs")  # when a network was measured
_INTEGER = ("epochs", "macs", "params", "bytes_fp32", "bytes_fp16", "bytes_int8")


def interval(values: npt.ArrayLike) -> dict[str, float]:
    """Return the standard deviation of `values` as "sd", and the 95 % interval of their mean as "low" and "high".

    All three are NaN for fewer than two values.
    """
    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 2:
        return {"sd": np.nan, "low": np.nan, "high": np.nan}
    sd = float(numbers.std(ddof=1))
    half = _t(len(numbers)) * sd / np.sqrt(len(numbers))
    return {"sd": sd, "low": numbers.mean() - half, "high": numbers.mean() + half}


def identified(raw: pd.DataFrame) -> pd.DataFrame:
    """Return `raw` (points.csv as a table) with the columns `config_id` and `replicate`, added if they are missing.

    Older versions did not write them. A missing `config_id` is set to the `trial_id` (each trial is its own
    configuration), a missing `replicate` to 0.
    """
    missing = {"config_id": raw["trial_id"], "replicate": 0}
    return raw.assign(**{column: value for column, value in missing.items() if column not in raw})


def measured(points: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return a mask [N] that is True for the rows of `points` whose validation accuracy and MACs are finite."""
    return np.isfinite(points[ACCURACY].to_numpy(float)) & np.isfinite(points["macs"].to_numpy(float))


def replicated(raw: pd.DataFrame) -> bool:
    """Return whether `raw` (points.csv as a table) has replicates.

    That is, at least two seeds of one configuration were measured after the same prune step.
    """
    if "config_id" not in raw:
        return False
    return bool(_rows(raw, measured(raw)).duplicated(["config_id", "step"]).any())


def mean_points(raw: pd.DataFrame) -> pd.DataFrame:
    """Return the means over replicates of `raw` (points.csv as a table), one row per configuration and prune step.

    A mean is over the replicates that were measured after this step. Columns with another meaning than in `raw`:

    - `trial_id` is the name of the first trial of the configuration, and `n_seeds` the number of replicates in the
      mean. `val_macro_avg_acc_std`, `_low` and `_high` are the standard deviation over seeds and the 95 % interval of
      the mean, clipped to [0, 1].
    - `feasible` is True if the networks of all these replicates are feasible.
    - `search_s` and `search_epochs` are those of the second replicate that was measured: from then on, the mean is a
      candidate for the front. With one replicate, they are its own.
    - `checkpoint` is that of the first replicate that was measured.
    - `status` is the status that all trials have, or the number of trials per status, e.g. "2 complete, 1 failed".

    If no replicate was measured after a step, the row is that of the first replicate, with `n_seeds` 0.
    """
    keys = ["config_id", "step"]
    rows = raw.assign(n_seeds=measured(raw).astype("int64")).sort_values("replicate", kind="stable")
    unknown = rows.groupby(keys)["n_seeds"].transform("max") == 0
    chosen = _rows(rows, (rows["n_seeds"] == 1) | (unknown & ~rows.duplicated(keys)))
    made = chosen.drop_duplicates(keys).sort_index().set_index(keys)  # in the order of the file
    groups = chosen.groupby(keys)
    numeric = [c for c in raw.select_dtypes("number") if c not in (*_FIXED, *_MOMENT) and not c.startswith("config/")]
    means = _strict_means(groups, numeric)
    for column in numeric:
        values = means[column].reindex(made.index)
        values = values.round() if column in _INTEGER else values
        integer = column in _INTEGER and bool(np.isfinite(values.to_numpy(float)).all())
        made[column] = values.astype("int64") if integer else values
    for column in [c for c in _MOMENT if c in raw]:
        first_two = chosen.sort_values(column, kind="stable").groupby(keys).head(2)
        later = pd.DataFrame(first_two.groupby(keys)[[column]].max())
        made[column] = later.reindex(made.index)[column]
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
    """Return the mean test results over replicates, one row per configuration and prune step.

    `raw` is points.csv and `raw_test` is test.csv, as tables. A mean is over the replicates that were measured on test.
    Added columns: `test_n_seeds`, the number of replicates in the mean; `test_macro_avg_acc_std`, the standard
    deviation over seeds; `test_macro_avg_acc_low` and `_high`, the 95 % interval of the mean.
    """
    known = raw.loc[measured(raw), ["trial_id", "config_id", "step"]]
    names = [c for c in raw_test.columns if c.startswith("test_")]
    joined = raw_test[["trial_id", "step", *names]].merge(known, on=["trial_id", "step"])
    made = _test_means(joined.groupby(["config_id", "step"]), names).reset_index()
    return made.rename(columns={"config_id": "trial_id"})


def mean_refits(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean test results over seeds of refitted networks, one row per configuration and prune step.

    `rows` are their rows of test.csv. The columns are those of `mean_tests`, with names that begin with `refitted_`.
    """
    names = [c for c in rows.columns if c.startswith("test_")]
    groups = rows.assign(trial_id=rows["trial_id"].str.partition("r")[0]).groupby(["trial_id", "step"])
    return _test_means(groups, names).add_prefix("refitted_").reset_index()


def _test_means(groups, names: list[str]) -> pd.DataFrame:
    """Return the means of the columns `names` in each group of the pandas GroupBy `groups`, the number of seeds and the
    spread of the test accuracy."""
    made = _strict_means(groups, names)
    made.insert(0, "test_n_seeds", groups.size())
    return made.join(_spread(groups, "test_macro_avg_acc"))


def networks(raw: pd.DataFrame, trial: str, step: int) -> pd.DataFrame:
    """Return the rows of `raw` (points.csv as a table) from which one point of the study was made.

    The point is named by its `trial` and its prune `step`. If the point is a mean over seeds, `trial` is the first
    trial of the configuration and there is one row per seed; otherwise there is one row.
    """
    named = (raw["config_id"] == trial) | (raw["trial_id"] == trial)
    return _rows(raw, (named & (raw["step"] == step)).to_numpy(bool) & measured(raw))


def _count_statuses(statuses: pd.Series) -> str:
    """Return the status that all trials have, or the number of trials per status, e.g. "2 complete, 1 failed"."""
    counts = Counter(statuses)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {status}" for status, n in counts.items())


def _rows(frame: pd.DataFrame, mask: npt.ArrayLike) -> pd.DataFrame:
    return frame.take(np.flatnonzero(mask))


def _strict_means(groups, columns: list[str]) -> pd.DataFrame:
    """Return the mean of each of `columns` in each group of the pandas GroupBy `groups`.

    The mean is NaN if a group has a missing value, which pandas would ignore.
    """
    complete = groups[columns].count().eq(groups.size(), axis=0)
    return groups[columns].mean().where(complete)


def _spread(groups, column: str) -> pd.DataFrame:
    """Return the spread of `column` in each group of the pandas GroupBy `groups`, as a table with one row per group.

    Its columns are the name of `column` with `_std` (standard deviation), `_low` and `_high` (95 % interval of the
    mean, clipped to [0, 1]). They are NaN for a group with one seed.
    """
    mean, n = _strict_means(groups, [column])[column], groups.size()
    sd = groups[column].std(ddof=1).where(mean.notna())
    half = _t(n) * sd / np.sqrt(n)
    ends = {"_std": sd, "_low": (mean - half).clip(0, 1), "_high": (mean + half).clip(0, 1)}
    return pd.DataFrame({f"{column}{name}": values for name, values in ends.items()})


def _t(n):
    """Return the quantile of Student's t for the 95 % interval of a mean of `n` values; NaN for `n` = 1."""
    return stdtrit(np.where(np.asarray(n) > 1, np.asarray(n) - 1.0, np.nan), (1 + CONFIDENCE) / 2)
