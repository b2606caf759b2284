"""Train the networks of a study's front again, on all clips of its training
split.

    # the configurations of the front, three seeds each:
    python tune/refit.py runs/<study> --seeds 3
    # two points of the study; the study may be in an object store:
    python tune/refit.py s3://bucket/path/<study> --pick t0003/2 t0007/0

A search holds out a part of the training split for validation, so its
networks never learn from this part. A refit trains their configurations once
more: the same epochs, prune steps and numbers of channels, on all clips, from
scratch. Nothing is validated and nothing is chosen: the last epoch counts.
Teachers that the study has fine-tuned are fine-tuned again on all clips;
those of --teacher_ckpts are used as they are.

The results are in <study>/refit. Repeat the command to continue after an
interrupt; with more seeds or picks, it trains what is missing. Then
tune/evaluate.py measures these networks on the test split, too.
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "trainables" / "checkout.py"))

from tune.arguments import add_resources, positive


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 for success, 1 if a trial failed, 2 after an error, 130 after an
    interrupt."""
    words = sys.argv[1:] if argv is None else list(argv)
    options = parser().parse_args(words)
    from tune.commands import refit  # here, because --help must not wait for torch and Ray

    return refit.command(options, words)


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("study", help="folder of a complete study, or its URI in an object store")
    p.add_argument(
        "--pick",
        nargs="+",
        default=[],
        metavar="TRIAL/STEP",
        help="the points to train again, such as t0003/2, the network of trial t0003 after its prune step 2 (default: "
        "all points of the front)",
    )
    p.add_argument(
        "--seeds",
        type=positive(int),
        metavar="K",
        help="number of trainings of each configuration, with different seeds (default: 1)",
    )
    p.add_argument(
        "--allow-changes",
        action="store_true",
        help="continue even if code or data have changed since the start of the refit",
    )
    add_resources(p)
    return p


if __name__ == "__main__":
    sys.exit(main())
