"""Train, evaluate and reproduce one student. The flags are those of the DCASE
2024 baseline; Ray is not needed.

    python trainables/run_training.py --subset=5 --batch_size=8 --num_workers=0
    python trainables/run_training.py --subset=100 --repconv True \\
        --batch_size=128
    python trainables/run_training.py --subset=100 --kd_alpha=0.6 \\
        --kd_temp=3.0 --teacher_ckpts="t1.ckpt,t2.ckpt"
    # continue a run that was killed
    python trainables/run_training.py --ckpt_id=<id>
    # measure a run on test again; predict the evaluation set
    python trainables/run_training.py --evaluate --ckpt_id=<id>

By default, the student is a CP-Mobile, trained on the labels alone. With
--repconv True, it is a Rep-Mobile. --kd_alpha below 1 turns on distillation
from --teacher_ckpts; if these are not given, a teacher is fine-tuned first.
Training uses the training split only, a part of which is held out for
validation. At the end, the last epoch's network is measured once on test.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).with_name("checkout.py")))

from trainables.outputs.records import PROJECT
from trainables.single.arguments import parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 on success, 2 for invalid input, 130 if interrupted.

    With --evaluate, the status is 1 if a metric differs from the stored one.
    """
    words = sys.argv[1:] if argv is None else argv
    p = parser(__doc__ or "")
    p.add_argument("--evaluate", action="store_true", help="measure a run again; predict the evaluation set")
    p.add_argument(
        "--ckpt_id", help="id of the run to continue or evaluate: its folder's name in <storage>/experiments"
    )
    p.add_argument("--experiment_name", default="", help="name of the run in W&B (default: its id)")
    p.add_argument("--project_name", default=PROJECT, help=f"W&B project (default: {PROJECT})")
    p.add_argument("--no_test", action="store_true", help="do not measure the network on the test split")
    options, rest = p.parse_known_args(words)
    from trainables.single import training  # here, because --help must not wait for torch

    return training.command(options, rest, words)


if __name__ == "__main__":
    sys.exit(main())
