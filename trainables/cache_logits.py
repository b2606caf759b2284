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

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from trainables.engine.device import set_up_process
from trainables.inputs.clips import filenames, load_clips
from trainables.single.command import configure, guarded, parser
from trainables.single.run_folder import RunError, shown
from trainables.teachers.cached_logits import logits_file, teacher_logits
from trainables.teachers.ensemble import accuracies
from trainables.teachers.fine_tuning import quiet_transformers, validation_hash
from trainables.teachers.logits import read_manifest


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 on success, 2 for invalid input, 130 if interrupted."""
    p = parser(__doc__ or "")
    options, rest = p.parse_known_args(sys.argv[1:] if argv is None else argv)

    def work(console: Console) -> int:
        config = configure(rest, options.storage)
        sources = [Path(source) for source in config.distill.teacher_ckpts]
        if not sources:
            raise RunError(
                "--teacher_ckpts is missing; expected at least one teacher: give folders of teachers or logits files, "
                "separated by commas"
            )
        quiet_transformers()
        set_up_process(config.teacher.train.threads)
        clips = load_clips(config, config.frontend.sample_rate, progress=True)
        files = [s if s.is_file() else logits_file(config, s, progress=True) for s in sources]
        names = [*filenames(clips.train), *filenames(clips.validation)]
        logits = [teacher_logits(config, path, names)[len(clips.train.rows) :] for path in files]
        found = accuracies(logits, clips.validation.labels, config.distill.teacher_weights)
        table = Table("", Column("teacher", overflow="fold"), "accuracy", "greedy weight", "")
        ours = validation_hash(clips.validation)
        for k, (source, path) in enumerate(zip(sources, files, strict=True)):
            same_division = read_manifest(path).get("validation") in (ours, None)
            note = "" if same_division else "fine-tuned with other validation clips, so perhaps trained on these"
            table.add_row(
                str(k + 1), escape(shown(source)), f"{found.members[k]:.1%}", f"{found.selection.weights[k]:.2f}", note
            )
        table.add_section()
        for name, accuracy in found.ensembles.items():
            table.add_row(
                "", name, f"{accuracy:.1%}", "", "weights chosen on these clips: optimistic" if name == "greedy" else ""
            )
        console.print(table)
        chosen = found.selection
        steps = zip(chosen.picks[: chosen.kept], chosen.accuracies, strict=False)
        picks = ", ".join(f"{k + 1} ({accuracy:.1%})" for k, accuracy in steps)
        console.print(
            f"picks of the greedy selection, as teacher (accuracy of the ensemble so far): {picks}",
            highlight=False,
            soft_wrap=True,
        )
        console.print(f"files with the logits of {len(names)} clips (training and validation):", highlight=False)
        for path in files:
            console.print(f"  {escape(shown(path))}", highlight=False, soft_wrap=True)
        return 0

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
