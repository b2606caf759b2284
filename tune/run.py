"""Search for accurate, small acoustic scene classifiers.

    # start a new study in runs/:
    python tune/run.py --space kd_prune
    # start study X, continue it, or print its report if it is complete:
    python tune/run.py --space kd_prune --name X --resume auto
    # search your own space, with these settings for all trials:
    python tune/run.py --space my_space.yaml \\
        --subset=25 train.epochs=20 profile=full
    # estimate the cost without training:
    python tune/run.py --space kd_prune --dry-run

Settings of all trials are flags of the DCASE baseline (--kd_alpha,
--batch_size, ...) or Hydra overrides (key=value).
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "trainables" / "checkout.py"))

from tune.arguments import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 for success, 1 if no network was measured (with --dry-run: if no
    sample fits the limits), 2 after an error, 130 after an interrupt."""
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        parser(__doc__ or "").parse_args(["--help"])  # exits
    from tune.commands import search  # here, because --help must not wait for torch and Ray

    return search.command(words)


if __name__ == "__main__":
    sys.exit(main())
