"""Read and check the result files in a study folder: `study.json`, `points.csv` and, if it exists, `test.csv`.

    study = load_study("runs/my-study")
    study.points, study.test, study.limits, study.manifest

`tune/` writes these files. All code in `analysis/` works on the `Study` that `load_study` returns; the journal is never
read. A missing, truncated or inconsistent file raises `ResultsError`, which names the file and the reason.
"""

import csv
import io
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import replicates
from analysis.manifest import Limits, ResultsError, StudyManifest, read_manifest
from data.untrusted import is_name, is_relative_path

STATUSES = (
    "complete",
    "stopped early",
    "failed",  # because of its configuration, e.g. the loss became NaN
    "crashed",  # for another reason, e.g. a node died; a resume retries the trial
    "running",
)
TEXT_COLUMNS = ("trial_id", "config_id", "status", "checkpoint")
POINT_COLUMNS = (
    "trial_id",
    "step",  # number of prune steps, 0 = dense
    "val_macro_avg_acc",  # share in [0, 1]
    "macs",
    "params",
    "bytes_fp32",
    "bytes_fp16",
    "bytes_int8",
    "sparsity",  # share of the dense network's parameters that were removed
    "feasible",  # True if the network does not exceed the limits of the study
    "status",  # status of the trial; the front may contain points of trials with any status
)
TEST_COLUMNS = ("trial_id", "step", "test_macro_avg_acc")
REMEDY = (
    "tune/run.py --resume --name STUDY (with --storage, if the study is not in runs/) writes points.csv again from the "
    "journal"
)
TEST_REMEDY = "delete test.csv, then tune/evaluate.py writes it again"
_RESTORE = "restore the file, or write it again"


@dataclass(frozen=True)
class Study:
    """The contents of the result files of one study.

    `path` is the study folder, and `manifest` is study.json. `raw` is points.csv, with one row per measured network (a
    complete trial with R prune steps has R + 1 rows). `raw_test` is test.csv, with one row per network that was
    measured on the test split; it is None without test.csv.
    """

    path: Path
    manifest: StudyManifest
    raw: pd.DataFrame
    raw_test: pd.DataFrame | None
    points_missing: bool = False  # True: points.csv is missing although trials were trained, and `raw` is empty

    @cached_property
    def replicated(self) -> bool:
        """Whether the study has replicates, so that its points are means over seeds."""
        return replicates.replicated(self.raw)

    @cached_property
    def points(self) -> pd.DataFrame:
        """The points of the study, one per row: networks, or means over seeds if the study has replicates."""
        return replicates.mean_points(self.raw) if self.replicated else self.raw

    @cached_property
    def test(self) -> pd.DataFrame | None:
        """Test results, one row per point (means over seeds if there are replicates); None without test.csv."""
        if self.raw_test is None or not self.replicated:
            return self.raw_test
        return replicates.mean_tests(self.raw, self.raw_test)

    @property
    def name(self) -> str:
        return self.manifest.requested.name

    @property
    def objectives(self) -> dict[str, str]:
        """The objectives of the study: column of `points` -> direction ("max" or "min").

        The objective "bytes" of study.json becomes the bytes column of the precision, e.g. "bytes_fp16".
        """
        declared = self.manifest.resolved.objectives
        return {self.bytes_column if key == "bytes" else key: direction for key, direction in declared.items()}

    @property
    def precision(self) -> str:
        """The precision at which model size is limited and shown: fp32, fp16 or int8 (default: fp32)."""
        return self.limits.precision

    @property
    def bytes_column(self) -> str:
        return f"bytes_{self.precision}"

    @property
    def limits(self) -> Limits:
        """The upper limits on MACs and bytes; a feasible network does not exceed them."""
        return self.manifest.resolved.limits

    def prefixed(self, prefix: str) -> list[str]:
        """Return the names of the columns of points.csv that start with `prefix`, e.g. "val_acc/", in file order."""
        return [column for column in self.points.columns if column.startswith(prefix)]

    def with_test(self) -> pd.DataFrame:
        """Return `points` with the test columns added; they are NaN for points that were not measured on test."""
        if self.test is None:
            return self.points.copy()
        kept = ["trial_id", "step", *(c for c in self.test.columns if c.startswith("test_"))]
        return self.points.merge(self.test[kept], on=["trial_id", "step"], how="left", validate="one_to_one")


