"""Arms of an experiment over the same seeds: means with intervals, and paired differences with a test.

    python -m analysis.paired analysis/studies/training/raw.csv --metric test_macro_avg_acc \\
        --pairs rep_kd:rep_ce,progressive:one_shot

`raw.csv` has a row for each arm and seed. Both arms of a pair share a seed's division of the data, so differences are
taken seed by seed (Student's t on them). A few seeds resolve large effects only; the interval says which.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy import stats

from analysis.replicates import interval


class PairedError(ValueError):
    """Rows that cannot be compared."""


def arm_means(raw: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row an arm: n, mean, standard deviation and confidence interval of the mean (Student's t)."""
    rows = []
    for arm, part in raw.groupby("arm", sort=False):
        values = part[metric].to_numpy(dtype=float)
        rows.append({"arm": arm, "n": len(values), "mean": values.mean(), **interval(values)})
    return pd.DataFrame(rows)


def paired_difference(raw: pd.DataFrame, metric: str, first: str, second: str) -> dict[str, float | int | str]:
    """`first` minus `second` over their common seeds: n, mean, interval and two-sided p of the paired t-test.

    PairedError for an arm that is not there, a seed that is there twice, or fewer than two common seeds.
    """
    series = []
    for arm in (first, second):
        part = raw[raw.arm == arm]
        if part.empty:
            raise PairedError(f"no arm {arm!r}; the arms are {', '.join(raw.arm.unique())}")
        if part.seed.duplicated().any():
            raise PairedError(f"arm {arm!r} has seed {part.seed[part.seed.duplicated()].iloc[0]} twice")
        series.append(part.set_index("seed")[metric].astype(float))
    difference = (series[0] - series[1]).dropna().to_numpy()
    if len(difference) < 2:
        raise PairedError(f"{first} and {second} share {len(difference)} seed(s); a paired test needs two at least")
    result = stats.ttest_1samp(difference, 0)
    p = 1.0 if not difference.any() else float(result.pvalue)  # type: ignore[attr-defined]  # scipy's stubs lack it
    return {
        "pair": f"{first} - {second}",
        "n": len(difference),
        "mean": difference.mean(),
        **interval(difference),
        "p": p,
    }


def main(argv: list[str] | None = None) -> int:
    """The command; exit status 2 on bad input."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("raw", type=Path)
    p.add_argument("--metric", default="test_macro_avg_acc", help="a column that holds shares (default %(default)s)")
    p.add_argument("--pairs", default="", help="first:second,... arms to compare seed by seed")
    options = p.parse_args(argv)
    console = Console()
    try:
        raw = pd.read_csv(options.raw)
        absent = {"arm", "seed", options.metric} - set(raw)
        if absent:
            raise PairedError(f"{options.raw} has no column {sorted(absent)[0]!r}; its columns are {', '.join(raw)}")
        pairs = [pair.split(":") for pair in options.pairs.split(",") if pair]
        if any(len(pair) != 2 for pair in pairs):
            raise PairedError(f"--pairs {options.pairs}: expected first:second,first:second")
        differences = [paired_difference(raw, options.metric, *pair) for pair in pairs]
    except (OSError, PairedError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    table = Table("arm", "n", "mean %", "sd", "95 % interval", title=options.metric)
    for row in arm_means(raw, options.metric).to_dict("records"):
        table.add_row(row["arm"], str(row["n"]), *_cells(row))
    console.print(table)
    if differences:
        table = Table("difference", "n", "mean, points", "sd", "95 % interval", "p (paired t)", title=options.metric)
        for row in differences:
            table.add_row(str(row["pair"]), str(row["n"]), *_cells(row), f"{row['p']:.3f}")
        console.print(table)
    return 0


def _cells(row: dict) -> list[str]:
    return [f"{100 * row['mean']:.2f}", f"{100 * row['sd']:.2f}", f"{100 * row['low']:.2f} to {100 * row['high']:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
