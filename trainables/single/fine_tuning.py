"""Fine-tune one teacher and measure it: the work of the command finetune_teacher.py."""

import argparse
import shutil
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ascmodels.teachers import load_teacher, read_extra
from data import tau
from data.features import LogMel
from data.files import replace_folder
from trainables.config.flags import flags_to_overrides
from trainables.config.schema import TrialConfig, key_types
from trainables.engine.device import pick_device, set_up_process
from trainables.engine.evaluation import open_test_clips
from trainables.engine.loop import predict
from trainables.engine.metrics import Metrics, measure
from trainables.inputs.clips import SplitClips, filenames, load_clips
from trainables.single.command import configure, guarded
from trainables.single.run_folder import RunError, shown
from trainables.teachers.cached_logits import teacher_front_end, teacher_logits
from trainables.teachers.fine_tuning import fine_tuned_teacher, quiet_transformers, teacher_key


def command(options: argparse.Namespace, rest: list[str]) -> int:
    """Fine-tune the configured teacher, print its metrics and return the exit status.

    `options` are the options of the command, `rest` its other arguments (flags of configuration keys and Hydra
    overrides).
    """

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
            print_summary(config, out, clips, console, options.test)
            return 0
        folder = fine_tuned_teacher(config, progress=True)
        if out:
            replace_folder(out, lambda temporary: _copy(folder, temporary))
        print_summary(config, out or folder, clips, console, options.test)
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


def print_summary(config: TrialConfig, folder: Path, clips: SplitClips, console: Console, test: bool) -> None:
    """Print the metrics of the teacher in `folder` on `clips.validation`, and the flag with which a student uses it.

    With `test`, open the test split and print the metrics on it, too.
    """
    set_up_process(config.teacher.train.threads)
    part, extra = clips.validation, read_extra(folder)
    model = extra["model"]["config"]
    name = f"{model['family']} {model['name']}".strip()
    if len(part.rows):
        m = measure(teacher_logits(config, folder, filenames(part), progress=True).numpy(), part.labels, part.devices)
        lines = [
            f"{name}: epoch {extra['epoch']} of {extra['epochs']} was the best",
            f"validation: macro_avg_acc {m.macro_avg_acc:.1%}, loss {m.loss:.3f} ({len(part.rows)} clips)",
            "  scenes:  " + ", ".join(f"{scene} {a:.0%}" for scene, a in m.class_acc.items()),
            "  devices: " + ", ".join(f"{device} {a:.0%}" for device, a in m.device_acc.items()),
        ]
    else:
        lines = [f"{name}: trained for {extra['epochs']} epochs on all {extra['n_train']} clips, so not validated"]
    if test:
        m, n_clips = tested(config, folder, progress=True)
        lines.append(f"test: macro_avg_acc {m.macro_avg_acc:.1%}, loss {m.loss:.3f} ({n_clips} clips)")
    lines += [f"teacher: {shown(folder)}", f"use this teacher with --teacher_ckpts={shown(folder)}"]
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)


def tested(config: TrialConfig, folder: Path, progress: bool = False) -> tuple[Metrics, int]:
    """Open the test split; return the metrics of the teacher in `folder` on it, and the number of its clips."""
    teacher, extra = load_teacher(folder, tau.SCENES)
    network = teacher.to(pick_device(config.teacher.train.device))
    front_end = teacher_front_end(folder, extra)
    clips = open_test_clips(config, front_end.sample_rate, progress)
    log_mel = LogMel(front_end).to(next(network.parameters()).device)
    return measure(predict(network, clips, log_mel).numpy(), clips.labels, clips.devices), len(clips.rows)


def _copy(folder: Path, target: Path) -> None:
    for path in folder.iterdir():
        shutil.copy(path, target)
