"""Reading a study's folder: types, damaged and missing files, rows that contradict one another."""

import re

import pandas as pd
import pytest

from analysis import front, report
from analysis.results import load_study, points_table
from analysis.typed_json import ResultsError
from tests.support.example_study import replicated_rows, rows, write_study, write_table, write_timed_study


def test_reading_keeps_ids_and_types(tmp_path):
    table = [row | {"trial_id": name} for row, name in zip(rows()[:2], ("007", "12e4"), strict=True)]
    study = load_study(write_study(tmp_path, table))
    assert study.points["trial_id"].tolist() == ["007", "12e4"]
    assert study.points["macs"].tolist() == [row["macs"] for row in table]
    assert study.points["feasible"].dtype == bool and study.points["macs"].dtype == "int64"
    assert study.points["config/student.branches"].tolist() == [row["config/student.branches"] for row in table]


def damage_header(text):
    return text.replace("macs", "macz", 1)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("study.json", None, "no such file"),
        ("study.json", lambda text: text[:200], "not valid JSON, perhaps cut off"),
        ("study.json", lambda text: "[]", "found list"),
        (
            "study.json",
            lambda text: text.replace('"objectives"', '"objective"'),
            "key 'objectives' is missing",
        ),
        ("study.json", lambda text: text.replace('"min"', '"down"'), "'down'"),
        ("study.json", lambda text: text.replace('"fp16"', '"fp8"'), r"limits\.precision is 'fp8'"),
        ("points.csv", lambda text: "", "empty, not even a header"),
        ("points.csv", damage_header, "missing column.s. macs"),
        ("points.csv", lambda text: text[:-40], "row 33 has .* fields; .*cut off"),
        ("points.csv", lambda text: text[:-1], "last row .*cut off"),
        ("points.csv", lambda text: text + text.splitlines()[1] + "\n", "occurs twice"),
        (
            "points.csv",
            lambda text: text.replace(",complete,", ",done,", 1),
            "status is 'done'",
        ),
        ("points.csv", lambda text: text.replace(",True,", ",yes,", 1), "feasible is 'yes'"),
        (
            "points.csv",
            lambda text: text.replace("00000,0,12,0.", "00000,0,12,56.", 1),
            "column val_macro_avg_acc",
        ),
        ("points.csv", lambda text: text.replace(",False,", ",True,", 1), "marked feasible, but its"),
        ("points.csv", lambda text: text.replace("00000,0,12", "00000,0,twelve", 1), "column epochs"),
        ("points.csv", lambda text: text.replace("36740168", "9" * 20), "column macs"),
    ],
)
def test_a_bad_folder_is_named_and_nothing_is_written(tmp_path, capsys, file, damage, message):
    broken = write_study(tmp_path / "study") / file
    text = broken.read_text()
    broken.unlink()
    if damage is not None:
        assert damage(text) != text
        broken.write_text(damage(text))
    before = sorted(path.name for path in broken.parent.iterdir())
    assert report.main([str(broken.parent)]) == 2
    printed = capsys.readouterr().err
    assert re.search(f"{re.escape(str(broken))}.*{message}", printed)
    if "cut off" in message and file == "points.csv":
        assert "--resume" in printed
    assert sorted(path.name for path in broken.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trial_id": "twin"}, "replicate 0 of configuration 00000 "),
        ({"replicate": "first", "trial_id": "x"}, "column replicate has 'first'"),
    ],
)
def test_replicates_must_be_told_apart(tmp_path, change, message):
    table = replicated_rows(seeds=2)
    with pytest.raises(ResultsError, match=message):
        load_study(write_study(tmp_path, [*table, table[0] | change]))


def test_test_rows_must_be_known(tmp_path):
    folder = write_study(tmp_path)
    write_table(folder / "test.csv", [{"trial_id": "99999", "step": 0, "test_macro_avg_acc": 0.5}])
    with pytest.raises(ResultsError, match=r"test.csv: trial 99999 step 0 is not in points.csv"):
        load_study(folder)


