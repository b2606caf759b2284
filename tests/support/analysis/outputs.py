"""Fronts by brute force, studies in memory, and what a report shows of a study."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import replicates
from analysis.figures import interactive, parts
from analysis.manifest import manifest_of
from analysis.page import explorer
from analysis.page import html as report_page
from analysis.results import STATUSES, Study
from tests.support.example_study import manifest, rows


def dominates(left, right, directions):
    signs = [1 if way == "max" else -1 for way in directions]
    gains = [sign * (a - b) for sign, a, b in zip(signs, left, right, strict=True)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def brute_force_front(table):
    """Return (trial, step) of the front of `table` (rows as dicts), sorted by MACs."""
    good = [r for r in table if r["feasible"] and np.isfinite([r["val_macro_avg_acc"], r["macs"]]).all()]
    pairs = [(r["val_macro_avg_acc"], r["macs"]) for r in good]
    beaten = [any(dominates(other, pair, ("max", "min")) for other in pairs) for pair in pairs]
    best = [row for row, worse in zip(good, beaten, strict=True) if not worse]
    return [(r["trial_id"], r["step"]) for r in sorted(best, key=lambda r: r["macs"])]


def traces(study):
    """Return name -> trace, as a plain dict, of the interactive plot."""
    figure = interactive.interactive(study, parts.macs_axis(study)).to_plotly_json()
    return {trace["name"]: trace for trace in figure["data"]}


def drawn(study, name):
    """Return what the page shows under the mouse pointer for each marker of a trace of the plot over MACs, in order.

    A text is a dict, such as {"trial": "t0003", "step": "1", "MACs": "3.21 M"}.
    """
    known = explorer.networks(study)
    return [dict(zip(known["columns"], known["rows"][row], strict=True)) for row in traces(study)[name]["customdata"]]


def section_of(page, name):
    """Return the HTML of the section `name` of the page, below its heading; AssertionError if it has none."""
    found = re.search(rf'<h2 id="{name}-section">.*?</h2>(.*?)(?=<h2|<footer>)', page, re.S)
    assert found, name
    return found[1]


def own_text(page):
    """Return the page without plotly.js."""
    return page.replace(report_page.get_plotlyjs(), "")


def table_rows(page):
    """Return (trial, step) of the rows of the page's front table, in order."""
    body = re.search(r'<table id="front".*?<tbody>(.*?)</tbody>', page, re.S)
    assert body
    return [(t, int(s)) for t, s in re.findall(r'<tr data-trial="(.*?)" data-step="(\d+)">', body[1])]


def study_of(table, **changes):
    """Return a study in memory from rows as dicts; `changes` replace keys of its manifest."""
    raw = replicates.identified(pd.DataFrame(table))
    return Study(Path("nowhere"), manifest_of(manifest(**changes), "study.json"), raw, None)


def random_points(seed, n_configurations=8, n_seeds=1):
    """Return rows of random trials of any status with up to three steps, with ties, NaN and infeasible rows."""
    rng, base = np.random.default_rng(seed), rows()[0]
    made = []
    for number, replicate in itertools.product(range(n_configurations), range(n_seeds)):
        name = f"t{number}" + (f"r{replicate}" if replicate else "")
        ids = {"trial_id": name, "config_id": f"t{number}", "replicate": replicate}
        ids["status"] = str(rng.choice(STATUSES))
        for step in range(int(rng.integers(0, 4))):
            accuracy = float(rng.integers(1, 10)) / 10 if rng.random() < 0.85 else np.nan
            row = base | ids | {"step": step, "val_macro_avg_acc": accuracy, "feasible": rng.random() < 0.85}
            made.append(row | {"macs": int(rng.integers(1, 8)), "checkpoint": f"{name}/step{step}"})
    return [made[i] for i in rng.permutation(len(made))]
