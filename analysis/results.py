"""Read and check the result files in a study folder: `study.json`, `points.csv`, `trials.csv` and `test.csv`.

    study = load_study("runs/my-study")
    study.points, study.trials, study.test, study.limits, study.manifest

`tune/` writes these files. All code in `analysis/` works on the `Study` that `load_study` returns; the journal is never
read. A missing, truncated or inconsistent file raises `ResultsError`, which names the file and the reason.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype

from analysis import replicates
from analysis.csv_table import NETWORK, REFITTED, SEARCH, check_shares, empty_table, read_table, read_text
from analysis.manifest import Limits, StudyManifest, read_manifest
from analysis.typed_json import ResultsError

STATUSES = (
    "complete",
    "stopped early",
    "failed",  # because of its configuration, e.g. the loss became NaN
    "crashed",  # for another reason, e.g. a node died; a resume retries the trial
    "running",
)
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
MOMENT = ("search_s", "search_epochs")  # columns of points.csv that older versions did not write
TEST_COLUMNS = ("trial_id", "step", "test_macro_avg_acc")
TRIAL_COLUMNS = (  # tune/reporting/csv_texts.py describes them
    *("trial_id", "config_id", "replicate", "status", "stopped_by", "reason", "epochs", "planned_epochs", "stage"),
    *("restores", "created_s", "ended_s"),
)
REMEDY = (
    "tune/run.py --resume --name STUDY (with --storage, if the study is not in runs/) writes points.csv again from the "
    "journal; a study without a journal needs a copy of the file"
)
TRIALS_REMEDY = "tune/run.py --resume --name STUDY writes trials.csv again from the journal"
TEST_REMEDY = "delete test.csv, then tune/evaluate.py writes it again"


@dataclass(frozen=True)
class Study:
    """The contents of the result files of one study.

    `path` is the study folder, and `manifest` is study.json. `raw` is points.csv, with one row per measured network (a
    complete trial with R prune steps has R + 1 rows). `raw_test` has the rows of test.csv for networks of the search,
    one per network, and `raw_refitted` those for networks of the refit, which were trained on all clips. They are None
    if there are no such rows. `trials` is trials.csv, with one row per created trial; None if the file does not exist,
    because an earlier version made the study.
    """

    path: Path
    manifest: StudyManifest
    raw: pd.DataFrame
    raw_test: pd.DataFrame | None
    raw_refitted: pd.DataFrame | None = None
    points_missing: bool = False  # True: points.csv is missing although trials were trained, and `raw` is empty
    trials: pd.DataFrame | None = None
    markers_file: Path | None = None  # YAML file with systems to show with the study's (analysis/findings/markers.py)
    compare_with: Path | None = (
        None  # another study, whose ranks are compared with this one's (analysis/findings/ranks.py)
    )

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

    @cached_property
    def refitted(self) -> pd.DataFrame | None:
        """Test results of the refitted networks, means over seeds, one row per configuration (`trial_id`) and step."""
        return None if self.raw_refitted is None else replicates.mean_refits(self.raw_refitted)

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
        """Return `points` with the test columns added; they are NaN for points that were not measured on test.

        The columns of the refitted networks begin with `refitted_test_`.
        """
        found = self.points.copy()
        for table, prefix in ((self.test, "test_"), (self.refitted, "refitted_test_")):
            if table is not None:
                kept = ["trial_id", "step", *(c for c in table.columns if c.startswith(prefix))]
                found = found.merge(table[kept], on=["trial_id", "step"], how="left", validate="one_to_one")
        return found


def load_study(path: Path | str, points_text: str | None = None, trials_text: str | None = None) -> Study:
    """Return the study in the folder `path`, read from its files and checked.

    If `points_text` or `trials_text` is given, it is used instead of the file points.csv or trials.csv, e.g. for a
    running study whose tables are older than its journal. If `points_text` is None and the file does not exist,
    `Study.raw` is empty; `Study.points_missing` is then True if the file was lost, and False if no network has been
    measured yet.

    Raise ResultsError if study.json is missing or invalid, a table is truncated, a value is out of range, `feasible`
    contradicts the limits, or test.csv has a network that points.csv does not have.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ResultsError(f"{folder}: not a folder; expected a study folder with study.json: check the path")
    manifest = read_manifest(folder / "study.json")
    points_file, test_file = folder / "points.csv", folder / "test.csv"
    try:
        tests = read_table(read_text(test_file), test_file, TEST_COLUMNS) if test_file.exists() else None
    except ResultsError as error:
        raise ResultsError(f"{error}; {TEST_REMEDY}") from None
    missing = points_text is None and not points_file.exists()
    if points_text is not None:
        points = points_table(points_text, points_file)
    elif missing:
        points = replicates.identified(empty_table(POINT_COLUMNS))
    else:
        try:
            points = points_table(read_text(points_file), points_file)
        except ResultsError as error:
            raise ResultsError(f"{error}; {REMEDY}") from None
    trained = any(number for status, number in (manifest.progress.trials or {}).items() if status != "rejected")
    test, refits = (None, None) if tests is None else (_tests_of(tests, SEARCH), _tests_of(tests, REFITTED))
    trials = _read_trials(folder / "trials.csv", trials_text)
    study = Study(folder, manifest, points, test, refits, missing and (trained or test is not None), trials)
    _check_points(study, points_file)
    if tests is not None:
        check_shares(tests, test_file, TEST_REMEDY)
    if test is not None and not study.points_missing:
        known = set(zip(points["trial_id"], points["step"], strict=True))
        for point in zip(test["trial_id"], test["step"], strict=True):
            if point not in known:
                name = f"trial {point[0]} step {point[1]}"
                raise ResultsError(f"{test_file}: {name} is not in points.csv; expected a row for it; {REMEDY}")
    return study


