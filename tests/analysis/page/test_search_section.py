"""The section of the report on the course of the search, for studies of every kind."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import front
from analysis.figures import parts
from analysis.figures.search import NEWEST, search_figures, time_unit
from analysis.findings.progress import progress
from analysis.findings.stops import saving
from analysis.page import html
from analysis.page.rendering import render
from analysis.page.search_section import search_section
from analysis.results import Study, load_study
from tests.support.example_study import replicated_rows, rows, trial_rows, write_study, write_timed_study


def section(study: Study) -> str:
    """Return the HTML of the section; empty if the study has none."""
    found = search_section(study, set(search_figures(study)))
    return "" if found is None else str(render("sections.html.j2", name="", top=[], sections=[found]))


def text(study: Study) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", section(study)).split())


def drawn(study: Study, name: str) -> list[Any]:
    figure: Any = search_figures(study)[name]
    return list(figure.data)


def traces(study: Study, name: str) -> dict[str, Any]:
    return {trace.name: trace for trace in drawn(study, name)}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load_study(write_timed_study(tmp_path / "study", rejected_reasons={"over the MACs limit": 3}))


def test_the_section_tells_the_numbers_of_the_findings(study: Study) -> None:
    words, found, saved = text(study), progress(study), saving(study)
    assert found is not None and found.grew is not None and saved is not None
    assert f"{front.hypervolume(study):.3f}" in words and f"trial {found.names[found.grew][0]}" in words
    assert f"{saved[0]} of {saved[1]} planned epochs" in words
    assert "the loss is nan" in words and "over the MACs limit 3" in words
    for table in ("stops", "failures", "rejected"):
        assert f'id="{table}"' in section(study)


def test_the_page_has_an_element_for_each_plot(study: Study, tmp_path: Path) -> None:
    """The script of the page looks up each plot by its id."""
    old = load_study(write_study(tmp_path / "old"))
    for one in (study, old, dataclasses.replace(study, trials=None), dataclasses.replace(study, raw=study.raw.head(0))):
        figures = html.figures(one)
        main = html.main(one, set(figures))
        assert all(f'id="{name}"' in main for name in figures)
        for figure in figures.values():
            assert len({trace["uid"] for trace in figure["data"]}) == len(figure["data"])
            json.dumps(figure, allow_nan=False)
    assert {"pareto", "progress", "trials"} <= set(html.figures(study))
    assert not {"progress", "trials"} & set(html.figures(old))


def test_the_curve_has_three_panels_that_end_at_what_was_spent(study: Study) -> None:
    found, curves = progress(study), [t for n, t in traces(study, "progress").items() if n.startswith("curve")]
    assert found is not None and len(curves) == 3
    minutes = [found.all_trials, found.all_epochs, 60 * found.all_hours]
    for curve, end in zip(curves, minutes, strict=True):
        assert curve.x[0] == curve.y[0] == 0 and curve.x[-1] == pytest.approx(end)
        assert curve.y[-1] == pytest.approx(front.hypervolume(study))
    without = dataclasses.replace(study, trials=None)
    assert sum(name.startswith("curve") for name in traces(without, "progress")) == 2


def test_the_script_finds_the_networks_of_the_markers(study: Study) -> None:
    """It highlights the networks of a trial in the last, empty trace; so only one panel has the networks."""
    shown, found = parts.measured(study), progress(study)
    assert found is not None
    for name in ("progress", "trials"):
        *others, last = drawn(study, name)
        assert last.name == "trial" and not last.x
        (networks,) = [trace for trace in others if trace.meta == "networks"]
        moments = shown["search_s"].iloc[list(networks.customdata)].to_numpy(float)
        if name == "trials":
            assert list(networks.x) == pytest.approx(moments / 60)
        else:
            assert set(moments / 3600) <= set(found.hours)


def test_each_trial_is_a_bar_with_the_colour_of_its_status(study: Study) -> None:
    bars, table = traces(study, "trials"), study.trials
    assert table is not None
    for status, group in table.groupby("status"):
        bar = bars[str(status)]
        assert sorted(bar.y) == group.index.tolist()  # places in the order of creation
        ends = [base + length for base, length in zip(bar.base, bar.x, strict=True)]
        assert sorted(ends) == pytest.approx(sorted(group["ended_s"] / 60))
    assert len(bars["stopped by the scheduler"].x) == 4 and len(bars["network measured"].x) == len(
        parts.measured(study)
    )


def test_a_trial_that_has_not_ended_extends_to_the_latest_moment(study: Study) -> None:
    assert study.trials is not None
    open_trials = study.trials.assign(status="running", ended_s=float("nan"))
    bar = traces(dataclasses.replace(study, trials=open_trials), "trials")["not ended"]
    ends = [base + length for base, length in zip(bar.base, bar.x, strict=True)]
    assert ends == pytest.approx([study.raw["search_s"].max() / 60] * len(open_trials))


def test_many_trials_are_cut_to_the_newest(study: Study) -> None:
    assert study.trials is not None
    table = pd.concat([study.trials] * 60, ignore_index=True)
    many = dataclasses.replace(study, trials=table.assign(trial_id=[f"t{i:04d}" for i in range(len(table))]))
    bars = [trace for trace in drawn(many, "trials") if trace.type == "bar"]
    places = sorted(place for bar in bars for place in bar.y)
    assert places == list(range(len(table) - NEWEST, len(table)))
    assert f"newest {NEWEST} of {len(table)}" in text(many)


def test_a_study_that_has_not_begun_has_no_section(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", trials=None, status="running")
    (folder / "points.csv").unlink()
    assert section(load_study(folder)) == "" and search_figures(load_study(folder)) == {}


def test_a_study_of_an_earlier_version_says_what_it_lacks(tmp_path: Path) -> None:
    words = text(load_study(write_study(tmp_path / "study")))
    assert "trials.csv" in words and "search_s" in words and "no journal" in words
    assert "unknown 3" in words  # rejected samples, without reasons
    assert "--resume" in text(load_study(write_study(tmp_path / "new", code={"data/tau.py": "0"})))


def test_a_study_whose_trials_all_failed(tmp_path: Path, study: Study) -> None:
    assert study.trials is not None
    failed = study.trials.assign(status="failed", reason="the loss is nan", stopped_by="")
    nothing = dataclasses.replace(study, raw=study.raw.head(0), trials=failed)
    words = text(nothing)
    assert "no hypervolume curve" in words and "The hypervolume of the front is" not in words
    assert set(search_figures(nothing)) == {"trials"} and "the loss is nan" in words


def test_one_point_and_no_limit(tmp_path: Path) -> None:
    table = [rows()[0] | {"feasible": True}]
    one = load_study(write_timed_study(tmp_path / "study", table, limits={}))
    words = text(one)
    assert "1.1 times the largest candidate" in words and "the limit of" not in words
    assert traces(one, "progress")["growth epochs"].x == (12,)


def test_a_study_with_replicates_says_what_its_curve_shows(tmp_path: Path) -> None:
    study = load_study(write_timed_study(tmp_path / "study", replicated_rows()))
    assert "means over seeds" in text(study) and f"{front.hypervolume(study):.3f}" in text(study)
    dots = traces(study, "trials")["network measured"].customdata
    shown = parts.measured(study)
    assert {shown["trial_id"].iloc[row] for row in dots} == set(shown["trial_id"])  # each seed has the row of its mean


def test_texts_of_others_are_escaped(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    folder = write_timed_study(tmp_path / "study", rejected_reasons={evil: 3})
    study = load_study(folder)
    assert study.trials is not None
    study = dataclasses.replace(study, trials=study.trials.assign(reason=evil, stopped_by=evil, status="failed"))
    assert evil not in section(study) and "&lt;img" in section(study)
    assert evil not in html.page(study)


@pytest.mark.parametrize(("hours", "unit"), [(0.0, "s"), (0.01, "s"), (0.5, "min"), (1.9, "min"), (2.0, "h")])
def test_units_of_time(hours: float, unit: str) -> None:
    assert time_unit(hours)[0] == unit


def test_the_rows_of_the_example_are_valid() -> None:
    assert trial_rows([]) == []
