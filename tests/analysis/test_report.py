"""The report: its page, its table in the terminal, its commands."""

import ast
import html
import io
import json
import re
import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis import front, outputs, report, summary
from analysis.page import html as report_page
from analysis.results import load_study
from search_spaces import load_space
from tests.support.analysis.outputs import brute_force_front, drawn, own_text, section_of
from tests.support.example_study import manifest, rows, write_study, write_table
from tests.support.imports import FLOORS
from tests.support.paths import ROOT


def test_standard_error_and_short_texts():
    assert summary.standard_error(0.5, 100) == pytest.approx(0.05)
    assert np.isnan(summary.standard_error(0.5, None))
    shown = [summary.value_text(v) for v in (0.00213, 32.0, "['3x3', '1x1']", "[0.3, 0.25]", "[]", None, np.nan)]
    assert shown == ["0.00213", "32", "3x3+1x1", "0.3/0.25", "none", summary.DASH, summary.DASH]
    config = {"config/prune.lr": [1e-3], "config/train.lr": [0.5], "config/student.base_channels": [32]}
    config |= {"config/prune.ratios.0": [0.3], "config/prune.ratios.1": [np.nan]}
    short = summary.short_config(pd.DataFrame(config))
    assert short.iloc[0].to_dict() == {"lr": "0.5", "width": "32", "prune.lr": "0.001", "ratios": "0.3"}


def test_test_split_is_shown_where_it_was_opened(tmp_path):
    folder = write_study(tmp_path)
    trial, step = brute_force_front(rows())[0]
    write_table(
        folder / "test.csv",
        [
            {
                "trial_id": trial,
                "step": step,
                "test_macro_avg_acc": 0.4321,
                "test_acc/unseen": 0.3987,
                "test_loss": 1.5,
            }
        ],
    )
    study = load_study(folder)
    page = report_page.page(study)
    assert "opened once, for the 1 chosen point" in page and section_of(page, "test")
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(outputs.front_table(study))
    text = console.export_text()
    assert "test %" in text and "43.2" in text and "alpha\N{NO-BREAK SPACE}" in text
    first, second = drawn(study, "front")[:2]
    assert first["test accuracy"] == "43.2 % (unseen 39.9)" and second["test accuracy"] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (None, "points.csv does not exist"),
        ([rows()[0]], "1 row in .*, 1 over a limit"),
        (
            [row for row in rows() if row["status"] == "failed" or not row["feasible"]],
            "7 rows in .*, 5 over a limit, 2 without finite objectives",
        ),
        ([row for row in rows() if not row["feasible"]], "over a limit"),
    ],
)
def test_a_study_without_a_front_says_so(tmp_path, capsys, table, reason):
    folder = write_study(tmp_path, table, trials=None)
    if table is None:
        (folder / "points.csv").unlink()
    assert report.main([str(folder)]) == 0
    assert re.search(f"No feasible point yet: .*{reason}", " ".join(capsys.readouterr().out.split()))
    page = (folder / "report.html").read_text()
    assert "No feasible point yet" in page and '<table id="front"' not in page
    assert len(pd.read_csv(folder / "front.csv")) == 0
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")


def test_accepted_changes_are_warned_of(tmp_path):
    changes = [
        {"time": "2026-01-05T09:31:00+00:00", "what": "the code has changed: data/tau.py <changed>"},
        {"time": "2026-01-06T09:31:00+00:00", "what": "the space has changed: train.lr"},
    ]
    study = load_study(write_study(tmp_path, changes=changes))
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(outputs.front_table(study))
    page, printed = own_text(report_page.page(study)), console.export_text()
    for change in changes:
        assert change["time"] in page and html.escape(change["what"]) in page
        assert change["time"] in printed and change["what"] in printed
    assert page.count("--allow-changes") == printed.count("--allow-changes") == 2
    assert "--allow-changes" not in own_text(report_page.page(load_study(write_study(tmp_path / "same"))))


def test_the_page_shows_the_facts_of_the_data_but_no_hashes(tmp_path):
    dataset = manifest()["dataset"] | {"fingerprint": {"clips": "5eedbeef"}, "notes": ["left out: a.wav <cut off>"]}
    page = own_text(report_page.page(load_study(write_study(tmp_path, dataset=dataset))))
    assert "n_train 1600, n_validation 420" in page and "left out: a.wav &lt;cut off&gt;" in page
    assert "fingerprint" not in page and "5eedbeef" not in page


def space_table(page):
    """Return parameter -> (range, sampled, on the front) from the page's table of the search space."""
    rows = re.findall(r"<tr>(.*?)</tr>", section_of(page, "space"))
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row.replace("<wbr>", "")) for row in rows]
    return {row[0]: tuple(map(html.unescape, row[1:])) for row in cells if row}


def test_ranges_and_samples_of_a_space_are_shown_in_words(tmp_path):
    table = rows()
    study = load_study(write_study(tmp_path, table, space=load_space("kd_prune").as_dict()))
    shown = space_table(report_page.page(study))
    assert {name: texts[0] for name, texts in shown.items()} == {
        "distill.kd_alpha": "0.0 to 1.0, step 0.125",
        "distill.kd_temp": "1.0 to 6.0",
        "train.lr": "0.002 to 0.02, log scale",
        "student.base_channels": "8 to 32, step 8",
        "student.branches": "one of 3x3, 3x3+1x1+identity, 3x3+3x1+1x3, 3x3+3x1+1x3+1x1+identity",
        "prune.ratios": "0.1 to 0.4 for each of prune.steps (1 to 3)",
    }
    ratios = [ratio for row in table for ratio in json.loads(row["config/prune.ratios"])]
    assert shown["prune.ratios"][1] == f"{min(ratios):.3g} to {max(ratios):.3g}"
    assert shown["student.base_channels"][1] == "8, 16, 24, 32, 48"


