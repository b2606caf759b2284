"""Import the logits of other projects as a teacher. Their rows follow the order
of a csv file; the result is keyed by filename.

    python trainables/import_logits.py predictions_1.pt predictions_2.pt \\
        --order split25.csv --subset=25 --out beats.safetensors
    python trainables/run_training.py --subset=25 \\
        --teacher_ckpts=beats.safetensors --kd_alpha=0.17 --kd_temp=2

A file has one tensor [clips, 10] of torch.save, or one array of numpy.save,
with the scenes in alphabetical order. The csv file has a column filename.
Several files are averaged. The accuracy on the training and on the validation
clips is printed: public logits usually come from teachers that have learned
from both, so distill.ensemble=greedy, which chooses on the validation clips,
refuses them.
"""

import argparse
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).with_name("checkout.py")))

from trainables.single.arguments import parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 on success, 2 for invalid input, 130 if interrupted."""
    p = parser(__doc__ or "")
    p.add_argument("files", nargs="+", type=Path, metavar="FILE", help="logits to average: .pt or .npy")
    p.add_argument("--order", type=Path, required=True, metavar="CSV", help="csv file with the filename of each row")
    p.add_argument("--out", type=Path, required=True, help="logits file to write, such as beats.safetensors")
    words = sys.argv[1:] if argv is None else argv
    options, rest = p.parse_known_args(words)
    # argparse reads Hydra overrides (key=value) as files
    rest += [str(file) for file in options.files if "=" in str(file)]
    options.files = [file for file in options.files if "=" not in str(file)]
    return run(options, rest)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Import the logits as the command line asks; return the exit status."""
    from rich.console import Console
    from rich.markup import escape

    from trainables.inputs.clips import read_parts
    from trainables.single.command import configure, guarded
    from trainables.single.run_folder import RunError, shown
    from trainables.teachers.imported import CHANCE, import_logits

    def work(console: Console) -> int:
        if not options.files:
            raise RunError("no file of logits is given; expected at least one: name it before the options")
        config = configure(rest, options.storage, ["distill.kd_alpha=1"])
        parts = read_parts(config)[1]
        out = options.out.expanduser().resolve()
        found = import_logits(options.files, options.order, parts, out)
        sizes = {"training": len(parts.train), "validation": len(parts.validation)}
        for part, accuracy in found.items():
            console.print(f"{part}: macro_avg_acc {accuracy:.1%} ({sizes[part]} clips)", highlight=False)
        if max(found.values()) < 2 * CHANCE:
            console.print(
                f"[yellow]warning: this is hardly better than chance ({CHANCE:.0%}): the csv file may have another "
                "order, or the scenes may not be in alphabetical order[/yellow]",
                highlight=False,
                soft_wrap=True,
            )
        console.print(f"use these logits with --teacher_ckpts={escape(shown(out))}", highlight=False, soft_wrap=True)
        return 0

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
