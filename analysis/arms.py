"""Means of the arms (variants) of an experiment, and paired t-tests of their differences over the same seeds."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from analysis.replicates import interval


class PairedError(ValueError):
    """Error of arms that cannot be compared: an unknown arm or column, a repeated seed, or too few seeds."""


def arm_means(raw: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a table with the mean of the column `metric` for each arm (variant of an experiment).

    `raw` has one row per run, with the columns arm, seed and `metric`. The result has one row per arm: `arm`, `n`
    (number of runs), `mean`, `sd` (standard deviation over runs), `low` and `high` (95 % interval of the mean).
    """
    rows = []
    for arm, part in raw.groupby("arm", sort=False):
        values = part[metric].to_numpy(dtype=float)
        rows.append({"arm": arm, "n": len(values), "mean": values.mean(), **interval(values)})
    return pd.DataFrame(rows)


def paired_difference(raw: pd.DataFrame, metric: str, first: str, second: str) -> dict[str, float | int | str]:
    """Compare two arms (variants of an experiment) by the differences of `metric`, arm `first` minus arm `second`.

    `raw` has one row per run, with the columns arm, seed and `metric`. There is one difference for each seed that both
    arms have. The returned dict has the keys `pair` (text), `n` (number of differences), `mean`, `sd`, `low` and
    `high` (95 % interval of the mean), and `p` (p-value of the two-sided paired t-test).

    Raise PairedError for an unknown arm, a repeated seed, or fewer than two common seeds.
    """
    series = []
    for arm in (first, second):
        part = raw[raw.arm == arm]
        if part.empty:
            arms = ", ".join(raw.arm.unique())
            raise PairedError(f"arm {arm!r} has no rows; expected one of {arms}: correct the name")
        if part.seed.duplicated().any():
            raise PairedError(
                f"arm {arm!r} has seed {part.seed[part.seed.duplicated()].iloc[0]} twice; expected one row per seed: "
                "remove the repeated row"
            )
        series.append(part.set_index("seed")[metric].astype(float))
    difference = (series[0] - series[1]).dropna().to_numpy()
    if len(difference) < 2:
        raise PairedError(
            f"arms {first} and {second} have {len(difference)} common seed(s); expected at least two: run more seeds"
        )
    result = stats.ttest_1samp(difference, 0)
    p = 1.0 if not difference.any() else float(result.pvalue)  # type: ignore[attr-defined]  # scipy's stubs lack it
    return {
        "pair": f"{first} - {second}",
        "n": len(difference),
        "mean": difference.mean(),
        **interval(difference),
        "p": p,
    }


def print_tables(options: argparse.Namespace, console: Console) -> int:
    """Print two tables: the mean of --metric for each arm, and its mean difference for each pair of arms in --pairs.

    Return the exit status of the command: 0, or 2 for invalid input.
    """
    try:
        raw = read_raw(options.raw, options.metric)
        pairs = [pair.split(":") for pair in options.pairs.split(",") if pair]
        if any(len(pair) != 2 for pair in pairs):
            raise PairedError(
                f"--pairs {options.pairs}: expected names of arms as first:second,first:second; correct it"
            )
        differences = [paired_difference(raw, options.metric, *pair) for pair in pairs]
    except (OSError, PairedError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    title = escape(options.metric)
    table = Table("arm", "n", "mean %", "sd", "95 % interval", title=title)
    for row in arm_means(raw, options.metric).to_dict("records"):
        table.add_row(escape(row["arm"]), str(row["n"]), *_cells(row))
    console.print(table)
    if differences:
        table = Table("difference", "n", "mean, % points", "sd", "95 % interval", "p (paired t)", title=title)
        for row in differences:
            table.add_row(escape(str(row["pair"])), str(row["n"]), *_cells(row), f"{row['p']:.3f}")
        console.print(table)
    return 0


def read_raw(file: Path, metric: str) -> pd.DataFrame:
    """Return the rows of the csv `file`: one per run, with the columns arm (text), seed and `metric` (numbers).

    Raise PairedError if the file has no rows, is not csv, or lacks a column, and for a value that is not a number.
    """
    try:
        raw = pd.read_csv(file, dtype=str, keep_default_na=False)
        if not isinstance(raw.index, pd.RangeIndex):  # pandas takes the first columns as an index
            raise ValueError("rows have more fields than the header")
    except ValueError as error:  # also pandas' EmptyDataError and ParserError, and UnicodeDecodeError
        cause = " ".join(str(error).split())
        raise PairedError(f"{file} is not a csv file ({cause}); expected one row per run: restore the file") from error
    absent = {"arm", "seed", metric} - set(raw)
    if absent:
        raise PairedError(
            f"{file} has no column {sorted(absent)[0]!r}; its columns are {', '.join(raw)}: "
            "give a file with the columns arm and seed, and the name of a column with --metric"
        )
    if raw.empty:
        raise PairedError(f"{file} has no rows; expected one row per run: give a file with results")
    for column in ("seed", metric):
        texts = raw[column].tolist()
        numbers = np.asarray(pd.to_numeric(raw[column].replace("", None), errors="coerce"), dtype=float)
        for text, number in zip(texts, numbers, strict=True):
            if not np.isfinite(number) and (text or column == "seed"):  # an empty cell of the metric: not measured
                raise PairedError(
                    f"{file}: column {column} has {text!r}; expected finite numbers: correct the file, or name another "
                    "column with --metric"
                )
        raw[column] = numbers
    return raw


def _cells(row: dict) -> list[str]:
    return [f"{100 * row['mean']:.2f}", f"{100 * row['sd']:.2f}", f"{100 * row['low']:.2f} to {100 * row['high']:.2f}"]
