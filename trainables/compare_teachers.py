"""Data efficiency of teachers: the validation accuracy of teachers and ensembles
for each training subset.

    python trainables/compare_teachers.py \\
        --teachers ast_small,vit_small,cnn_small --subsets 5,25,100
    python trainables/compare_teachers.py --teachers ast,vit,cnn \\
        --subsets 5,10,25,50,100 --seeds 3

Teachers are files of trainables/config/groups/teacher/; other arguments apply
to all of them. Each is trained once on each subset. Results are cached, so a
killed run continues with the teacher that it was training. Each subset is
validated on its own held-out fifth, which is small for a small subset; best
epochs and greedy weights are also chosen on it. With --seeds, each seed
divides the clips differently, and means and standard deviations are printed.
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).with_name("checkout.py")))

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

from data.files import make_folder
from data.tau import SUBSETS
from trainables.config.compose import CONFIG_DIR
from trainables.config.schema import TrialConfig
from trainables.engine.device import set_up_process
from trainables.inputs.clips import filenames, load_clips
from trainables.outputs.records import write_rows
from trainables.single.command import configure, guarded, parser
from trainables.single.run_folder import RunError, shown
from trainables.teachers.cached_logits import teacher_logits
from trainables.teachers.ensemble import accuracies
from trainables.teachers.fine_tuning import fine_tuned_teacher, quiet_transformers

CLIPS = ("train_clips", "validation_clips")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 on success, 2 for invalid input, 130 if interrupted."""
    p = parser(__doc__ or "")
    p.add_argument(
        "--teachers",
        type=_words,
        default=["ast_small", "vit_small", "cnn_small"],
        help="comma-separated names of teachers (default: ast_small,vit_small,cnn_small)",
    )
    p.add_argument(
        "--subsets",
        type=_words,
        default=["5", "25", "100"],
        help="comma-separated subsets, in per cent of the training data (default: 5,25,100)",
    )
    p.add_argument("--seeds", type=int, default=1, help="number of seeds; they are 0, 1, ... (default: 1)")
    p.add_argument("--out", type=Path, help="csv file to write (default: <storage>/teachers.csv)")
    options, rest = p.parse_known_args(sys.argv[1:] if argv is None else argv)

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
                    rows.append(compare(configs, bar))
                    write_rows(out, summary(rows))
        print_summary(summary(rows), console)
        cache = options.storage.expanduser().resolve() / "cache"
        console.print(f"written to {shown(out)}; the teachers are in {shown(cache)}", highlight=False, soft_wrap=True)
        return 0

    return guarded(work)


def check(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raise RunError for invalid options, or a word in `rest` that sets a single teacher, subset or seed."""
    for word in rest:
        name = word.lstrip("-").partition("=")[0]
        if name in ("teacher", "subset", "data.subset", "seed"):
            raise RunError(f"{word}: this command compares several; use --{name.rpartition('.')[2]}s")
    known = sorted(path.stem for path in (CONFIG_DIR / "teacher").glob("*.yaml"))
    for name in options.teachers:
        if name not in known:
            raise RunError(f"--teachers: unknown teacher {name!r}; expected some of {', '.join(known)}")
    if len(set(options.teachers)) < max(1, len(options.teachers)) or not options.teachers:
        raise RunError(f"--teachers {','.join(options.teachers)}: expected one or more names, each once")
    for subset in options.subsets:
        if subset not in map(str, SUBSETS):
            raise RunError(f"--subsets: unknown subset {subset!r}; expected some of {', '.join(map(str, SUBSETS))}")
    if not options.subsets or options.seeds < 1:
        raise RunError(
            f"--subsets {','.join(options.subsets)} --seeds {options.seeds}: expected at least one subset and one seed"
        )


def compare(configs: dict[str, TrialConfig], bar: tqdm) -> dict[str, float]:
    """Return a row of results for one subset: numbers of clips, validation accuracy of each teacher and ensemble."""
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
    """Return one row per subset: means over the seeds and, for several seeds, standard deviations (`<column>_std`)."""
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
    """Print the rows of `summary` as a table."""
    names = [n for n in rows[0] if n not in ("subset", "seeds", *CLIPS) and not n.endswith("_std")]
    columns = ("subset", "clips", *(Column(n, overflow="fold") for n in names))
    table = Table(*columns, title="validation macro accuracy", box=SIMPLE, padding=(0, 1, 0, 0))
    for row in rows:
        cells = [f"{row[n]:.1%}" + (f" ± {row[f'{n}_std']:.1%}" if f"{n}_std" in row else "") for n in names]
        table.add_row(f"{row['subset']} %", " + ".join(f"{row[c]:.0f}" for c in CLIPS), *cells)
    console.print(table)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


if __name__ == "__main__":
    sys.exit(main())
