"""Cache the logits of teachers and compare their ensembles: the work of the command cache_logits.py."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from trainables.engine.device import set_up_process
from trainables.inputs.clips import check_validated, filenames, load_clips
from trainables.single.command import configure, guarded
from trainables.single.run_folder import RunError, shown
from trainables.teachers.cached_logits import logits_file, teacher_logits
from trainables.teachers.ensemble import accuracies
from trainables.teachers.fine_tuning import quiet_transformers, validation_hash
from trainables.teachers.logits import read_manifest


def command(options: argparse.Namespace, rest: list[str]) -> int:
    """Cache the logits of the configured teachers, print the accuracies and return the exit status.

    `options` are the options of the command, `rest` its other arguments (flags of configuration keys and Hydra
    overrides).
    """

    def work(console: Console) -> int:
        config = configure(rest, options.storage)
        sources = [Path(source) for source in config.distill.teacher_ckpts]
        if not sources:
            raise RunError(
                "--teacher_ckpts is missing; expected at least one teacher: give folders of teachers or logits files, "
                "separated by commas"
            )
        check_validated(config, "this command measures the teachers on validation clips")
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
