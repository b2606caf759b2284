"""The contents of a report as sections of texts, tables and plots, independent of their form.

The page (html.py) and the Markdown summary (markdown.py) are made from the same sections.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from analysis import summary


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    value: Any = None  # the page sorts rows by this value; if it is missing (None, NaN), the row comes last
    kind: str = ""  # "" (number), "text", "text wrap" (lines may break) or "text wrap code"
    shade: float | None = None  # in [0, 1]: how dark the background is
    bar: float | None = None  # in [0, 1]: length of a bar behind the text
    span: int = 1  # number of columns

    @property
    def key(self) -> str:
        """The value by which the page sorts, as text; empty if it is missing."""
        return "" if summary.absent(self.value) or self.value == summary.DASH else str(self.value)


@dataclass(frozen=True)
class Head:
    """A column header."""

    text: str
    kind: str = ""  # "" above numbers, "text" above texts
    sorted: bool = False  # the rows are in ascending order of this column


@dataclass(frozen=True)
class Row:
    """A row of a table. If it describes a network, the page highlights its trial under the mouse pointer."""

    cells: Sequence[Cell]
    trial: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Table:
    """A table. `name` is the id of its HTML element and the name of its csv file."""

    name: str
    heads: Sequence[Head]
    rows: Sequence[Row]
    foot: Row | None = None
    sortable: bool = False  # by a click on a header
    heat: bool = False  # a heat map: cells have a shade

    def csv(self) -> str:
        """Return the table as csv, with the texts of its cells; the foot is the last row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([head.text for head in self.heads])
        for row in [*self.rows, *([self.foot] if self.foot else [])]:
            writer.writerow([word for cell in row.cells for word in (cell.text, *[""] * (cell.span - 1))])
        return text.getvalue()


@dataclass(frozen=True)
class Text:
    """A paragraph. `kind` is "" (normal), "lead", "note" (small), "warning", or "hint" (how to use the page)."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Facts:
    """A list of terms and their descriptions."""

    facts: dict[str, str]


@dataclass(frozen=True)
class Code:
    """A command line or another text in a monospaced font."""

    text: str


@dataclass(frozen=True)
class Plot:
    """The place of an interactive plot. `name` is its key in `html.figures`.

    `size` is "main", "small" or "wide" (as high as in its layout, and scrolled sideways in a narrow window).
    """

    name: str
    caption: str
    size: str = "small"


Block = Text | Table | Facts | Code | Plot | Markup


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading. `name` is the id of the heading, to which the contents bar links."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)
