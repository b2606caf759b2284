"""Read one study folder: `study.json`, `points.csv` and, once the test split was opened, `test.csv`.

A study folder is written by `tune/`; everything in `analysis/` starts from the `Study` returned here and
parses no log. A file that is missing, cut off or inconsistent raises `ResultsError`, naming file and reason.
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
    "failed",  # for a reason in the configuration, such as a loss that is not finite
    "crashed",  # for a reason outside the configuration; a resume tries the trial again
    "running",
)
TEXT_COLUMNS = ("trial_id", "config_id", "status", "checkpoint")
POINT_COLUMNS = (
    "trial_id",
    "step",  # prune steps done, 0 = dense
    "val_macro_avg_acc",  # share in [0, 1]
    "macs",
    "params",
    "bytes_fp32",
    "bytes_fp16",
    "bytes_int8",
    "sparsity",  # share of the dense parameters removed
    "feasible",  # within the study's limits
    "status",  # of the trial; a point is a candidate of the front whatever it is
)
TEST_COLUMNS = ("trial_id", "step", "test_macro_avg_acc")
REMEDY = "the command that started the study, with --resume, writes points.csv again from the journal"


@dataclass(frozen=True)
class Study:
    """The result files of one study.

    `raw` has one row per measured network (a trial with R prune steps has R + 1 when it is complete), `raw_test` one
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
        """The points of the study, one row each: the networks, or means over seeds where there are replicates."""
        return replicates.mean_points(self.raw) if self.replicated else self.raw

    @cached_property
    def test(self) -> pd.DataFrame | None:
        """Test figures of points: `raw_test`, or means over seeds."""
        if self.raw_test is None or not self.replicated:
            return self.raw_test
        return replicates.mean_tests(self.raw, self.raw_test)

    @property
    def name(self) -> str:
        return self.manifest.asked.name

    @property
    def objectives(self) -> dict[str, str]:
        """Column of `points` to its direction, "max" or "min"; "bytes" means at the study's precision."""
        declared = self.manifest.resolved.objectives
        return {self.bytes_column if key == "bytes" else key: way for key, way in declared.items()}

    @property
    def precision(self) -> str:
        """The precision at which the bytes limit holds; fp32 where a study has no such limit."""
        return self.limits.precision

    @property
    def bytes_column(self) -> str:
        return f"bytes_{self.precision}"

    @property
    def limits(self) -> Limits:
        """The limits that a feasible network keeps."""
        return self.manifest.resolved.limits

    def prefixed(self, prefix: str) -> list[str]:
        """Columns of `points` under "val_acc/", "val_device_acc/" or "config/", in the file's order."""
        return [column for column in self.points.columns if column.startswith(prefix)]

    def with_test(self) -> pd.DataFrame:
        """The points joined with their test columns (NaN for a point that was not chosen for it)."""
        if self.test is None:
            return self.points.copy()
        kept = ["trial_id", "step", *(c for c in self.test.columns if c.startswith("test_"))]
        return self.points.merge(self.test[kept], on=["trial_id", "step"], how="left", validate="one_to_one")


def load_study(path: Path | str, points_text: str | None = None) -> Study:
    """Read and check a study folder; `points_text`, where it is given, takes the place of points.csv.

    Without points.csv the table is empty, and `points_missing` tells whether the file was lost or nothing has been
    measured yet. Raises ResultsError for a folder without `study.json`, a key that it lacks, a file that is cut off, a
    value outside its range, a `feasible` that contradicts the limits, or a test row whose point was never measured.
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
                raise ResultsError(f"{test_file}: trial {point[0]} step {point[1]} is not in points.csv")
    return study


def take(frame: pd.DataFrame, mask: npt.ArrayLike) -> pd.DataFrame:
    """The rows of `frame` where `mask` [N] holds, as a frame (`frame[mask]` may be a series to pyright)."""
    return frame.take(np.flatnonzero(mask))


def points_table(text: str, file: Path) -> pd.DataFrame:
    """Return the table of points in `text`, the content of a points.csv, with `config_id` and `replicate`.

    Raises ResultsError, which names `file`, where a row is not complete or a value has the wrong type.
    """
    return replicates.identified(_table(text, file, POINT_COLUMNS))


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{file}: not a readable csv file: {error}") from None


def _table(text: str, file: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """Return the table of a csv file whose every row is complete.

    pandas alone would fill a row that was cut off with NaN, and would read the trial id 12e4 as a number.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ResultsError(f"{file}: not a readable csv file: {error}") from None
    if not rows:
        raise ResultsError(f"{file}: empty, not even a header")
    header = rows[0]
    if missing := [column for column in required if column not in header]:
        raise ResultsError(f"{file}: missing column(s) {', '.join(missing)}")
    if len(set(header)) != len(header):
        raise ResultsError(f"{file}: a column name occurs twice in the header")
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
            raise ResultsError(f"{file}: trial {point[0]} step {point[1]} occurs twice")
        seen.add(point)
    return pd.DataFrame(columns)


def _typed(column: str, texts: list[str], file: Path) -> pd.Series:
    """Return a column in its own type; an empty cell is NaN. Configurations may be numbers or words."""
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
            raise ResultsError(f"{file}: column {column} holds a number above 2**63 - 1") from None
    elif column in ("step", "replicate"):
        raise ResultsError(f"{file}: column {column}: whole numbers are expected")
    else:
        try:
            numbers = pd.Series([float(text) if text else math.nan for text in texts], dtype=float)
        except ValueError as error:
            if column.startswith("config/"):
                return pd.Series([text or None for text in texts], dtype=object)
            raise ResultsError(f"{file}: column {column}: {error}") from None
    return numbers


def _empty(columns: tuple[str, ...]) -> pd.DataFrame:
    types = {"feasible": bool, **dict.fromkeys(TEXT_COLUMNS, str)}
    return pd.DataFrame({column: pd.Series(dtype=types.get(column, float)) for column in columns})


def _check_shares(frame: pd.DataFrame, file: Path) -> None:
    for column in frame.columns:
        if column == "sparsity" or column.split("/")[0].endswith("_acc"):
            values = frame[column].to_numpy(float)
            if ((values < 0) | (values > 1)).any():
                raise ResultsError(f"{file}: column {column} leaves [0, 1]; a share is expected, not per cent")


def _check_points(study: Study, file: Path) -> None:
    if absent := [column for column in study.objectives if column not in study.raw.columns]:
        raise ResultsError(f"{file}: objective(s) {', '.join(absent)} of study.json are not columns here")
    _check_shares(study.raw, file)
    one = study.raw.drop_duplicates("trial_id")
    for trial in take(one, one.duplicated(["config_id", "replicate"])).to_dict("records"):
        name = f"replicate {trial['replicate']} of configuration {trial['config_id']}"
        raise ResultsError(f"{file}: {name} is more than one trial")
    limits = {"macs": study.limits.macs, study.bytes_column: study.limits.bytes}
    for point in study.raw.to_dict("records"):
        label = f"{file}: trial {point['trial_id']} step {point['step']}"
        if point["status"] not in STATUSES:
            raise ResultsError(f"{label}: status {point['status']!r}; allowed: {', '.join(STATUSES)}")
        if point["macs"] <= 0:
            raise ResultsError(f"{label}: macs is {point['macs']}; a positive count is expected")
        for column, limit in limits.items():
            if limit is not None and point["feasible"] and point[column] > limit:
                raise ResultsError(f"{label} is marked feasible, but its {column} exceeds the limit {limit}")
