"""Fine-tune several teachers on several subsets: the work of the command compare_teachers.py."""

import argparse
from collections.abc import Sequence
from statistics import mean, stdev

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from tqdm import tqdm

from data.config.dataset import SUBSETS
from data.files import make_folder
from trainables.config.compose import CONFIG_DIR
from trainables.config.schema import TrialConfig
from trainables.engine.device import set_up_process
from trainables.inputs.clips import check_validated, filenames, load_clips
from trainables.outputs.records import write_rows
from trainables.single.command import configure, guarded
from trainables.single.run_folder import RunError, shown
from trainables.teachers.cached_logits import teacher_logits
from trainables.teachers.ensemble import accuracies
from trainables.teachers.fine_tuning import fine_tuned_teacher, quiet_transformers

CLIPS = ("train_clips", "validation_clips")


def command(options: argparse.Namespace, rest: list[str]) -> int:
    """Fine-tune all teachers on all subsets, print and write the accuracies, and return the exit status.

    `options` are the options of the command, `rest` its other arguments (flags of configuration keys and Hydra
    overrides).
    """

    def work(console: Console) -> int:
        check(options, rest)
        out = (options.out or options.storage / "teachers.csv").expanduser().resolve()
        make_folder(out.parent)
        quiet_transformers()
        rows, steps = [], len(options.subsets) * options.seeds * len(options.teachers)
        with tqdm(total=steps, desc="teachers", unit="teacher", position=0) as bar:
            for subset in options.subsets:
                for seed in range(options.seeds):
                    typed = [*rest, f"data.subset={subset}", f"seed={seed}"]
                    configs = {n: configure([f"teacher={n}", *typed], options.storage) for n in options.teachers}
                    for config in configs.values():
                        check_validated(config, "this command compares teachers on validation clips")
                    rows.append(compare(configs, bar))
                    write_rows(out, summary(rows))
        print_summary(summary(rows), console)
        cache = options.storage.expanduser().resolve() / "cache"
        console.print(escape(f"table: {shown(out)}; cached teachers: {shown(cache)}"), highlight=False, soft_wrap=True)
        return 0

    return guarded(work)


def check(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raise RunError if the value of an option in `options` is invalid, or if `rest` sets teacher, subset or seed.

    `rest` are the other command-line arguments (flags and Hydra overrides). They must not set these three keys, because
    the options --teachers, --subsets and --seeds set them.
    """
    for word in rest:
        name = word.lstrip("-").partition("=")[0]
        if name in ("teacher", "subset", "data.subset", "seed"):
            name = name.rpartition(".")[2]
            raise RunError(f"{word}: this command sets the {name} itself; expected --{name}s: use this option instead")
    known = sorted(path.stem for path in (CONFIG_DIR / "teacher").glob("*.yaml"))
    for name in options.teachers:
        if name not in known:
            raise RunError(f"--teachers: unknown teacher {name!r}; expected any of {', '.join(known)}: correct it")
    if len(set(options.teachers)) < max(1, len(options.teachers)) or not options.teachers:
        raise RunError(
            f"--teachers {','.join(options.teachers)}: expected one or more names, each once: correct the list"
        )
    for subset in options.subsets:
        if subset not in map(str, SUBSETS):
            choices = ", ".join(map(str, SUBSETS))
            raise RunError(f"--subsets: unknown subset {subset!r}; expected any of {choices}: correct it")
    if not options.subsets or options.seeds < 1:
        raise RunError(
            f"--subsets {','.join(options.subsets)} --seeds {options.seeds}: expected at least one subset "
            "and --seeds of at least 1: correct the option"
        )


def compare(configs: dict[str, TrialConfig], bar: tqdm) -> dict[str, float]:
    """Fine-tune one teacher for each configuration in `configs`; return a row with their validation accuracies.

    `configs` maps the name of each teacher to its configuration; all have the same subset and seed. The row has the
    keys subset, seed, train_clips, validation_clips, and a key with the accuracy of each teacher and of each kind of
    ensemble (logits, probabilities, greedy). The progress bar `bar` advances by one for each teacher.
    """
    logits, config = [], next(iter(configs.values()))
    set_up_process(config.teacher.train.threads)
    clips = load_clips(config, config.frontend.sample_rate)
    for name, config in configs.items():
        bar.set_postfix_str(f"{name} on split{config.data.subset}, seed {config.seed}")
        folder = fine_tuned_teacher(config, progress=True)
        logits.append(teacher_logits(config, folder, filenames(clips.validation)))
        bar.update()
    found = accuracies(logits, clips.validation.labels)
    row = {"subset": config.data.subset, "seed": config.seed}
    row |= dict(zip(CLIPS, (len(clips.train.rows), len(clips.validation.rows)), strict=True))
    return row | dict(zip(configs, found.members, strict=True)) | found.ensembles


def summary(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return one row for each subset, with the means over the seeds of `rows`, the results of `compare`.

    If there are several seeds, the keys `<name>_std` have the standard deviations of the accuracies.
    """
    table = []
    for subset in dict.fromkeys(row["subset"] for row in rows):
        group = [row for row in rows if row["subset"] == subset]
        line = {"subset": subset, "seeds": len(group)}
        for name in (n for n in group[0] if n not in ("subset", "seed")):
            values = [row[name] for row in group]
            line[name] = mean(values)
            if len(group) > 1 and name not in CLIPS:
                line[f"{name}_std"] = stdev(values)
        table.append(line)
    return table


def print_summary(rows: Sequence[dict[str, float]], console: Console) -> None:
    """Print `rows`, the result of `summary`, as a table."""
    names = [n for n in rows[0] if n not in ("subset", "seeds", *CLIPS) and not n.endswith("_std")]
    columns = ("subset", "clips", *(Column(n, overflow="fold") for n in names))
    table = Table(*columns, title="validation macro accuracy", box=SIMPLE, padding=(0, 1, 0, 0))
    for row in rows:
        cells = [f"{row[n]:.1%}" + (f" ± {row[f'{n}_std']:.1%}" if f"{n}_std" in row else "") for n in names]
        table.add_row(f"{row['subset']} %", " + ".join(f"{row[c]:.0f}" for c in CLIPS), *cells)
    console.print(table)
