"""Names and texts in the files of others reach the terminal as text: control characters, rich's markup, spaces."""

import pytest

from analysis import outputs, paired, report
from analysis.results import load_study
from tests.support.example_study import write_study

EVIL = "\x1b[2J[/red][bold]"
SHOWN = r"\x1b[2J[/red][bold]"


def test_texts_of_a_study_are_printed_as_they_are(tmp_path, capsys) -> None:
    changes = [{"time": "2026-01-05T09:31:00+00:00", "what": f"the code has changed: {EVIL}"}]
    baseline = {"name": EVIL, "val_macro_avg_acc": 0.5, "test_macro_avg_acc": None}
    outputs.print_front(load_study(write_study(tmp_path, changes=changes, baseline=baseline)))
    text = capsys.readouterr().out
    assert text.count(SHOWN) == 2 and "\x1b" not in text
    assert "lr\N{NO-BREAK SPACE}" in text


def test_an_error_of_the_report_is_printed_as_it_is(tmp_path, capsys) -> None:
    folder = write_study(tmp_path)
    (folder / "points.csv").write_text(f"trial_id,{EVIL}\n")
    assert report.main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert f"found only trial_id, {SHOWN}" in captured.err and "\x1b" not in captured.err


def test_arms_and_columns_are_printed_as_they_are(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    file = tmp_path / "raw.csv"
    rows = [f"{arm},{seed},0.{seed}" for arm in (EVIL, "[red]") for seed in (1, 2)]
    file.write_text("\n".join([f"arm,seed,{EVIL}", *rows, ""]))
    assert paired.main([str(file), "--metric", EVIL, "--pairs", f"{EVIL}:[red]"]) == 0
    text = capsys.readouterr().out
    assert text.count(SHOWN) == 4 and "[red]" in text and "\x1b" not in text


@pytest.mark.slow
def test_the_paths_of_a_report_are_printed_as_they_are(tmp_path, capsys) -> None:
    folder = write_study(tmp_path / "runs[bold]" / "a[" / "red]")
    assert report.main([str(folder)]) == 0
    assert f"report:  {folder}/report.html" in capsys.readouterr().out
