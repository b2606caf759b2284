"""Prune a trained student step by step, retrain it after each step, and compare
the result with control trainings.

    python trainables/progressive_prune.py --config cubic --base_ckpt last.ckpt
    python trainables/progressive_prune.py --config my_plan.yaml \\
        --base_ckpt <run id or folder> --controls dense
    python trainables/progressive_prune.py --base_ckpt last.ckpt --n_steps=3 \\
        --target_macs=8e6 --criterion=taylor
    # continue a run that was killed
    python trainables/progressive_prune.py --resume <id>

A pruning plan is a YAML file of `prune` keys; it may have other sections
(`train:`, `distill:`). The plans in trainables/config/groups/prune/ are
available by name. The value of a key comes from a flag, else from the plan,
else from the training of the base (the student to prune). The keys student.*
and frontend.* must have the values of the base. If the configuration of the
base is known, seed, data.subset and data.validation_share must not be changed.
Retraining uses prune.epochs and prune.lr; only `dense` uses --epochs and --lr.

Controls (--controls) are trainings to compare with progressive pruning:
    one_shot    the base pruned once to the same size, retrained for as many
                epochs as all steps together
    dense       a network of the final widths trained from scratch for as many
                epochs as base and retraining together
    random      the same plan, with channels chosen at random

To continue a killed run from its last saved epoch, repeat the command or use
--resume. prune_steps.csv and prune_steps.json have a row for each network that
was measured, in its deployed form: branches fused into one convolution with
bias, batch normalisation kept, parameters rounded to fp16 (not with
limits.precision=fp32). The rounding to int8 is not simulated.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).with_name("checkout.py")))

from trainables.single.arguments import BASES, CONTROLS, parser
from trainables.single.plan_file import SHIPPED


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 on success, 2 for invalid input, 130 if interrupted."""
    words = sys.argv[1:] if argv is None else argv
    p = parser(__doc__ or "")
    plans = ", ".join(f.stem for f in SHIPPED.glob("*.yaml"))
    p.add_argument("--config", help=f"pruning plan: a YAML file, or one of {plans}")
    p.add_argument("--base_ckpt", help=f"student to prune: {BASES}")
    p.add_argument("--controls", default="", help=f"comma-separated controls: {','.join(CONTROLS)} (default: none)")
    p.add_argument("--resume", metavar="ID", help="id of a killed run to continue")
    p.add_argument("--new", action="store_true", help="start a new run even if this command was run before")
    options, rest = p.parse_known_args(words)
    from trainables.single import pruning  # here, because --help must not wait for torch

    return pruning.command(options, rest, words)


if __name__ == "__main__":
    sys.exit(main())
