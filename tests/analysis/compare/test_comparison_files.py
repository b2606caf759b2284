"""The files of a comparison: page, Markdown, tables, plot; the command line; studies with little or no content."""

import io
import re

import numpy as np
import pandas as pd
import pytest

from analysis import front, outputs, report
from analysis.compare import figures, notes, page
from analysis.compare import outputs as comparison_outputs
from analysis.compare.comparison import compare_studies, study_table, surface_table, with_interval
from analysis.results import load_study
from tests.support.analysis.comparisons import of_data, replicated, study
from tests.support.analysis.outputs import own_text
from tests.support.example_study import LIMITS, replicated_rows, rows, write_study

POINTS = [(1e6, 0.5), (4e6, 0.6)]
NO_LIMITS = {"macs": None, "bytes": None, "precision": "fp32"}


def texts(compared):
    """Return the body of the page without scripts, and the Markdown, of a comparison; all is made without an error."""
    html = page.page(compared)
    assert figures.png(compared).startswith(b"\x89PNG")
    return html.split("<main>")[1].split("</main>")[0], page.markdown(compared)


def test_a_pair_of_studies_is_written_and_printed(tmp_path, capsys):
    one, two = write_study(tmp_path / "a"), write_study(tmp_path / "b", rows(3), name="b", sampler="nsga2")
    assert report.main([str(one), str(two), "--out", str(tmp_path / "out/deep")]) == 0
    out = tmp_path / "out/deep"
    names = ["attainment.csv", "comparison.csv", "comparison.html", "comparison.md", "fronts.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    shown = capsys.readouterr().out
    assert "A = example" in shown and "B = b" in shown and str(out / "comparison.html") in shown
    table = pd.read_csv(out / "comparison.csv")
    for row, folder in zip(table.to_dict("records"), (one, two), strict=True):
        loaded = load_study(folder)
        best = front.pareto_points(loaded)
        assert row["front_points"] == len(best) and row["best_macs"] == best["macs"].max()
        assert row["best_val_macro_avg_acc"] == pytest.approx(best["val_macro_avg_acc"].max())
        assert row["hypervolume"] == pytest.approx(front.hypervolume(loaded), rel=1e-5)
        assert row["hypervolume_low"] < row["hypervolume"] < row["hypervolume_high"]
    corners = pd.read_csv(out / "attainment.csv")
    assert corners["surface"].unique().tolist() == ["front"] and len(corners) == table["front_points"].sum()
    html = (out / "comparison.html").read_text()
    assert html.count("* plotly.js v") == 1 and "sampler" in html and "nsga2" in html
    assert not (one / "comparison.html").exists()


def test_an_error_leaves_the_earlier_files(tmp_path, monkeypatch, capsys):
    folders = [write_study(tmp_path / "a"), write_study(tmp_path / "b", name="b", sampler="nsga2")]
    out = tmp_path / "out"
    comparison_outputs.write_comparison(folders, out)
    old = {path: path.read_bytes() for path in out.iterdir()}
    write_study(tmp_path / "b", rows(5), name="b", limits=LIMITS | {"macs": 40_000_000})
    assert report.main([*map(str, folders), "--out", str(out)]) == 2
    assert "limits.macs is 40000000" in "".join(capsys.readouterr()).replace("\n", " ")
    assert {path: path.read_bytes() for path in out.iterdir()} == old


def test_out_is_required_for_several_studies_and_allowed_for_one(tmp_path, capsys):
    one = write_study(tmp_path / "a")
    before = sorted(one.iterdir())
    with pytest.raises(SystemExit) as end:
        report.main([str(one), str(one)])
    assert end.value.code == 2 and "--out" in capsys.readouterr().err
    for option in ("--markers", "--compare-with"):  # options of the report on one study
        with pytest.raises(SystemExit):
            report.main([str(one), str(tmp_path / "b"), "--out", str(tmp_path / "out"), option, "x"])
        assert option in capsys.readouterr().err
    assert report.main([str(one), str(one), "--out", str(tmp_path / "out")]) == 2
    assert "was given twice" in capsys.readouterr().err and not (tmp_path / "out").exists()
    paths = outputs.write_report(one, out=tmp_path / "out/deep")
    assert {path.parent for path in paths.values()} == {tmp_path / "out/deep"} and sorted(one.iterdir()) == before


def test_names_are_escaped_and_unique():
    name = "<script>alert(1)"
    compared = compare_studies(
        [study("p/x", POINTS, name=name, dataset=of_data()), study("q/x", POINTS, name=name, dataset=of_data(), seed=7),
         study("r/x", POINTS, name="a*b|c", sampler="<b>", dataset=of_data())]
    )  # fmt: skip
    html, markdown = texts(compared)
    whole = own_text(page.page(compared))
    assert whole.count("<script") == whole.count("</script>") == 4  # those of the template
    assert "<script" not in html and "alert(1)</script>" not in whole
    assert "&lt;script&gt;alert(1) (p/x)" in html and "&lt;script&gt;alert(1) (q/x)" in html and "<b>" not in html
    assert "&lt;script&gt;alert(1) (p/x)" in markdown and "<script" not in markdown and "a\\*b\\|c" in markdown
    assert all("<script" not in trace["name"] for trace in figures.figures(compared)["fronts"]["data"])


def test_runs_have_attainment_surfaces():
    def run(prefix, seed, shift, **changes):
        levels = [(1e6 * (1 + seed), 0.5 + shift), (8e6, 0.6 + shift + seed / 100)]
        return study(f"{prefix}{seed}", levels, seed=seed, dataset=of_data(validation=f"v{seed}"), **changes)

    compared = compare_studies([run(p, s, g, **c) for p, g, c in (("a", 0, {}), ("b", 0.2, {"sampler": "nsga2"}))
                                for s in range(3)])  # fmt: skip
    table = surface_table(compared)
    of_a = table[table["method"] == "A"].groupby("surface")[["macs", "val_macro_avg_acc"]]
    corners = {name: frame.to_numpy().round(6).tolist() for name, frame in of_a}
    assert corners == {
        "best": [[1e6, 0.5], [8e6, 0.62]],
        "median": [[2e6, 0.5], [8e6, 0.61]],
        "worst": [[3e6, 0.5], [8e6, 0.6]],
    }
    html, markdown = texts(compared)
    assert "seeds 0, 1, 2" in html and "This is no proof" in html and "mean hypervolume" in markdown
    drawn = figures.figures(compared)["fronts"]["data"]
    assert [trace["showlegend"] for trace in drawn] == [True, False, False] * 2


def test_repetitions_of_one_method_have_no_verdict():
    compared = compare_studies([study(f"a{s}", POINTS, seed=s, dataset=of_data(validation=str(s))) for s in (0, 1)])
    html, _ = texts(compared)
    assert "runs of one method" in html and "2 studies, 1 method<" in html and "The verdict names" not in html
    assert "shares" not in figures.figures(compared)


@pytest.mark.parametrize("points", [[], [(1e6, float("nan"))]])
def test_an_empty_study_is_shown_without_numbers(points):
    both = [study("a", POINTS, dataset=of_data()), study("b", points, dataset=of_data(), sampler="nsga2")]
    compared = compare_studies(both)
    html, _ = texts(compared)
    assert "A and B cannot be compared" in html and "b has no feasible, measured point" in html
    assert "is above" not in html.split("What the uncertainty")[0].split("<figcaption>")[0]
    row = study_table(compared).iloc[1]
    assert row["front_points"] == 0 and row[["hypervolume", "hypervolume_low", "best_macs"]].isna().all()
    assert not re.search(r"\bnan\b", html, flags=re.I)


def test_two_empty_studies_have_no_plots():
    both = [study("a", [], dataset=of_data()), study("b", [], dataset=of_data(), sampler="nsga2")]
    html, _ = texts(compare_studies(both))
    assert 'class="plot' not in html and "cannot be compared" in html


def test_one_point_each():
    compared = compare_studies([study("a", [(2e6, 0.9)], dataset=of_data()),
                                study("b", [(2e6, 0.5)], dataset=of_data(), sampler="nsga2")])  # fmt: skip
    html, _ = texts(compared)
    assert "from 2 to 30 M MACs (by 40.0 percentage points" in html and "elsewhere" not in html


def test_without_limits_there_is_no_hypervolume_and_no_limit_line():
    points = {"a": [(2e6, 0.9), (4e6, 0.91)], "b": [(2e6, 0.5)]}
    both = [study(n, points[n], dataset=of_data(), limits=NO_LIMITS, sampler=n) for n in points]
    compared = compare_studies(both)
    html, markdown = texts(compared)
    assert "no common reference point and no hypervolume" in html
    assert "hypervolume (95 %)" not in html and "hypervolume (95 %)" not in markdown and "limit " not in html
    assert "from 2 to 4 M MACs" in html  # to the largest point
    alone = compare_studies([study("a", [(2e6, 0.9)], limits=NO_LIMITS), study("b", [(2e6, 0.5)], limits=NO_LIMITS,
                                                                               sampler="x")])  # fmt: skip
    assert "above B&#39;s at 2 M MACs (by 40.0" in texts(alone)[0]


def test_a_missing_seed_changes_nothing_but_the_mean():
    rng = np.random.default_rng(0)
    pairs = [(1e6, 0.5), (2e6, 0.55), (8e6, 0.7)]
    whole, lacking = replicated(pairs, 3, 0.01, rng), replicated(pairs, 3, 0.01, rng, missing={(1, 2), (2, 0)})
    compared = compare_studies([study("a", whole, dataset=of_data()),
                                study("b", lacking, dataset=of_data(), sampler="nsga2")])  # fmt: skip
    html, _ = texts(compared)
    assert {sampled.source for sampled in compared.sampled} == {"seeds"}
    assert "resamples of the seeds" in html and "with added noise" not in html
    assert study_table(compared)["front_points"].tolist() == [3, 3]
    # three seeds of one configuration, of which one is left: no mean, so no point
    alone = study("c", replicated(pairs, 3, 0.01, rng, missing={(0, 1), (0, 2)}), dataset=of_data())
    assert compare_studies([study("a", whole, dataset=of_data()), alone]).sampled[1].runs[0].macs.tolist() == [2e6, 8e6]


def test_warnings_name_what_makes_a_comparison_less_certain(tmp_path):
    def warned(**changes):
        other = study("b", changes.pop("points", POINTS), **{"dataset": of_data()} | changes)
        return " ".join(notes.warnings(compare_studies([study("a", POINTS, dataset=of_data()), other])))

    assert warned(sampler="x") == ""
    assert "b is not complete yet (status: running)" in warned(sampler="x", status="running")
    assert "front-ends differ" in warned(frontend={"hop": 1000}) and "hop 1000" in warned(frontend={"hop": 1000})
    assert "candidates" not in warned(points=[*POINTS, (5e6, 0.7)], sampler="x")
    assert "b has 8 candidates" in warned(points=[(1e6 + i, 0.5) for i in range(8)], sampler="x")
    assert "same settings and the same seed" in warned()
    assert "no fingerprint" in warned(sampler="x", dataset={k: v for k, v in of_data().items() if k != "fingerprint"})
    change = {"time": "2026-01-05", "what": "the code has changed"}
    assert "--allow-changes accepted" in warned(sampler="x", changes=[change])
    means = replicated(POINTS, 3, 0.01, np.random.default_rng(0))
    assert "means over seeds" in warned(points=means, sampler="x")
    triple = {"val_macro_avg_acc": "max", "macs": "min", "bytes": "min"}
    both = [study(n, POINTS, dataset=of_data(), objectives=triple, sampler=n) for n in ("a", "b")]
    assert "further objective bytes_fp16" in " ".join(notes.warnings(compare_studies(both)))


def test_other_settings_are_listed():
    compared = compare_studies([study("a", POINTS, frontend={"hop": 500}), study("b", POINTS, sampler="nsga2",
                                frontend={"hop": 1000}, overrides=["train.epochs=9"])])  # fmt: skip
    assert notes.differing_settings(compared) == {
        "sampler": ["tpe", "nsga2"],
        "overrides": ["\N{EN DASH}", "train.epochs=9"],
        "frontend.hop": ["500", "1000"],
    }


def test_replicates_and_single_runs_of_the_example(tmp_path):
    folders = [write_study(tmp_path / "a"), write_study(tmp_path / "r", replicated_rows(), name="r")]
    compared, paths = comparison_outputs.write_comparison(folders, tmp_path / "out")
    assert [sampled.source for sampled in compared.sampled] == ["noise", "seeds"]
    table = pd.read_csv(io.BytesIO(paths["comparison.csv"].read_bytes()))
    assert table["uncertainty"].tolist() == ["noise", "seeds"]


def test_numbers_are_rounded_to_their_uncertainty():
    dash = "\N{EN DASH}"
    assert with_interval(0.51234, 0.4981, 0.5271) == f"0.512 (0.498{dash}0.527)"
    assert with_interval(0.654, 0.6, 0.71, 100) == f"65.4 (60.0{dash}71.0)"
    assert with_interval(float("nan"), 0, 1) == dash and with_interval(0.5, float("nan"), 1) == "0.5"


def test_styles_differ():
    looks = [figures.style(i) for i in range(60)]
    assert len(set(looks)) == 60 and len({look.color for look in looks[:6]}) == 6
