"""The report as Markdown, for a pull request or a wiki: the sections of the page that need no plots."""

import re
from collections.abc import Sequence
from typing import Any

from analysis import front
from analysis.page import html, tables
from analysis.page.belief import belief_section
from analysis.page.document import Block, Code, Facts, Row, Table, Text
from analysis.page.importance_table import importance_section
from analysis.page.search_section import search_section
from analysis.results import Study


def markdown(study: Study) -> str:
    """Return the summary of a study as Markdown; it shows front.png, which must be in the same folder."""
    parts = [f"# {escaped(study.name)}", *blocks(html.top(study)), "![Pareto front](front.png)"]
    sections = []
    if len(front.pareto_points(study)):
        sections = [tables.budgets_section(study), tables.front_section(study), tables.test_section(study)]
        sections.append(belief_section(study))
    plots = set[str]()  # Markdown shows front.png only
    for section in [*sections, search_section(study, plots), importance_section(study, plots)]:
        if section is not None:
            parts += [f"## {escaped(section.title)}", *blocks(section.blocks)]
    if command := study.manifest.requested.command:
        parts += ["## How to reproduce", *blocks([Code(command)])]
    return "\n\n".join(parts) + "\n"


def blocks(found: Sequence[Block]) -> list[str]:
    """Return each block as Markdown; plots, HTML and hints for the page are left out."""
    made = []
    for block in found:
        match block:
            case Text(_, "hint"):
                continue
            case Text(text, kind):
                made.append(f"> {escaped(text)}" if kind == "warning" else escaped(text))
            case Facts(facts):
                made.append("\n".join(f"- **{escaped(term)}:** {escaped(fact)}" for term, fact in facts.items()))
            case Code(text):
                made.append("\n".join(f"    {line}" for line in text.splitlines()))
            case Table():
                made.append(table(block))
    return made


def table(found: Table) -> str:
    """Return a table as Markdown with aligned columns; a cell that spans columns is followed by empty ones."""
    heads = [escaped(head.text) for head in found.heads]
    rule = ["---" if head.kind else "--:" for head in found.heads]
    rows = [_row(row) for row in [*found.rows, *([found.foot] if found.foot else [])]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows])


def _row(row: Row) -> list[str]:
    cells = []
    for cell in row.cells:
        text = _code(cell.text) if "code" in cell.kind else escaped(cell.text)
        cells += [text, *[""] * (cell.span - 1)]
    return cells


def _code(text: str) -> str:
    """Return `text` in a monospaced font. A vertical bar, also of code, would end the cell of a table."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return fence + text.replace("|", "\\|") + fence


def escaped(text: Any) -> str:
    """Return `text` on one line, with the signs that have a meaning in Markdown or HTML escaped."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(str(text).split())).replace("&", "&amp;")
