"""Functions that the commands in trainables/ share: configuration, data, training with a progress bar, errors.

These commands train, prune, fine-tune or export networks without Ray (run_training.py, progressive_prune.py, ...).
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from tqdm import tqdm

from ascmodels.checkpoint import CheckpointError, save_student
from ascmodels.config.prune import PruningError
from ascmodels.nessi import UncountableError
from ascmodels.teachers import read_extra
from data.files import make_folder, mend_folder, replace_folder
from data.impulse import impulses_for
from data.signals import INTERRUPTED, interruptible
from data.tau import DatasetError, resolved
from data.untrusted import Terminal, printable
from trainables.config.compose import compose
from trainables.config.distill import described
from trainables.config.flags import flags_to_overrides, keep_epochs
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.deployment import describe_use
from trainables.engine.device import out_of_memory, training_device
from trainables.engine.loop import TrainingDiverged
from trainables.inputs.clips import load_clips, with_enough_epochs
from trainables.outputs.disk import disk_message
from trainables.outputs.records import point_dict, point_row, write_rows
from trainables.outputs.tracking import Tracker
from trainables.single.run_folder import LAST, RunError, shown
from trainables.teachers.fine_tuning import fine_tuned_teacher, validation_hash
from trainables.teachers.logits import read_manifest
from trainables.trial.data import TrialData, load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial

USER_ERRORS = (
    *(CheckpointError, ConfigError, DatasetError, PruningError, RunError, TrainingDiverged, UncountableError),
)


def configure(words: Sequence[str], storage: Path, default: Sequence[str] = ()) -> TrialConfig:
    """Return the configuration that the command-line arguments `words` define.

    `words` are flags (`--subset=5`) and Hydra overrides (`profile=full`). They take precedence over the Hydra overrides
    in `default`. The waveforms, teachers and logits that the command caches are in `<storage>/cache`. Paths of the data
    set and of teachers become absolute. Raise ConfigError or DatasetError for an invalid argument, or if a teacher, the
    data set, the impulse responses or the device does not exist.
    """
    cache = flags_to_overrides([f"--cache_dir={storage.expanduser().resolve() / 'cache'}"])
    typed = flags_to_overrides(words)
    config = compose([*cache, *default, *keep_epochs(typed), *typed])
    try:
        training_device(config.train)
    except ValueError as error:
        raise ConfigError(f"this machine cannot train the configuration: {error}") from error
    impulses_for(config.augment, config.frontend.sample_rate)  # raises if the impulse responses are missing
    teachers = tuple(str(Path(t).expanduser().resolve()) for t in config.distill.teacher_ckpts)
    absent = [t for t in teachers if not Path(t).exists()]
    if absent:
        raise ConfigError(
            f"distill.teacher_ckpts: {absent[0]} does not exist; expected a teacher's folder or a logits file: correct "
            f"the path, or make a teacher with python trainables/finetune_teacher.py --out {Path(absent[0]).name}"
        )
    return replace(config, data=resolved(config.data), distill=replace(config.distill, teacher_ckpts=teachers))


def prepare(config: TrialConfig, console: Console) -> tuple[TrialConfig, TrialData]:
    """Load the data of `config`, print a summary, and return (configuration for the training, loaded data).

    The returned configuration is `config` with two changes. Numbers of epochs that give fewer optimiser steps than
    train.min_steps (student) or teacher.train.min_steps (teacher) are raised. If distillation needs a teacher and
    distill.teacher_ckpts is empty, a teacher is fine-tuned, and distill.teacher_ckpts names the teacher's folder.
    """
    clips = load_clips(config, config.frontend.sample_rate, progress=True)
    train, validation = len(clips.train.rows), len(clips.validation.rows)
    console.print(
        f"data: split{config.data.subset}, "
        + (
            f"{train} training and {validation} validation clips (held out by location)"
            if validation
            else f"all {train} clips are training clips, so nothing is validated"
        ),
        highlight=False,
        soft_wrap=True,
    )
    config = with_enough_epochs(config, train)
    for note in clips.notes:
        console.print(f"  note: {escape(note)}", highlight=False, soft_wrap=True)
    if config.distill.taught and not config.distill.teacher_ckpts:
        folder = str(fine_tuned_teacher(config, progress=True))
        config = replace(config, distill=replace(config.distill, teacher_ckpts=(folder,)))
    if config.distill.taught:
        console.print(described(config.distill), highlight=False, soft_wrap=True)
    for source in map(Path, config.distill.teacher_ckpts if config.distill.taught else ()):
        console.print(f"teacher: {escape(shown(source))}", highlight=False, soft_wrap=True)
        metadata = read_manifest(source) if source.is_file() else read_extra(source)
        if validation and metadata.get("validation") not in (validation_hash(clips.validation), None):
            console.print(
                "  note: this teacher was fine-tuned on another division of the clips into training and validation; "
                "it may have been trained on this run's validation clips",
                soft_wrap=True,
            )
    return config, load_trial_data(config, progress=True)


def guarded(work: Callable[[Console], int]) -> int:
    """Run `work`, the body of a command, and return the exit status of the command.

    `work` gets a console for its output and returns the exit status. If `work` raises an error of `USER_ERRORS`, an
    OSError, or an error because the memory is full, a message is printed without a traceback, and the status is 2.
    After Ctrl-C or SIGTERM, the status is 130, and one line on how to continue is printed: the text of the
    KeyboardInterrupt that `work` raised (`resumed_by`) or, if it has no text, the advice to repeat the command.
    """
    console = Terminal()
    try:
        with interruptible():
            return work(console)
    except (*USER_ERRORS, OSError, MemoryError, RuntimeError) as error:  # OSError: e.g. a full disk
        message = out_of_memory(error) or disk_message(error)
        if message == str(error) and not isinstance(error, (*USER_ERRORS, OSError)):
            raise
        console.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt as interrupt:
        how = str(interrupt) or "repeat the command; finished parts of its work are in the cache"
        console.print(f"interrupted; {escape(how)}", highlight=False, soft_wrap=True)
        return INTERRUPTED


@contextmanager
def resumed_by(command: str) -> Iterator[None]:
    """If Ctrl-C or SIGTERM ends the `with` block, tell the user that the command line `command` continues the run.

    Use it only in the function `work` that is passed to `guarded`: this context manager raises a KeyboardInterrupt with
    the text for the user, and `guarded` prints it.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"to continue the run from its last finished epoch:\n  {command}") from None