@pytest.mark.parametrize("opened", [False, True])
def test_a_lost_points_file_is_named_with_its_remedy(tmp_path, capsys, opened):
    """The study has trained trials, so the report must not claim that nothing was measured."""
    counts = None if opened else {"complete": 1, "rejected": 3}
    folder = write_study(tmp_path, trials=counts, code={"data/tau.py": "0"})
    if opened:
        write_table(folder / "test.csv", [{"trial_id": "00002", "step": 2, "test_macro_avg_acc": 0.5}])
    (folder / "points.csv").unlink()
    study = load_study(folder)
    assert study.points_missing and len(study.points) == 0
    assert report.main([str(folder)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    page = (folder / "report.html").read_text()
    for text in (printed, page):
        assert str(folder / "points.csv") in text and "--resume" in text
        assert "measured point" not in text and "No feasible point" not in text and "points.csv holds" not in text
    new = load_study(write_study(tmp_path / "new", trials={"rejected": 3}))
    assert not new.points_missing
    (new.path / "points.csv").unlink()
    assert not load_study(new.path).points_missing  # only samples were rejected


def test_a_table_in_memory_takes_the_place_of_the_file(tmp_path):
    folder = write_study(tmp_path)
    expected, text = load_study(folder), (folder / "points.csv").read_text()
    header = text.splitlines(keepends=True)[0]
    for content in (None, "cut off", header):
        (folder / "points.csv").unlink(missing_ok=True)
        if content is not None:
            (folder / "points.csv").write_text(content)
        study = load_study(folder, text)
        pd.testing.assert_frame_equal(study.raw, expected.raw)
        assert not study.points_missing
        empty = load_study(folder, header)
        assert len(empty.raw) == 0 and not empty.points_missing and front.pareto_points(empty).empty
    pd.testing.assert_frame_equal(points_table(text, folder / "points.csv"), expected.raw)
    with pytest.raises(ResultsError, match=re.escape(str(folder / "elsewhere"))):
        points_table(text[:-1], folder / "elsewhere")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("trial_id", text) for text in ("../x", "a/b", "..", "", "a\x1b[2J")),
        *(("checkpoint", text) for text in ("../step0", "/etc", "experiments/../../x", "experiments//x")),
        ("config_id", "../x"),
    ],
)
def test_names_and_paths_that_lead_out_of_the_study_are_refused(tmp_path, column: str, value: str):
    table = rows()
    for row in table:
        row |= {"config_id": row["trial_id"], "replicate": 0, "checkpoint": f"experiments/{row['trial_id']}/step0"}
    load_study(write_study(tmp_path / "good", table))
    table[1][column] = value
    with pytest.raises(ResultsError) as error:
        load_study(write_study(tmp_path / "bad", table))
    assert f"points.csv: {column} is {value!r}" in str(error.value)


def test_the_table_of_trials_has_types(tmp_path):
    folder = write_timed_study(tmp_path / "study")
    study = load_study(folder)
    assert study.trials is not None and len(study.trials) == 18
    kinds = study.trials.dtypes.map(str)
    assert kinds["epochs"] == kinds["stage"] == "int64" and kinds["created_s"] == "float64"
    assert set(study.trials["reason"]) == {"", "the loss is nan"} and set(study.trials["stopped_by"]) == {"", "mo_asha"}
    text = (folder / "trials.csv").read_text()
    (folder / "trials.csv").write_text("cut off")
    again = load_study(folder, trials_text=text).trials
    assert again is not None
    pd.testing.assert_frame_equal(again, study.trials)
    (folder / "trials.csv").write_text(text.splitlines(keepends=True)[0])
    empty = load_study(folder).trials
    assert empty is not None and empty.empty
    (folder / "trials.csv").unlink()
    assert load_study(folder).trials is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("status", text) for text in ("", "done")),
        *(("epochs", text) for text in ("-1", "many", "", "inf")),
        *(("created_s", text) for text in ("-0.5", "", "nan", "soon")),
        *(("ended_s", text) for text in ("0.5", "inf")),  # before created_s
        *(("trial_id", text) for text in ("../x", "a/b", "")),
        *(("stage", text) for text in ("-1", "1.5")),
        ("planned_epochs", "-3"),
        ("restores", "x"),
    ],
)
def test_a_bad_value_of_a_trial_is_named_with_its_remedy(tmp_path, column: str, value: str):
    file = write_timed_study(tmp_path / "study") / "trials.csv"
    lines = file.read_text().splitlines()
    cells = lines[3].split(",")
    cells[lines[0].split(",").index(column)] = value
    file.write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]) + "\n")
    with pytest.raises(ResultsError) as error:
        load_study(file.parent)
    assert str(error.value).startswith(f"{file}: ") and column in str(error.value) and "--resume" in str(error.value)


def test_a_trial_has_one_row(tmp_path):
    file = write_timed_study(tmp_path / "study") / "trials.csv"
    file.write_text(file.read_text() + file.read_text().splitlines()[1] + "\n")
    with pytest.raises(ResultsError, match=rf"{re.escape(str(file))}: trial \d+ occurs twice"):
        load_study(file.parent)


@pytest.mark.parametrize(("column", "value"), [("search_s", "-1"), ("search_s", ""), ("search_epochs", "inf")])
def test_a_bad_moment_of_a_point_is_named(tmp_path, column: str, value: str):
    table = rows()
    moments = {"search_s": 1.0, "search_epochs": 1}
    with pytest.raises(ResultsError, match=f"points.csv: column {column} has"):
        load_study(write_study(tmp_path, [table[0] | moments, table[1] | moments | {column: value}]))


def test_objectives_with_texts_and_limits_that_are_no_numbers_are_refused(tmp_path):
    folder = write_study(tmp_path / "text", objectives={"val_macro_avg_acc": "max", "status": "min"})
    with pytest.raises(ResultsError, match=f"{folder}/points.csv: column status"):
        load_study(folder)
    for key in ("macs", "bytes"):
        folder = write_study(
            tmp_path / key, limits={"macs": 1e6, "bytes": 1e5, "precision": "fp16"} | {key: float("nan")}
        )
        with pytest.raises(ResultsError, match=f"limits.{key} is nan"):
            load_study(folder)
