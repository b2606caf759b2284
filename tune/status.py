"""Show the status of a study: progress, front, rejected samples, failed trials
with reasons, repeated epochs.

    # a running or an ended study:
    python tune/status.py runs/<study>
    # a study in an object store, with credentials from the environment:
    python tune/status.py s3://bucket/path/<study>
    # the status as one JSON object:
    python tune/status.py runs/<study> --json
    # write the study to a file that `optuna-dashboard study.journal` opens:
    python tune/status.py runs/<study> --export-optuna study.journal

The study's files (journal, study.json, points.csv) are only read, so a running
study is not disturbed.
"""

import argparse
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "trainables" / "checkout.py"))


def main(argv: list[str] | None = None) -> int:
    """Run the command; return exit status 0, 2 if the study does not exist or its files are damaged, or 130
    after an interrupt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="folder of the study, or its URI in an object store")
    parser.add_argument("--json", action="store_true", help="print the status as one JSON object instead of text")
    parser.add_argument(
        "--export-optuna", metavar="FILE", type=Path, help="write the study to FILE as an Optuna journal and exit"
    )
    options = parser.parse_args(argv)
    from tune.commands import status  # here, because --help must not wait for pandas

    return status.command(options)


if __name__ == "__main__":
    sys.exit(main())
