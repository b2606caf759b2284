"""Other systems beside the networks of a study: when they are shown, and which files are refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis import outputs
from analysis.findings.markers import PUBLISHED, TAU_CLIPS, markers, read_markers
from analysis.page import html as report_page
from analysis.results import load_study
from analysis.typed_json import ResultsError
from tests.support.analysis.outputs import own_text, traces
from tests.support.example_study import manifest, write_study


def test_published_systems_are_shown_on_tau_and_only_there(tmp_path: Path) -> None:
    dataset = manifest()["dataset"]
    counts = {"tau": TAU_CLIPS, "other": 1800, "old": None}
    studies = {
        name: load_study(write_study(tmp_path / name, dataset=dataset | ({"n_clips": n} if n else {})))
        for name, n in counts.items()
    }
    shown = {name: "other systems" in traces(study) for name, study in studies.items()}
    assert shown == {"tau": True, "other": False, "old": False}
    baseline = next(one for one in read_markers(PUBLISHED) if one.name == "DCASE baseline 2024")
    assert (baseline.macs, baseline.params, baseline.accuracy) == (29.42e6, 61148, 50.29)
    trace = traces(studies["tau"])["other systems"]
    assert len(trace["x"]) == len(read_markers(PUBLISHED)) and 29.42 in trace["x"] and 50.29 in trace["y"]
    for text in trace["text"]:  # each says where it was measured, and where this is from
        assert "% on " in text and "<br>trained on " in text and text.count("<br>") == 4
    assert "DCASE baseline" not in own_text(report_page.page(studies["other"]))
    assert outputs.write_report(studies["tau"].path)["svg"].read_bytes().startswith(b"<?xml")


def test_a_users_file_adds_systems(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text('- {name: "<b>ours", macs: 3.1e6, accuracy: 58.1}\n- {name: b, macs: 5000000, accuracy: 60}\n')
    study = replace(load_study(write_study(tmp_path / "x")), markers_file=file)
    assert [(one.name, one.macs, one.accuracy) for one in markers(study)] == [("<b>ours", 3.1e6, 58.1), ("b", 5e6, 60)]
    page = own_text(report_page.page(study))
    assert "<b>ours" not in page and "&lt;b&gt;ours" in page.replace("\\u0026", "&")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1", "dict"),
        ("- 5", "'5'"),
        ("- {name: a, macs: 1e6}", "'accuracy'"),
        ("- {name: a, macs: 1e6, accuracy: 158}", "accuracy is '158'"),
        ("- {name: a, macs: -1, accuracy: 58}", "macs is '-1'"),
        ("- {name: a, macs: .inf, accuracy: 58}", "macs is 'inf'"),
        ("- {name: a, macs: true, accuracy: 58}", "macs is 'True'"),
        ("- {name: '', macs: 1e6, accuracy: 58}", "name is ''"),
        ("- {name: a, macs: 1e6, accuracy: 58, year: 2024}", "'year'"),
        ("- {name: a, name: b, macs: 1e6, accuracy: 58}", "name"),
        ("- [", "YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key_and_value(tmp_path: Path, text: str, found: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ResultsError) as raised:
        read_markers(file)
    assert found in str(raised.value) and str(file) in str(raised.value)
    study = write_study(tmp_path / "x")
    with pytest.raises(ResultsError):
        outputs.write_report(study, file)
    assert not (study / "report.html").exists()
