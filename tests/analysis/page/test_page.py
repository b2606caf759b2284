"""What the page and the Markdown summary are made from: tables, the networks for the script, figures of parameters."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from analysis import front
from analysis.figures import parameters, parts
from analysis.findings import details
from analysis.page import explorer, markdown
from analysis.page import html as report_page
from analysis.page.document import Cell, Head, Row, Table
from analysis.results import load_study, take
from tests.support.analysis.outputs import own_text
from tests.support.example_study import SCENES, manifest, replicated_rows, rows, write_study, write_table

HOSTILE = "a|b <script>alert(1) `x` [c](d) *d*"


def test_a_table_as_csv_and_markdown() -> None:
    heads = [Head("name", "text"), Head("a, b"), Head("c")]
    table = Table("t", heads, [Row([Cell("x|y", kind="text"), Cell('1"'), Cell("2")])], Row([Cell("sum", span=3)]))
    assert list(csv.reader(io.StringIO(table.csv()))) == [["name", "a, b", "c"], ["x|y", '1"', "2"], ["sum", "", ""]]
    assert markdown.table(table).splitlines() == [
        *("| name | a, b | c |", "| --- | --: | --: |", '| x\\|y | 1" | 2 |', "| sum |  |  |")
    ]


def test_markdown_has_the_front_and_escapes_names(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, name=HOSTILE))
    text = markdown.markdown(study)
    assert text.startswith("# a\\|b \\<script\\>") and "<script" not in text.replace("\\<", "")
    best = front.pareto_points(study)
    section = text.split("## The front")[1].split("##")[0]
    lines = [line for line in section.splitlines() if line.startswith("| 0")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == best["trial_id"].tolist()
    assert len({line.replace("\\|", "").count("|") for line in section.splitlines() if line.startswith("|")}) == 1
    assert "![Pareto front](front.png)" in text and "Click" not in text
    assert "## How the search went" in text and "## What mattered" in text and "<" not in text.replace("\\<", "")


def test_networks_of_the_page_are_the_measured_points(tmp_path: Path) -> None:
    for name, table in (("single", rows()), ("means", replicated_rows())):
        study = load_study(write_study(tmp_path / name, table))
        known, points = explorer.networks(study), parts.measured(study)
        columns = {name: [texts[i] for i in at] for name, (texts, at) in known["columns"].items()}
        assert columns["trial"] == points["trial_id"].tolist() and known["n"] == len(points)
        assert [text.split(" %")[0] for text in columns["validation accuracy"]] == [
            f"{100 * a:.1f}" for a in points["val_macro_avg_acc"]
        ]
        names, shares = known["details"]["accuracies"]["names"], known["details"]["accuracies"]["rows"]
        assert names[0] == "airport" and names[-1] == "device s3" and len(shares) == len(points)
        assert shares[3][0] == round(1000 * points["val_acc/airport"].iloc[3])
        json.dumps(known, allow_nan=False)


def test_curves_and_confusions_are_read_and_damaged_files_are_not(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    best = front.pareto_points(load_study(folder)).iloc[-1]
    place = (folder / best["checkpoint"]).parent
    place.mkdir(parents=True)
    table = [{"stage": s, "epoch": e, "val_macro_avg_acc": a} for s, e, a in ((0, 1, 0.25), (0, 2, ""), (1, 1, 0.5))]
    write_table(place / "results.csv", table)
    counts = np.arange(100).reshape(10, 10)
    point = {"step": int(best["step"]), "confusion": counts.tolist()}
    (place / "info.json").write_text(json.dumps({"points": [point]}))
    study = load_study(folder)
    known = explorer.networks(study)["details"]
    trial = best["trial_id"]
    assert known["curves"] == {trial: [[0, 2], [250, None, 500]]}
    assert known["confusion"] == {f"{trial}/{best['step']}": counts.tolist()}
    assert known["labels"] == [scene.replace("_", " ") for scene in SCENES]
    with (place / "results.csv").open("a") as stream:
        stream.write("1,2,0.")  # a row that is being written
    assert explorer.networks(study)["details"]["curves"] == known["curves"]
    for wrong in ("[1]", "5", "{", '{"points": 5}', '{"points": [{"step": 0}]}', json.dumps({"points": [point] * 2})):
        (place / "info.json").write_text(wrong)
        assert details.confusions(study) == {}
    for wrong in ("", "stage\n1\n", "stage,val_macro_avg_acc\n0,1.5\n", "stage,val_macro_avg_acc\n-1,0.5\n"):
        (place / "results.csv").write_text(wrong)
        assert details.learning_curves(study) == {}


def test_coordinates_of_parameters() -> None:
    logarithmic = parameters.coordinate("lr", [0.001, 0.01], {"loguniform": [1e-4, 1e-1]})
    assert logarithmic and logarithmic.values == pytest.approx([-3, -2])
    assert logarithmic.labels == ("0.001", "0.002", "0.005", "0.01")
    lists = parameters.coordinate("ratios", ["[0.1, 0.3]", "[]", "[0.2]"], {"each": "steps", "item": {}})
    assert lists and lists.values == pytest.approx([0.2, 0, 0.2]) and lists.name == "ratios, mean"
    names = parameters.coordinate("branches", ['["3x3", "1x1"]', "[]", '["3x3", "1x1"]'], {"choice": []})
    assert names and names.values[0] == names.values[2] != names.values[1] and set(names.labels) == {"3x3+1x1", "none"}
    assert parameters.coordinate("x", [1.0, math.nan], {"uniform": [0, 1]}) is None
    assert parameters.coordinate("x", [str(i) for i in range(50)], None) is None
    numbers = parameters.coordinate("x", [i / 7 for i in range(50)], None)
    assert numbers and numbers.ticks == ()


def test_plots_of_parameters_show_every_measured_network(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    made = report_page.figures(study)
    n = len(parts.measured(study))
    dimensions = made["parameters"]["data"][0]["dimensions"]
    assert [d["label"] for d in dimensions] == [
        *("kd_alpha", "kd_temp", "lr", "base_channels", "branches", "ratios, mean", "prune steps"),
        *("M MACs", "kB fp16", "validation %"),
    ]
    for trace in made["effects"]["data"]:
        assert trace["customdata"] == list(range(n)) and len(trace["x"]) == n
    few = load_study(write_study(tmp_path / "few", rows()[:3]))
    assert set(report_page.figures(few)) == {"pareto", "bytes"}
    bare = load_study(
        write_study(tmp_path / "bare", [{k: v for k, v in r.items() if "config/" not in k} for r in rows()])
    )
    assert "parameters" in report_page.figures(bare)  # the number of prune steps is left


def test_a_page_without_parameters_space_or_classes(tmp_path: Path) -> None:
    table = [{k: v for k, v in row.items() if "/" not in k or k == "checkpoint"} for row in rows() if row["step"] == 0]
    folder = write_study(tmp_path, table, space=None, limits=None, dataset=None, baseline=None, teachers=None)
    page = own_text(report_page.page(load_study(folder)))
    for absent in ("classes", "importance", "space"):
        assert f'id="{absent}-section"' not in page
    assert manifest()["name"] in page and 'id="front"' in page
    assert take(load_study(folder).points, [True]).shape[0] == 1


def test_names_in_plots_are_escaped(tmp_path: Path) -> None:
    table = [row | {"config/a<b>": row["config/train.lr"], "config/c": f"<i>{row['step']}"} for row in rows()]
    made = report_page.figures(load_study(write_study(tmp_path, table)))
    text = json.dumps([made["parameters"]["data"][0]["dimensions"], made["effects"]["layout"]])
    assert "<i>" not in text and "a<b>" not in text and "&lt;i&gt;0" in text and "a&lt;b&gt;" in text


def test_a_front_at_the_limit_has_no_hypervolume_and_is_not_denied(tmp_path: Path) -> None:
    row = rows()[0] | {"macs": 1_000_000, "bytes_fp16": 1000, "feasible": True}
    limits = {"macs": 1_000_000, "bytes": 128_000, "precision": "fp16"}
    study = load_study(write_study(tmp_path, [row | {"search_s": 5.0, "search_epochs": 3}], limits=limits))
    page = own_text(report_page.page(study))
    assert "1 non-dominated feasible point" in page and "No measured network is a candidate" not in page
