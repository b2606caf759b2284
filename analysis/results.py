"""Read one study folder: `study.json`, `points.csv` and, after the test split was opened, `test.csv`.

A study folder is written by `tune/`. All code in `analysis/` works on the `Study` returned here and never reads the
journal. A missing, truncated or inconsistent file raises `ResultsError`, which names the file and the reason.
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

STATUSES = (
    "complete",
    "stopped early",
    "failed",  # because of the configuration, e.g. the loss is not finite
    "crashed",  # for a reason outside the configuration; a resume retries the trial
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
    "feasible",  # within the study's limits
    "status",  # status of the trial; the front may contain points of trials with any status
)
TEST_COLUMNS = ("trial_id", "step", "test_macro_avg_acc")
REMEDY = "the command that started the study, with --resume, writes points.csv again from the journal"


@dataclass(frozen=True)
class Study:
    """The result files of one study.

    `raw` has one row per measured network (a complete trial with R prune steps has R + 1 rows). `raw_test` has one row
    per network that was measured on the test split; it is None while that split is closed.
    """

    path: Path
    manifest: StudyManifest
    raw: pd.DataFrame
    raw_test: pd.DataFrame | None
    points_missing: bool = False  # points.csv is missing although trials were trained; `raw` is empty then

    @cached_property
    def replicated(self) -> bool:
        """Whether the points of the study are means over seeds."""
        return replicates.replicated(self.raw)

    @cached_property
    def points(self) -> pd.DataFrame:
        """The points of the study, one per row: the networks, or means over seeds if there are replicates."""
        return replicates.mean_points(self.raw) if self.replicated else self.raw

    @cached_property
    def test(self) -> pd.DataFrame | None:
        """Test results, one row per point: `raw_test`, or means over seeds if there are replicates; None if closed."""
        if self.raw_test is None or not self.replicated:
            return self.raw_test
        return replicates.mean_tests(self.raw, self.raw_test)

    @property
    def name(self) -> str:
        return self.manifest.asked.name

    @property
    def objectives(self) -> dict[str, str]:
        """Column of `points` -> direction ("max" or "min"); "bytes" is the column at the study's precision."""
        declared = self.manifest.resolved.objectives
        return {self.bytes_column if key == "bytes" else key: direction for key, direction in declared.items()}

    @property
    def precision(self) -> str:
        """The precision of the limit on bytes; fp32 if the study has no such limit."""
        return self.limits.precision

    @property
    def bytes_column(self) -> str:
        return f"bytes_{self.precision}"

    @property
    def limits(self) -> Limits:
        """The limits that a feasible network does not exceed."""
        return self.manifest.resolved.limits

    def prefixed(self, prefix: str) -> list[str]:
        """Return the columns of `points` that start with `prefix`, e.g. "val_acc/", in the order of the file."""
        return [column for column in self.points.columns if column.startswith(prefix)]

    def with_test(self) -> pd.DataFrame:
        """Return the points with their test columns (NaN for a point that was not measured on test)."""
        if self.test is None:
            return self.points.copy()
        kept = ["trial_id", "step", *(c for c in self.test.columns if c.startswith("test_"))]
        return self.points.merge(self.test[kept], on=["trial_id", "step"], how="left", validate="one_to_one")


def load_study(path: Path | str, points_text: str | None = None) -> Study:
    """Read and check a study folder; `points_text`, if given, is used instead of points.csv.

    Without points.csv the table is empty, and `points_missing` is True if the file was lost, False if nothing has been
    measured yet. ResultsError for a folder without `study.json`, a missing key, a truncated file, a value outside its
    range, a `feasible` that contradicts the limits, or a test row without a measured point.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ResultsError(f"{folder}: not a folder; expected a study folder with study.json and points.csv")
    manifest = read_manifest(folder / "study.json")
    points_file, test_file = folder / "points.csv", folder / "test.csv"
    test = _table(_read_text(test_file), test_file, TEST_COLUMNS) if test_file.exists() else None
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
        _check_shares(test, test_file)
    if test is not None and not study.points_missing:
        known = set(zip(points["trial_id"], points["step"], strict=True))
        for point in zip(test["trial_id"], test["step"], strict=True):
            if point not in known:
                raise ResultsError(f"{test_file}: trial {point[0]} step {point[1]} is not in points.csv; {REMEDY}")
    return study


def take(frame: pd.DataFrame, mask: npt.ArrayLike) -> pd.DataFrame:
    """Return the rows of `frame` where `mask` [N] is True (for pyright, `frame[mask]` may be a series)."""
    return frame.take(np.flatnonzero(mask))


def points_table(text: str, file: Path) -> pd.DataFrame:
    """Return the table of points in `text`, the content of a points.csv, with `config_id` and `replicate`.

    ResultsError, which names `file`, if a row is incomplete or a value has the wrong type.
    """
    return replicates.identified(_table(text, file, POINT_COLUMNS))


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{file}: not a readable csv file ({error}); expected UTF-8") from None


def _table(text: str, file: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """Return the table of a csv file; ResultsError if a row is incomplete.

    pandas alone would fill a truncated row with NaN, and would read the trial id 12e4 as a number.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ResultsError(f"{file}: not a readable csv file: {error}") from None
    if not rows:
        raise ResultsError(f"{file}: empty, not even a header; expected the columns {', '.join(required)}")
    header = rows[0]
    if missing := [column for column in required if column not in header]:
        raise ResultsError(f"{file}: missing column(s) {', '.join(missing)}; found {', '.join(header)}")
    if len(set(header)) != len(header):
        raise ResultsError(f"{file}: a column name occurs twice in the header; expected each once: {', '.join(header)}")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise ResultsError(f"{file}: row {number} has {len(row)} of {len(header)} fields; cut off?")
    if not text.endswith("\n"):
        raise ResultsError(f"{file}: the last row has no line end; cut off?")
    cells = zip(*rows[1:], strict=True) if len(rows) > 1 else [()] * len(header)
    columns = {name: _typed(name, list(texts), file) for name, texts in zip(header, cells, strict=True)}
    seen = set()
    for point in zip(columns["trial_id"], columns["step"], strict=True):
        if point in seen:
            raise ResultsError(f"{file}: trial {point[0]} step {point[1]} occurs twice; expected one row per network")
        seen.add(point)
    return pd.DataFrame(columns)


