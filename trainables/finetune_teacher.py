"""Fine-tune one teacher on the training clips of a split and keep the weights of
the epoch with the highest validation accuracy.

    python trainables/finetune_teacher.py teacher=vit_small --out t1.ckpt
    python trainables/finetune_teacher.py teacher=cnn \\
        --subset=25 teacher.model.pretrained=/models/lite0 --out t2.ckpt
    python trainables/finetune_teacher.py teacher=ast \\
        teacher.train.epochs=10 teacher.train.device=cuda

`teacher=` names a file of trainables/config/groups/teacher/: ast, vit, cnn
(pretrained, for a GPU), ast_small, vit_small, cnn_small (from scratch, for a
CPU). The same teacher on the same clips is trained only once. A killed run
starts again from the first epoch. Only data.*, seed and teacher.* have an
effect: --epochs, --lr, ... are those of the student, so write
teacher.train.epochs=10.
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
    p.add_argument("--out", type=Path, help="folder to copy the teacher to (default: it stays in the cache)")
    p.add_argument(
        "--test",
        action="store_true",
        help="measure the teacher on the test split, too: only at the end, for a teacher that is chosen already",
    )
    options, rest = p.parse_known_args(sys.argv[1:] if argv is None else argv)
    from trainables.single import fine_tuning  # here, because --help must not wait for torch

    return fine_tuning.command(options, rest)


if __name__ == "__main__":
    sys.exit(main())