def _tests_of(tests: pd.DataFrame, network: str) -> pd.DataFrame | None:
    """Return the rows of test.csv for networks of the search or of the refit; None if there are none.

    Versions without refits did not write the column `network`.
    """
    kinds = tests.get(NETWORK, pd.Series(SEARCH, index=tests.index))
    found = take(tests, kinds == network).drop(columns=[NETWORK], errors="ignore").reset_index(drop=True)
    return None if found.empty and (network == REFITTED or NETWORK in tests) else found


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
    return replicates.identified(read_table(text, file, POINT_COLUMNS))


def _check_points(study: Study, file: Path) -> None:
    if absent := [column for column in study.objectives if column not in study.raw.columns]:
        names = ", ".join(absent)
        raise ResultsError(f"{file}: missing column(s) {names}, expected as objectives of study.json; {REMEDY}")
    if texts := [column for column in study.objectives if not is_numeric_dtype(study.raw[column])]:
        raise ResultsError(
            f"{file}: column {texts[0]}, an objective of study.json, is text; expected numbers; {REMEDY}"
        )
    check_shares(study.raw, file, REMEDY)
    one = study.raw.drop_duplicates("trial_id")
    for trial in take(one, one.duplicated(["config_id", "replicate"])).to_dict("records"):
        name = f"replicate {trial['replicate']} of configuration {trial['config_id']}"
        raise ResultsError(f"{file}: {name} has more than one trial_id; expected one; {REMEDY}")
    for column in (column for column in MOMENT if column in study.raw):
        values = study.raw[column].to_numpy(float)
        if len(wrong := values[~(np.isfinite(values) & (values >= 0))]):
            raise ResultsError(f"{file}: column {column} has {wrong[0]:g}; expected numbers from 0 on; {REMEDY}")
    limits = {"macs": study.limits.macs, study.bytes_column: study.limits.bytes}
    for point in study.raw.to_dict("records"):
        label = f"{file}: trial {point['trial_id']} step {point['step']}"
        _check_status(point["status"], label, REMEDY)
        if point["macs"] <= 0:
            raise ResultsError(f"{label}: macs is {point['macs']}; expected a number above 0; {REMEDY}")
        for column, limit in limits.items():
            if limit is not None and point["feasible"] and point[column] > limit:
                found = f"is marked feasible, but its {column} is {point[column]}"
                raise ResultsError(f"{label} {found}; expected at most {limit}; {REMEDY}")


def _read_trials(file: Path, text: str | None) -> pd.DataFrame | None:
    """Return the table in `text`, the content of trials.csv; without `text`, that in `file`, or None without a file.

    Raise ResultsError if a value is not valid; its message starts with the path `file`.
    """
    if text is None and not file.exists():
        return None
    try:
        table = read_table(read_text(file) if text is None else text, file, TRIAL_COLUMNS)
    except ResultsError as error:
        raise ResultsError(f"{error}; {TRIALS_REMEDY}") from None
    least: dict[str, npt.ArrayLike] = dict.fromkeys(("epochs", "stage", "restores", "planned_epochs", "created_s"), 0)
    least["ended_s"] = table["created_s"].to_numpy(float)
    for column, bound in least.items():
        values, optional = table[column].to_numpy(float), column in ("planned_epochs", "ended_s")
        wrong = ~(np.isfinite(values) & (values >= bound)) & ~(np.isnan(values) & optional)
        if wrong.any():
            trial, found = table["trial_id"].iloc[int(wrong.argmax())], values[wrong][0]
            expected = "created_s or more" if column == "ended_s" else "0 or more"
            raise ResultsError(f"{file}: trial {trial}: {column} is {found:g}; expected {expected}; {TRIALS_REMEDY}")
    for trial, status in zip(table["trial_id"], table["status"], strict=True):
        _check_status(status, f"{file}: trial {trial}", TRIALS_REMEDY)
    return table


def _check_status(status: str, where: str, remedy: str) -> None:
    if status not in STATUSES:
        raise ResultsError(f"{where}: status is {status!r}; expected one of {', '.join(STATUSES)}; {remedy}")
