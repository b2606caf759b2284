"""The files of a comparison: comparison.html, comparison.md, comparison.csv, attainment.csv and fronts.png."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
from rich.markup import escape

from analysis.compare import figures, notes, page
from analysis.compare.comparison import Comparison, compare_studies, study_table, surface_table
from analysis.results import load_study
from data.files import fsync_file, replacing
from data.untrusted import Terminal

FILES: dict[str, Callable[[Comparison], bytes]] = {
    "comparison.csv": lambda compared: _csv(study_table(compared)),
    "attainment.csv": lambda compared: _csv(surface_table(compared)),
    "fronts.png": figures.png,
    "comparison.md": lambda compared: page.markdown(compared).encode(),
    "comparison.html": lambda compared: page.page(compared).encode(),
}


def write_comparison(study_dirs: Sequence[Path], out: Path) -> tuple[Comparison, dict[str, Path]]:
    """Compare the studies in the folders `study_dirs`, and write the files of the comparison into the folder `out`.

    Return the comparison, and file name -> path. The folder is created if necessary. Raise ResultsError if a study
    cannot be read or a comparison would be false, and OSError if a file cannot be written. All files are made before
    the first one is replaced, so an error leaves the files of an earlier comparison unchanged.
    """
    compared = compare_studies([load_study(folder) for folder in study_dirs])
    contents = {name: make(compared) for name, make in FILES.items()}
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # on exit, each temporary file replaces the earlier file
        for name, content in contents.items():
            temporary = stack.enter_context(replacing(out / name))
            temporary.write_bytes(content)
            fsync_file(temporary)
    return compared, {name: out / name for name in contents}


def print_comparison(compared: Comparison) -> None:
    """Print the methods, the verdicts and the warnings to stdout."""
    console = Terminal(highlight=False, soft_wrap=True)
    console.print(escape(page.title(compared)))
    for key, text in page.method_lines(compared):
        console.print(escape(f"  {key} = {text}"))
    for line in [*page.verdicts(compared), *notes.warnings(compared)]:
        console.print(escape(f"\n{line}"))


def _csv(table: pd.DataFrame) -> bytes:
    integers = {c: "Int64" for c in ("macs", "best_macs", "smallest_macs") if c in table}
    rounded = table.assign(**{c: table[c].round() for c in integers}).astype(integers)
    return rounded.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
