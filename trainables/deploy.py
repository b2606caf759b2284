"""Export a student with `torch.export`, and as fp32, fp16 and int8 ONNX files;
measure accuracy, size and latency of each form.

    python trainables/deploy.py --ckpt_id=<id>  # a run of run_training.py
    # any network of a study or run
    python trainables/deploy.py --checkpoint=runs/<study>/experiments/<id>/step2
    # also an int8 network with quantisation-aware fine-tuning
    python trainables/deploy.py --ckpt_id=<id> --qat_epochs 5

Every form is measured on the same validation clips; int8 is calibrated on
training clips. The exported files, and the results in deploy.json and
deploy.csv, are written to deploy/<checkpoint>/ in the run's folder. Results of
int8 hold for CPUs like the one on which they were measured.
The configuration comes from the run's info.json or, without this file, from
the checkpoint; flags override it. Only these keys have an effect: data.*, seed;
with --qat_epochs also augment.*, distill.* (except feature_weight),
teacher.train.device, and of train.*: batch_size, accumulate, warmup,
weight_decay, label_smoothing, device.
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
    p.add_argument("--ckpt_id", help="id of the run whose last checkpoint is exported")
    p.add_argument("--checkpoint", type=Path, help="folder of the checkpoint to export, instead of --ckpt_id")
    p.add_argument("--out", type=Path, help="folder to write or replace (default: deploy/<checkpoint> of the run)")
    p.add_argument("--qat_epochs", type=int, default=0, help="epochs of quantisation-aware training (default: 0, none)")
    p.add_argument("--qat_lr", type=float, default=1e-4, help="peak learning rate with --qat_epochs (default: 1e-4)")
    p.add_argument("--calibration_clips", type=int, default=256, help="training clips to calibrate int8 (default: 256)")
    p.add_argument("--latency_runs", type=int, default=200, help="timed runs of each form on one clip (default: 200)")
    options, rest = p.parse_known_args(sys.argv[1:] if argv is None else argv)
    from trainables.single import exporting  # here, because --help must not wait for torch

    return exporting.command(options, rest)


if __name__ == "__main__":
    sys.exit(main())
