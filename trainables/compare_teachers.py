"""Compare the data efficiency of teachers: fine-tune each teacher on training
subsets of several sizes, and print the validation accuracy of the teachers and
their ensembles for each subset.

    python trainables/compare_teachers.py \\
        --teachers ast_small,vit_small,cnn_small --subsets 5,25,100
    python trainables/compare_teachers.py --teachers ast,vit,cnn \\
        --subsets 5,10,25,50,100 --seeds 3

--teachers takes names of files in trainables/config/groups/teacher/. Flags and
configuration keys apply to all teachers. Finished teachers are cached: if the
command was killed, repeat it, and it trains only the unfinished teachers.

A part of each subset is held out for validation, so a small subset has few
validation clips. The best epoch of a teacher and the weights of the ensemble
`greedy` are chosen on the same clips, so these accuracies are optimistic. With
--seeds above 1, each seed holds out other clips, and the table has means and
standard deviations over the seeds.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).with_name("checkout.py")))

from trainables.single.arguments import parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 on success, 2 for invalid input, 130 if interrupted."""
    p = parser(__doc__ or "")
    p.add_argument(
        "--teachers",
        type=_words,
        default=["ast_small", "vit_small", "cnn_small"],
        help="comma-separated teachers to compare (default: ast_small,vit_small,cnn_small)",
    )
    p.add_argument(
        "--subsets",
        type=_words,
        default=["5", "25", "100"],
        help="comma-separated subsets, in per cent of the training data (default: 5,25,100)",
    )
    p.add_argument("--seeds", type=int, default=1, help="number of seeds, which are 0, 1, ... (default: 1)")
    p.add_argument("--out", type=Path, help="csv file to write (default: <storage>/teachers.csv)")
    options, rest = p.parse_known_args(sys.argv[1:] if argv is None else argv)
    from trainables.single import comparing  # here, because --help must not wait for torch

    return comparing.command(options, rest)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


if __name__ == "__main__":
    sys.exit(main())
