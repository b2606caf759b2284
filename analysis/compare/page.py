"""The comparison of several studies as one HTML page that needs no network access, and as a short Markdown text.

Templates: `comparison.html.j2` extends `base.html.j2` (analysis/page/templates/).
"""

import html

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis import summary
from analysis.compare import figures, notes
from analysis.compare.comparison import Comparison, study_table, with_interval
from analysis.compare.verdict import THRESHOLD, sentences
from analysis.figures import parts
from analysis.page.rendering import render, script_json


def page(compared: Comparison) -> str:
    """Return the complete HTML page, which contains plotly.js if there are plots."""
    plots = figures.figures(compared)
    made = render(
        "comparison.html.j2",
        title=title(compared),
        plotly=Markup(get_plotlyjs()) if plots else "",
        figures=script_json(plots),
        data=script_json({"dark": parts.DARK}),
        connect="",
        live="",
        drawn=list(plots),
        several=compared.n_runs > 1,
        methods=method_lines(compared),
        threshold=round(100 * THRESHOLD),
        verdicts=verdicts(compared),
        warnings=notes.warnings(compared),
        uncertainty=notes.uncertainty(compared),
        heads=study_heads(compared),
        rows=study_rows(compared),
        differing=notes.differing_settings(compared),
        commands=[(label, study.manifest.requested.command) for _, label, study in compared.studies],
    )
    return str(made)


def markdown(compared: Comparison) -> str:
    """Return the comparison as Markdown: methods, verdicts, warnings, a table of the studies, the uncertainty."""
    lines = [f"# {_plain(title(compared))}", ""]
    lines += [f"- {key} = {_plain(text)}" for key, text in method_lines(compared)]
    for name, found in (
        ("Verdict", verdicts(compared)),
        ("Warnings", notes.warnings(compared)),
    ):
        if found:
            lines += ["", f"## {name}", "", *(f"- {_plain(line)}" for line in found)]
    heads = study_heads(compared)
    lines += ["", "## Studies", "", _row(heads), _row(["---"] * len(heads)), *map(_row, study_rows(compared))]
    lines += [
        "",
        "## What the uncertainty contains",
        "",
        *(f"- {_plain(line)}" for line in notes.uncertainty(compared)),
    ]
    return "\n".join(lines) + "\n"


def title(compared: Comparison) -> str:
    n = len(compared.studies)
    m = len(compared.methods)
    return f"Comparison of {n} studies" + ("" if n == m else f", {m} method{'' if m == 1 else 's'}")


def verdicts(compared: Comparison) -> list[str]:
    """Return the verdicts in words; one sentence that states this if all studies are runs of one method."""
    if compared.verdicts:
        return sentences(compared.verdicts)
    return [
        "All studies are runs of one method: they differ only in their seed, which also selects the validation clips. "
        "So there is no verdict; the figure and the interval show how much the runs differ."
    ]


def study_heads(compared: Comparison) -> list[str]:
    """Return the headers of the table of studies."""
    heads = ["method", "study", "status", "seed", "candidates", "front", "M MACs", "best % (95 %)"]
    return heads + (["hypervolume (95 %)"] if compared.limit else [])


def study_rows(compared: Comparison) -> list[list[str]]:
    """Return the rows of the table of studies as texts; numbers are rounded to their uncertainty."""
    made, best = [], "best_val_macro_avg_acc"
    for row in study_table(compared).to_dict("records"):
        ends = [summary.millions(row[name]) for name in ("smallest_macs", "best_macs")]
        cells = [row["method"], row["study"], row["status"], str(row["seed"]), str(row["candidates"])]
        cells += [str(row["front_points"]), summary.DASH.join(dict.fromkeys(ends))]
        cells.append(with_interval(row[best], row[f"{best}_low"], row[f"{best}_high"], 100))
        if compared.limit:
            cells.append(with_interval(row["hypervolume"], row["hypervolume_low"], row["hypervolume_high"]))
        made.append(cells)
    return made


def method_lines(compared: Comparison) -> list[tuple[str, str]]:
    """Return (key, text) of each method: its name and, if it has several runs, the mean hypervolume of the runs."""
    made = []
    for method, sampled in zip(compared.methods, compared.sampled, strict=True):
        text, volume = method.label, sampled.hypervolume
        if len(method.runs) > 1 and volume is not None and sampled.interval is not None:
            text += f"; mean hypervolume (95 %) {with_interval(volume, *sampled.interval)}"
        made.append((method.key, text))
    return made


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Return `text` for Markdown: HTML and the characters of tables and emphasis are escaped."""
    return "".join(f"\\{c}" if c in "\\`*_[]|" else c for c in html.escape(text, quote=False))
