"""Report of one study: a table in the terminal, and front.csv, front.png and report.html in its folder.

    python analysis/report.py runs/my-study

Reads result files only; may be run while the study is still running.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: Python put analysis/ on the path, not the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analysis import front, summary
from analysis.manifest import ResultsError
from analysis.page import figure_png, sentences
from analysis.page import html as report_page
from analysis.results import Study, load_study
from data.files import fsync_file, replacing


def write_report(study_dir: Path) -> dict[str, Path]:
    """Write front.csv, front.png and report.html into a study folder; return their paths by "csv", "png" and "html".

    All three are on disk before the first replaces an earlier one, so ResultsError (a folder that cannot be read) or
    OSError (a full disk) leaves the earlier report unchanged.
    """
    study = load_study(study_dir)
    makers: dict[str, tuple[str, Callable[[Study], bytes]]] = {
        "csv": ("front.csv", front_csv),
        "png": ("front.png", figure_png.png),
        "html": ("report.html", lambda made: report_page.page(made).encode()),
    }
    paths = {key: study.path / name for key, (name, _) in makers.items()}
    with ExitStack() as stack:  # at its end, each temporary file replaces the earlier one
        for key, (_, make) in makers.items():
            temporary = stack.enter_context(replacing(paths[key]))
            temporary.write_bytes(make(study))
            fsync_file(temporary)
    return paths


def front_csv(study: Study) -> bytes:
    """The front as csv: every column of points.csv, and of test.csv where there is one, sorted by MACs."""
    best = front.pareto_points(study)
    whole = {
        c: "Int64"
        for c in ("macs", "params", "epochs", "bytes_fp32", "bytes_fp16", "bytes_int8", "test_n_seeds")
        if c in best
    }
    return best.astype(whole).to_csv(index=False, lineterminator="\n").encode()


def front_table(study: Study) -> Table:
    """The front for the terminal, one row a point, by MACs; baseline and trial counts stand beneath."""
    best = front.pareto_points(study)
    config = summary.short_config(best)
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=Text(f"{study.name}: Pareto front"),
        title_justify="left",
        caption_justify="left",
    )
    table.expand = best.empty  # or the sentences beneath would be as narrow as the bare headers
    table.add_column("trial", no_wrap=True)
    for head in _figures(study, {}):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("configuration", min_width=20, overflow="fold")  # wraps at 80 characters
    for point, sampled in zip(best.to_dict("records"), config.to_dict("records"), strict=True):
        settings = ", ".join(f"{name}\N{NO-BREAK SPACE}{value}" for name, value in sampled.items())
        table.add_row(escape(point["trial_id"]), *_figures(study, point).values(), escape(settings))
    facts = [f"{term}: {fact}" for term, fact in sentences.facts(study).items()]
    beneath = [sentences.headline(study), *facts, *sentences.warnings(study)]
    table.caption = Text("\n".join(beneath), style="not italic not dim")
    return table


def _figures(study: Study, point: Mapping[Any, Any]) -> dict[str, str]:
    """Header to text of a point's figures; of an empty point, dashes. Intervals take the place of what a narrow
    terminal can spare."""
    tested, replicated = study.test is not None, study.replicated
    shown = {"step": str(point.get("step"))}
    shown |= {"seeds": str(point.get("n_seeds"))} if replicated else {}
    shown["val %"] = summary.percent(point.get("val_macro_avg_acc"))
    shown |= {"95 %": summary.span(point)} if replicated else {}
    shown |= {"test %": summary.percent(point.get("test_macro_avg_acc"))} if tested else {}
    shown |= {"test sd": summary.percent(point.get("test_macro_avg_acc_std"))} if tested and replicated else {}
    shown["M MACs"] = summary.millions(point.get("macs"))
    shown |= {} if replicated else {"k params": summary.thousands(point.get("params"))}
    shown[f"kB {study.precision}"] = summary.thousands(point.get(study.bytes_column))
    return shown | ({} if replicated else {"sparse %": summary.percent(point.get("sparsity"))})


def print_front(study: Study) -> None:
    """Print the front's table to stdout, unbroken where stdout is a file or a pipe."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 160))
    console.print(front_table(study))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a study's report and print its Pareto front.")
    parser.add_argument("study_dir", type=Path, help="a study folder: study.json, points.csv, perhaps test.csv")
    study_dir = parser.parse_args(arguments).study_dir
    try:
        paths = write_report(study_dir)
        print_front(load_study(study_dir))
    except (ResultsError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"\nreport: {paths['html']}\nplot:   {paths['png']}\nfront:  {paths['csv']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