def load_study(path: Path | str, points_text: str | None = None) -> Study:
    """Return the study in the folder `path`, read from its files and checked.

    If `points_text` is given, it is used instead of the file points.csv, e.g. for a running study whose points.csv is
    older than its journal. If it is None and the file does not exist, `Study.raw` is empty; `Study.points_missing` is
    then True if the file was lost, and False if no network has been measured yet.

    Raise ResultsError if study.json is missing or invalid, a table is truncated, a value is out of range, `feasible`
    contradicts the limits, or test.csv has a network that points.csv does not have.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ResultsError(f"{folder}: not a folder; expected a study folder with study.json: check the path")
    manifest = read_manifest(folder / "study.json")
    points_file, test_file = folder / "points.csv", folder / "test.csv"
    try:
        test = _table(_read_text(test_file), test_file, TEST_COLUMNS) if test_file.exists() else None
    except ResultsError as error:
        raise ResultsError(f"{error}; {TEST_REMEDY}") from None
    missing = points_text is None and not points_file.exists()
    if points_text is not None:
        points = points_table(points_text, points_file)
    elif missing:
        points = replicates.identified(_empty(POINT_COLUMNS))
    else:
        try:
            points = points_table(_read_text(points_file), points_file)
        except ResultsError as error:
            raise ResultsError(f"{error}; {REMEDY}") from None
    trained = any(number for status, number in (manifest.progress.trials or {}).items() if status != "rejected")
    study = Study(folder, manifest, points, test, missing and (trained or test is not None))
    _check_points(study, points_file)
    if test is not None:
        _check_shares(test, test_file, TEST_REMEDY)
    if test is not None and not study.points_missing:
        known = set(zip(points["trial_id"], points["step"], strict=True))
        for point in zip(test["trial_id"], test["step"], strict=True):
            if point not in known:
                name = f"trial {point[0]} step {point[1]}"
                raise ResultsError(f"{test_file}: {name} is not in points.csv; expected a row for it; {REMEDY}")
    return study


def take(frame: pd.DataFrame, mask: npt.ArrayLike) -> pd.DataFrame:
    """Return the rows of `frame` where `mask` [N] is True.

    For the type checker pyright, the result is a DataFrame; that of `frame[mask]` could also be a Series.
    """
    return frame.take(np.flatnonzero(mask))


def points_table(text: str, file: Path) -> pd.DataFrame:
    """Return the table in `text`, the content of a points.csv; error messages start with its path `file`.

    Older versions did not write the columns `config_id` and `replicate`; they are added, as if each configuration had
    one seed. Raise ResultsError if a column is missing, a row is incomplete, or a value has the wrong type.
    """
    return replicates.identified(_table(text, file, POINT_COLUMNS))


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{file}: not UTF-8 text ({error}); expected a csv file in UTF-8: {_RESTORE}") from None


def _table(text: str, file: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """Return the table in `text`, the content of the csv file `file`, with typed columns.

    Raise ResultsError if a `required` column is missing, a row is incomplete, or a network has two rows.
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
    seen = set()
    for point in zip(columns["trial_id"], columns["step"], strict=True):
        if point in seen:
            name = f"trial {point[0]} step {point[1]}"
            raise ResultsError(f"{file}: {name} occurs twice; expected one row per network: {_RESTORE}")
        seen.add(point)
    return pd.DataFrame(columns)


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
    elif column in ("step", "replicate"):
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


def _empty(columns: tuple[str, ...]) -> pd.DataFrame:
    types = {"feasible": bool, **dict.fromkeys(TEXT_COLUMNS, str)}
    return pd.DataFrame({column: pd.Series(dtype=types.get(column, float)) for column in columns})


def _check_shares(frame: pd.DataFrame, file: Path, remedy: str) -> None:
    for column in frame.columns:
        if column == "sparsity" or column.split("/")[0].endswith("_acc"):
            values = frame[column].to_numpy(float)
            if len(wrong := values[(values < 0) | (values > 1)]):
                raise ResultsError(
                    f"{file}: column {column} has {wrong[0]:g}; expected shares in [0, 1], not per cent; {remedy}"
                )


def _check_points(study: Study, file: Path) -> None:
    if absent := [column for column in study.objectives if column not in study.raw.columns]:
        names = ", ".join(absent)
        raise ResultsError(f"{file}: missing column(s) {names}, expected as objectives of study.json; {REMEDY}")
    _check_shares(study.raw, file, REMEDY)
    one = study.raw.drop_duplicates("trial_id")
    for trial in take(one, one.duplicated(["config_id", "replicate"])).to_dict("records"):
        name = f"replicate {trial['replicate']} of configuration {trial['config_id']}"
        raise ResultsError(f"{file}: {name} has more than one trial_id; expected one; {REMEDY}")
    limits = {"macs": study.limits.macs, study.bytes_column: study.limits.bytes}
    for point in study.raw.to_dict("records"):
        label = f"{file}: trial {point['trial_id']} step {point['step']}"
        if point["status"] not in STATUSES:
            expected = ", ".join(STATUSES)
            raise ResultsError(f"{label}: status is {point['status']!r}; expected one of {expected}; {REMEDY}")
        if point["macs"] <= 0:
            raise ResultsError(f"{label}: macs is {point['macs']}; expected a number above 0; {REMEDY}")
        for column, limit in limits.items():
            if limit is not None and point["feasible"] and point[column] > limit:
                found = f"is marked feasible, but its {column} is {point[column]}"
                raise ResultsError(f"{label} {found}; expected at most {limit}; {REMEDY}")
