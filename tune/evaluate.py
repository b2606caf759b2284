"""Measure the networks on the Pareto front of a complete study on the test
split.

    # the study may also be s3://bucket/path/<study>:
    python tune/evaluate.py runs/<study>

The deployed network of each front point is loaded from its checkpoint and
measured on the clips of the test split. If a point is a mean over replicates,
the network of every complete replicate is measured. <study>/test.csv gets a
row for each network. front.csv, the printed table and the report show the mean
over replicates, its standard deviation and its 95 % interval. A network
that has a row already is not measured again.
"""

import argparse
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "trainables" / "checkout.py"))


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status: 0, 2 after an error, or 130 after an interrupt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="folder of a complete study, or its URI in an object store")
    study = parser.parse_args(argv).study
    from tune.commands import evaluate  # here, because --help must not wait for torch

    return evaluate.command(study)


if __name__ == "__main__":
    sys.exit(main())
