"""Compare the arms (variants) of an experiment over the same seeds.

    python -m analysis.paired analysis/studies/training/raw.csv --metric test_macro_avg_acc \\
        --pairs rep_kd:rep_ce,progressive:one_shot

The csv file has one row per arm and seed. The first printed table shows the
mean of the metric and its 95 % interval for each arm. The second table shows
the difference of each pair of arms (first minus second) with a paired t-test.
Arms with the same seed use the same division of the data into training and
validation, so differences are computed per seed. A difference is significant
if its interval does not contain 0; with few seeds, only large ones are.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    from data.signals import end_at_once

    end_at_once()  # SIGINT and SIGTERM during the imports below

from data.signals import INTERRUPTED, interruptible
from data.untrusted import Terminal


def main(argv: list[str] | None = None) -> int:
    """Run the command; return exit status 0, 2 for invalid input, or 130 after an interrupt."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("raw", type=Path, help="csv file with the columns arm, seed and the column of --metric")
    p.add_argument(
        "--metric", default="test_macro_avg_acc", help="column to compare, with values in [0, 1] (default: %(default)s)"
    )
    p.add_argument(
        "--pairs", default="", help="pairs of arms to compare, written first:second,first:second (default: none)"
    )
    options = p.parse_args(argv)
    from analysis.arms import print_tables  # here, because --help must not wait for pandas and SciPy

    console = Terminal()
    try:
        with interruptible():
            return print_tables(options, console)
    except KeyboardInterrupt:
        console.print("interrupted; the command changes no file: repeat it")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