def drive(trial: Trial, label: str, tracker: Tracker | None = None, on_point: Callable[[], None] | None = None) -> None:
    """Train `trial` to its end, with a progress bar that is named `label` and shows the remaining time.

    If `trial.folder` has a saved state, the training continues from this state. After each epoch, the state and
    results.csv in this folder are replaced, and the metrics are logged to W&B by `tracker` (None: no W&B). After each
    measured network (point), `on_point` is called (None: nothing). At the end, points.csv and the last network
    (last.ckpt) are written to the folder.
    """
    folder = trial.folder
    make_folder(folder)
    mend_folder(folder / "state")
    curves, rows = folder / "results.csv", list[dict[str, Any]]()
    if (folder / "state").is_dir():
        trial.load(folder / "state")
        # results.csv is written before the state, so it may be one epoch ahead; its other rows are kept unchanged
        saved = csv.DictReader(curves.read_text().splitlines() if curves.is_file() else [])
        rows = [row for row in saved if int(row["epochs"]) <= trial.epochs]
    with tqdm(total=trial.total_epochs, initial=trial.epochs, desc=printable(label), unit="epoch") as bar:
        for record in run_trial(trial):
            values = {k: v for k, v in asdict(record).items() if k not in ("point", "finished")}
            rows.append(values)
            write_rows(curves, rows)
            replace_folder(folder / "state", trial.save)
            if tracker:
                tracker.log(values, record.epochs)
                if record.point:
                    named = {f"step{record.point.step}/{k}": v for k, v in point_dict(record.point).items()}
                    tracker.summary(named)
            if record.point and on_point:
                on_point()
            accuracy = record.val_macro_avg_acc
            shown_accuracy = {} if accuracy is None else {"val_macro_avg_acc": f"{accuracy:.3f}"}
            bar.set_postfix({"loss": f"{record.train_loss:.3f}", **shown_accuracy})
            bar.update(record.epochs - bar.n)
    name = folder.name
    points = [point_row(name, "complete", ".", point_dict(p), {}) for p in trial.points]
    write_rows(folder / "points.csv", points)
    metadata = {"point": point_dict(trial.points[-1]), "config": trial.config.flat()}
    save_student(folder / LAST, trial.model, describe_use(trial.config) | metadata)