@pytest.mark.parametrize("auxiliary", ["x", [1], 5])
def test_a_space_whose_auxiliary_parameters_are_no_mapping_is_left_out(tmp_path, auxiliary):
    space = load_space("kd_prune").as_dict()
    valid, damaged = (
        report_page.page(load_study(write_study(tmp_path / name, space=space | changed)))
        for name, changed in (("valid", {}), ("damaged", {"auxiliary": auxiliary}))
    )
    assert "prune.ratios" in space_table(valid)
    assert "<p>Space kd_prune" in valid and "<p>Space kd_prune" not in damaged


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_is_shown_without_its_notation(tmp_path, path):
    space = load_space(path.stem)
    shown = space_table(report_page.page(load_study(write_study(tmp_path, space=space.as_dict()))))
    assert list(shown) == list(space.parameters)
    for texts in shown.values():
        assert not set("{}[]'\"") & set("".join(texts))


def test_a_partial_manifest_leaves_lines_out(tmp_path):
    folder = write_study(tmp_path)
    full = own_text(report_page.page(load_study(folder)))
    (folder / "study.json").write_text(json.dumps({"name": "old", "objectives": manifest()["objectives"]}))
    study = load_study(folder)
    bare = own_text(report_page.page(study))
    for text in (
        "Baseline",
        "Teachers",
        "<dt>Limits",
        "Hypervolume",
        "<dt>Seed",
        "deployed form",
        "standard error",
    ):
        assert text in full and text not in bare
    assert '"name": "limit"' in full and '"name": "limit"' not in bare


def test_the_page_is_self_contained_and_escapes_names(tmp_path):
    name = "<img src=x onerror=alert(1)> $body [red]"
    table = rows()
    for row in table:
        row["config/student.branches"] = f"</script><script>alert(1)</script>{row['trial_id']}"
        row["trial_id"] = f"<b>{row['trial_id']}"
    folder = write_study(tmp_path, table, name=name)
    study = load_study(folder)
    page = report_page.page(study)
    assert page.count("* plotly.js v") == 1  # plotly.js is included once
    own = own_text(page)
    assert not re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?(?:https?:)?//""", own)
    assert not re.findall(r"https?://", own) and "@import" not in own
    assert own.count("<script") == own.count("</script>") == 4
    assert "alert(1)</script>" not in own and "<img src=x" not in own and "default-src 'none'" in own
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(outputs.front_table(study))
    assert name in console.export_text()


def test_a_terminal_of_80_characters_shows_every_value(tmp_path):
    study = load_study(write_study(tmp_path))
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(outputs.front_table(study))
    lines = console.export_text().splitlines()
    start = next(line.index("configuration") for line in lines if "configuration" in line)
    shown = "".join("".join(line[start:].split()) for line in lines)  # a long value may break over two lines
    for _, sampled in summary.short_config(front.pareto_points(study)).iterrows():
        assert ",".join(f"{name}{value}" for name, value in sampled.items()) in shown


@pytest.mark.slow
def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    study = write_study(tmp_path)
    paths = outputs.write_report(study)
    assert {key: path.name for key, path in paths.items()} == {
        "csv": "front.csv",
        "png": "front.png",
        "svg": "front.svg",
        "md": "report.md",
        "html": "report.html",
    }
    old = {path: path.read_bytes() for path in study.iterdir()}
    write_table(study / "points.csv", rows(1))
    old[study / "points.csv"] = (study / "points.csv").read_bytes()

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(report_page, "page", full_disk)
    with pytest.raises(OSError, match="no space"):
        outputs.write_report(study)
    assert {path: path.read_bytes() for path in study.iterdir()} == old


@pytest.mark.slow
def test_both_commands_work(tmp_path, monkeypatch):
    folder = write_study(tmp_path)
    file = subprocess.run(
        [sys.executable, ROOT / "analysis/report.py", folder],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert brute_force_front(rows())[0][0] in file.stdout and str(folder / "report.html") in file.stdout
    assert "no point was measured on test" in file.stdout
    with pytest.raises(SystemExit) as end, monkeypatch.context() as patch:  # python -m analysis.report STUDY
        patch.setattr(sys, "argv", ["report", str(folder / "absent")])
        patch.delitem(sys.modules, "analysis.report")
        runpy.run_module("analysis.report", run_name="__main__")
    assert end.value.code == 2


def test_a_uri_is_refused_as_it_is(capsys):
    with pytest.raises(SystemExit) as end:
        report.main(["s3://bucket/studies/x"])
    assert end.value.code == 2 and "s3://bucket/studies/x is a URI" in " ".join(capsys.readouterr().err.split())


def test_analysis_imports_nothing_of_the_other_floors():
    allowed = {
        "analysis",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "numpy",
        "pandas",
        "plotly",
        "rich",
        "scipy",
    } | sys.stdlib_module_names
    for file in (ROOT / "analysis").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names if name not in FLOORS["analysis"]} - allowed, file
