"""Read a csv file of a study into a table with typed columns, with an error for each value that is not valid."""

import csv
import io
import math
from pathlib import Path

import pandas as pd

from analysis.typed_json import ResultsError
from data.untrusted import is_name, is_relative_path

TEXT_COLUMNS = ("trial_id", "config_id", "status", "checkpoint")
FREE_TEXT = ("stopped_by", "reason")  # columns of trials.csv that may contain any text
INTEGERS = ("step", "replicate", "stage", "restores")
NETWORK = "network"  # column of test.csv: where a network comes from, one of the next two
SEARCH, REFITTED = "search", "refitted"
_RESTORE = "restore the file, or write it again"


def read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{file}: not UTF-8 text ({error}); expected a csv file in UTF-8: {_RESTORE}") from None


def read_table(text: str, file: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """Return the table in `text`, the content of the csv file `file`, with typed columns.

    Raise ResultsError if a `required` column is missing, a row is incomplete, or a network has two rows (a trial, in a
    table without the column `step`).
    pandas.read_csv is not used: it fills a truncated row with NaN, and reads the trial id 12e4 as a number.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ResultsError(f"{file}: not valid csv ({error}); expected comma-separated values: {_RESTORE}") from None
    if not rows:
        raise ResultsError(f"{file}: empty, not even a header; expected the columns {', '.join(required)}: {_RESTORE}")
    header = rows[0]
    if missing := [column for column in required if column not in header]:
        names, found = ", ".join(missing), ", ".join(header)
        raise ResultsError(f"{file}: missing column(s) {names}; found only {found}: {_RESTORE}")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ResultsError(f"{file}: column {twice} occurs twice in the header; expected each column once: {_RESTORE}")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            found = f"row {number} has {len(row)} fields; expected {len(header)}"
            raise ResultsError(f"{file}: {found}; the file was perhaps cut off: {_RESTORE}")
    if not text.endswith("\n"):
        found = "the last row does not end with a newline"
        raise ResultsError(f"{file}: {found}; the file was perhaps cut off: {_RESTORE}")
    cells = zip(*rows[1:], strict=True) if len(rows) > 1 else [()] * len(header)
    columns = {name: _typed(name, list(texts), file) for name, texts in zip(header, cells, strict=True)}
    table, keys = pd.DataFrame(columns), [key for key in ("trial_id", "step", NETWORK) if key in columns]
    if (twice := table.duplicated(keys).to_numpy(bool)).any():
        first = table.iloc[int(twice.argmax())]
        name = f"trial {first['trial_id']}" + (f" step {first['step']}" if "step" in keys else "")
        expected = f"one row per {'network' if 'step' in keys else 'trial'}"
        raise ResultsError(f"{file}: {name} occurs twice; expected {expected}: {_RESTORE}")
    return table


def _typed(column: str, texts: list[str], file: Path) -> pd.Series:
    """Return the cells `texts` of the column `column` of `file` as a series of str, bool, int64 or float.

    In a column of numbers, an empty cell becomes NaN. A configuration column (config/...) that contains text remains
    text. Text in any other column of numbers raises ResultsError.
    """
    if column in TEXT_COLUMNS:
        valid, kind = (is_relative_path, "path in the study") if column == "checkpoint" else (is_name, "name")
        if wrong := [text for text in texts if not valid(text)]:
            raise ResultsError(f"{file}: {column} is {wrong[0]!r}; expected a {kind}: {_RESTORE}")
        return pd.Series(texts, dtype=str)
    if column in FREE_TEXT:
        return pd.Series(texts, dtype=str)
    if column == NETWORK:
        if unknown := set(texts) - {SEARCH, REFITTED}:
            found = f"{column} is {sorted(unknown)[0]!r}"
            raise ResultsError(f"{file}: {found}; expected {SEARCH} or {REFITTED}: {_RESTORE}")
        return pd.Series(texts, dtype=str)
    if column == "feasible":
        if unknown := set(texts) - {"True", "False"}:
            raise ResultsError(f"{file}: feasible is {sorted(unknown)[0]!r}; expected True or False: {_RESTORE}")
        return pd.Series([text == "True" for text in texts], dtype=bool)
    if all(text.removeprefix("-").isdecimal() for text in texts):
        try:
            numbers = pd.Series(texts, dtype=object).astype("int64")
        except (OverflowError, ValueError):  # ValueError: thousands of digits
            largest = max(texts, key=len)[:60]
            expected = f"expected integers up to 2**63 - 1: {_RESTORE}"
            raise ResultsError(f"{file}: column {column} has {largest}; {expected}") from None
    elif column in INTEGERS:
        found = next(text for text in texts if not text.removeprefix("-").isdecimal())
        raise ResultsError(f"{file}: column {column} has {found!r}; expected integers: {_RESTORE}")
    else:
        try:
            numbers = pd.Series([float(text) if text else math.nan for text in texts], dtype=float)
        except ValueError as error:
            if column.startswith("config/"):
                return pd.Series([text or None for text in texts], dtype=object)
            raise ResultsError(f"{file}: column {column}: {error}; expected numbers: {_RESTORE}") from None
    return numbers


def empty_table(columns: tuple[str, ...]) -> pd.DataFrame:
    types = {"feasible": bool, **dict.fromkeys(TEXT_COLUMNS, str)}
    return pd.DataFrame({column: pd.Series(dtype=types.get(column, float)) for column in columns})


def check_shares(frame: pd.DataFrame, file: Path, remedy: str) -> None:
    for column in frame.columns:
        if column == "sparsity" or column.split("/")[0].endswith("_acc"):
            values = frame[column].to_numpy(float)
            if len(wrong := values[(values < 0) | (values > 1)]):
                raise ResultsError(
                    f"{file}: column {column} has {wrong[0]:g}; expected shares in [0, 1], not per cent; {remedy}"
                )
