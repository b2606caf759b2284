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
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).with_name("checkout.py")))

from rich.console import Console
from rich.markup import escape

from ascmodels.teachers import read_extra
from data.files import replace_folder
from trainables.config.flags import flags_to_overrides
from trainables.config.schema import TrialConfig, key_types
from trainables.engine.device import set_up_process
from trainables.engine.metrics import measure
from trainables.inputs.clips import SplitClips, filenames, load_clips
from trainables.single.command import configure, guarded, parser
from trainables.single.run_folder import RunError, shown
from trainables.teachers.cached_logits import teacher_logits
from trainables.teachers.fine_tuning import fine_tuned_teacher, quiet_transformers, teacher_key


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 on success, 2 for invalid input, 130 if interrupted."""
    p = parser(__doc__ or "")
    p.add_argument("--out", type=Path, help="folder to copy the teacher to (default: it stays in the cache)")
    options, rest = p.parse_known_args(sys.argv[1:] if argv is None else argv)

    def work(console: Console) -> int:
        config = configure(rest, options.storage)
        for key in (override.split("=")[0] for override in flags_to_overrides(rest)):
            if f"teacher.{key}" in key_types():
                console.print(f"note: {key} has no effect on the teacher; set teacher.{key} instead", highlight=False)
        quiet_transformers()
        clips = load_clips(config, config.teacher.frontend.sample_rate, progress=True)
        out = options.out.expanduser().resolve() if options.out else None
        if out and holds_teacher(out, teacher_key(config, clips)):
            console.print(
                f"{escape(shown(out))} has this teacher already; nothing is trained",
                highlight=False,
                soft_wrap=True,
            )
            print_summary(config, out, clips, console)
            return 0
        folder = fine_tuned_teacher(config, progress=True)
        if out:
            replace_folder(out, lambda temporary: _copy(folder, temporary))
        print_summary(config, out or folder, clips, console)
        return 0

    return guarded(work)


def holds_teacher(out: Path, key: str) -> bool:
    """Return True if the folder `out` has the teacher with the hash `key` (`teacher_key`), False if it does not exist.

    Raise RunError if `out` exists but has another teacher or none.
    """
    if not out.exists():
        return False
    if not (out / "teacher.json").is_file():
        raise RunError(
            f"--out {shown(out)} exists and has no teacher.json; expected a folder that does not exist, or one in "
            "which this command saved the same teacher: choose another folder"
        )
    if read_extra(out).get("key") != key:
        raise RunError(
            f"--out {shown(out)} has another teacher (of another model, training or clips); expected a folder that "
            "does not exist, or one in which this command saved the same teacher: choose another folder"
        )
    return True


def print_summary(config: TrialConfig, folder: Path, clips: SplitClips, console: Console) -> None:
    """Print the metrics of the teacher in `folder` on `clips.validation`, and the flag with which a student uses it."""
    set_up_process(config.teacher.train.threads)
    part, extra = clips.validation, read_extra(folder)
    m = measure(teacher_logits(config, folder, filenames(part), progress=True).numpy(), part.labels, part.devices)
    model = extra["model"]["config"]
    lines = [
        f"{model['family']} {model['name']}".strip() + f": epoch {extra['epoch']} of {extra['epochs']} was the best",
        f"validation: macro_avg_acc {m.macro_avg_acc:.1%}, loss {m.loss:.3f} ({len(part.rows)} clips)",
        "  scenes:  " + ", ".join(f"{scene} {a:.0%}" for scene, a in m.class_acc.items()),
        "  devices: " + ", ".join(f"{device} {a:.0%}" for device, a in m.device_acc.items()),
        f"teacher: {shown(folder)}",
        f"use this teacher with --teacher_ckpts={shown(folder)}",
    ]
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)


def _copy(folder: Path, target: Path) -> None:
    for path in folder.iterdir():
        shutil.copy(path, target)


if __name__ == "__main__":
    sys.exit(main())
