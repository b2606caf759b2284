"""The files of a report (see `write_report`), and the Pareto front as a table on the terminal."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analysis import front, summary
from analysis.page import sentences
from analysis.results import Study, load_study
from analysis.typed_json import ResultsError
from data.files import fsync_file, replacing
from data.untrusted import Terminal


def write_report(
    study_dir: Path, markers_file: Path | None = None, compare_with: Path | None = None, out: Path | None = None
) -> dict[str, Path]:
    """Write front.csv, front.png, front.svg, report.md and report.html into the folder `out` (None: the study folder).

    `markers_file` is a YAML file with systems to show with those of the study (analysis/findings/markers.py).
    `compare_with` is a study with the same configurations, whose ranks the report compares with this study's. `out` is
    created if necessary. Return the paths as a dict with the keys "csv", "png", "svg", "md" and "html". Raise
    ResultsError if the study or the YAML file cannot be read, and OSError if a file cannot be written. All files are
    written to temporary files first, so an error while they are made leaves the files of an earlier report unchanged.
    """
    # here, because matplotlib and plotly take a second to import, and only a complete study has a report
    from analysis.figures import static
    from analysis.page import html as report_page
    from analysis.page import markdown

    study = replace(load_study(study_dir), markers_file=markers_file, compare_with=compare_with)
    if (source := study.manifest.requested.refit_of) is not None:
        raise ResultsError(
            f"{study_dir} is the refit of study {source}, whose networks have no validation accuracy; expected the "
            f"study itself, whose report shows both: give {study.path.resolve().parent}"
        )
    makers: dict[str, tuple[str, Callable[[Study], bytes]]] = {
        "csv": ("front.csv", front_csv),
        "png": ("front.png", static.png),
        "svg": ("front.svg", static.svg),
        "md": ("report.md", lambda made: markdown.markdown(made).encode()),
        "html": ("report.html", lambda made: report_page.page(made).encode()),
    }
    folder = study.path if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    paths = {key: folder / name for key, (name, _) in makers.items()}
    with ExitStack() as stack:  # on exit, each temporary file replaces the earlier file
        for key, (_, make) in makers.items():
            temporary = stack.enter_context(replacing(paths[key]))
            temporary.write_bytes(make(study))
            fsync_file(temporary)
    return paths


def front_csv(study: Study) -> bytes:
    """Return the content of front.csv: the points of the front sorted by MACs, with test results if there are any."""
    best = front.pareto_points(study)
    integers = {
        c: "Int64"
        for c in ("macs", "params", "epochs", "bytes_fp32", "bytes_fp16", "bytes_int8", "search_epochs", "test_n_seeds")
        if c in best and bool((best[c].dropna().to_numpy(float) % 1 == 0).all())
    }
    return best.astype(integers).to_csv(index=False, lineterminator="\n").encode()


def front_table(study: Study) -> Table:
    """Return the front as a terminal table: one row per point, sorted by MACs; facts and warnings in the caption."""
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
    table.expand = best.empty  # otherwise the caption would be as narrow as the headers
    table.add_column("trial", no_wrap=True)
    for head in _figures(study, {}):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("configuration", min_width=20, overflow="fold")  # wraps in a terminal of 80 columns
    for point, sampled in zip(best.to_dict("records"), config.to_dict("records"), strict=True):
        settings = ", ".join(f"{name}\N{NO-BREAK SPACE}{value}" for name, value in sampled.items())
        table.add_row(escape(point["trial_id"]), *_figures(study, point).values(), escape(settings))
    facts = [f"{term}: {fact}" for term, fact in sentences.facts(study).items()]
    caption = [sentences.headline(study), *facts, *sentences.warnings(study)]
    table.caption = Text("\n".join(caption), style="not italic not dim")
    return table


def _figures(study: Study, point: Mapping[Any, Any]) -> dict[str, str]:
    """Return the cells of a table row as a dict: column header -> value of `point` as text (a dash if it is missing).

    For an empty `point`, the keys of the dict are the headers of the table. In a study with replicates, the table has
    the columns "seeds" and "95 %" (interval of the mean validation accuracy) instead of "k params" and "sparse %", so
    that it fits a narrow terminal.
    """
    tested, replicated = study.test is not None, study.replicated
    shown = {"step": str(point.get("step"))}
    shown |= {"seeds": str(point.get("n_seeds"))} if replicated else {}
    shown["val %"] = summary.percent(point.get("val_macro_avg_acc"))
    shown |= {"95 %": summary.span(point)} if replicated else {}
    shown |= {"test %": summary.percent(point.get("test_macro_avg_acc"))} if tested else {}
    if study.refitted is not None:
        shown["refit %"] = summary.percent(point.get("refitted_test_macro_avg_acc"))
    shown |= {"test sd": summary.percent(point.get("test_macro_avg_acc_std"))} if tested and replicated else {}
    shown["M MACs"] = summary.millions(point.get("macs"))
    shown |= {} if replicated else {"k params": summary.thousands(point.get("params"))}
    shown[f"kB {study.precision}"] = summary.thousands(point.get(study.bytes_column))
    return shown | ({} if replicated else {"sparse %": summary.percent(point.get("sparsity"))})


def print_front(study: Study) -> None:
    """Print the Pareto front of a study as a table to stdout.

    If stdout is not a terminal, the table is at least 160 columns wide.
    """
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=max(console.width, 160))
    console.print(front_table(study))