def _typed(column: str, texts: list[str], file: Path) -> pd.Series:
    """Return a column with its data type; an empty cell is NaN. Configuration values may be numbers or text."""
    if column in TEXT_COLUMNS:
        return pd.Series(texts, dtype=str)
    if column == "feasible":
        if unknown := set(texts) - {"True", "False"}:
            raise ResultsError(f"{file}: feasible is {sorted(unknown)[0]!r}; allowed: True, False")
        return pd.Series([text == "True" for text in texts], dtype=bool)
    if all(text.removeprefix("-").isdecimal() for text in texts):
        try:
            numbers = pd.Series(texts, dtype=object).astype("int64")
        except OverflowError:
            raise ResultsError(f"{file}: column {column} holds a number above the largest allowed, 2**63 - 1") from None
    elif column in ("step", "replicate"):
        found = next(text for text in texts if not text.removeprefix("-").isdecimal())
        raise ResultsError(f"{file}: column {column}: found {found!r}, expected integers")
    else:
        try:
            numbers = pd.Series([float(text) if text else math.nan for text in texts], dtype=float)
        except ValueError as error:
            if column.startswith("config/"):
                return pd.Series([text or None for text in texts], dtype=object)
            raise ResultsError(f"{file}: column {column}: {error}; expected numbers") from None
    return numbers


def _empty(columns: tuple[str, ...]) -> pd.DataFrame:
    types = {"feasible": bool, **dict.fromkeys(TEXT_COLUMNS, str)}
    return pd.DataFrame({column: pd.Series(dtype=types.get(column, float)) for column in columns})


def _check_shares(frame: pd.DataFrame, file: Path) -> None:
    for column in frame.columns:
        if column == "sparsity" or column.split("/")[0].endswith("_acc"):
            values = frame[column].to_numpy(float)
            if ((values < 0) | (values > 1)).any():
                raise ResultsError(f"{file}: column {column} has values outside [0, 1]: expected shares, not per cent")


def _check_points(study: Study, file: Path) -> None:
    if absent := [column for column in study.objectives if column not in study.raw.columns]:
        raise ResultsError(f"{file}: missing column(s) {', '.join(absent)}, which are objectives in study.json")
    _check_shares(study.raw, file)
    one = study.raw.drop_duplicates("trial_id")
    for trial in take(one, one.duplicated(["config_id", "replicate"])).to_dict("records"):
        name = f"replicate {trial['replicate']} of configuration {trial['config_id']}"
        raise ResultsError(f"{file}: {name} is more than one trial; expected one; {REMEDY}")
    limits = {"macs": study.limits.macs, study.bytes_column: study.limits.bytes}
    for point in study.raw.to_dict("records"):
        label = f"{file}: trial {point['trial_id']} step {point['step']}"
        if point["status"] not in STATUSES:
            raise ResultsError(f"{label}: status {point['status']!r}; allowed: {', '.join(STATUSES)}")
        if point["macs"] <= 0:
            raise ResultsError(f"{label}: macs is {point['macs']}; expected a number above 0")
        for column, limit in limits.items():
            if limit is not None and point["feasible"] and point[column] > limit:
                raise ResultsError(
                    f"{label} is marked feasible, but its {column} {point[column]} exceeds the limit {limit}; {REMEDY}"
                )
