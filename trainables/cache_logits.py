"""Cache the logits of teachers for the training and validation clips of a split,
and print the validation accuracy of the teachers and their ensembles.

    python trainables/cache_logits.py --teacher_ckpts="t1.ckpt,t2.ckpt"
    python trainables/cache_logits.py \\
        --teacher_ckpts="t1.ckpt,beats.safetensors" --subset=25

A teacher is a folder that finetune_teacher.py wrote (t1.ckpt), or a logits
file: logits and filenames of clips in the format that this command writes
(beats.safetensors). Only data.*, seed, frontend.sample_rate and
distill.teacher_* have an effect on the result.
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
    options, rest = p.parse_known_args(sys.argv[1:] if argv is None else argv)
    from trainables.single import caching  # here, because --help must not wait for torch

    return caching.command(options, rest)


if __name__ == "__main__":
    sys.exit(main())
