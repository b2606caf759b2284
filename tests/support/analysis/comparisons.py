"""Studies in memory for the tests of comparisons: with given fronts, seeds and settings."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.results import Study
from tests.support.analysis.outputs import study_of
from tests.support.example_study import manifest, rows

FINGERPRINT = {
    **{"sound": "5eed", "clips": "c11b5", "train": "7ra1", "validation": "4a11", "labels": "1ab", "devices": "de4"},
    **{"subset": 25, "validation_share": 0.2, "seed": 0, "format": 1},
}


def study(folder, points, **changes) -> Study:
    """Return a study in the folder `folder` (not read) with `points`, rows as dicts or (MACs, accuracy) pairs.

    `changes` replace keys of its manifest; `name` is that of the folder, unless it is given.
    """
    base = rows()[0] | {"feasible": True, "status": "complete", "step": 0, "bytes_fp16": 100}
    table = [
        point
        if isinstance(point, dict)
        else base | {"trial_id": f"t{i}", "macs": point[0], "val_macro_avg_acc": point[1]}
        for i, point in enumerate(points)
    ]
    made = study_of(table or [base], **{"name": Path(folder).name, "trials": None} | changes)
    return replace(made, path=Path(folder), raw=made.raw if table else made.raw.iloc[:0])


def of_data(**changes):
    """Return the dataset of a manifest with a fingerprint; `changes` replace keys of the fingerprint."""
    return manifest()["dataset"] | {"fingerprint": FINGERPRINT | changes}


def replicated(pairs, seeds, sd, rng, missing=()):
    """Return rows of points.csv: `seeds` seeds of each (MACs, true accuracy) pair, with the deviation `sd` over seeds.

    `missing` lists (configuration, replicate) that were not measured.
    """
    base = rows()[0] | {"feasible": True, "status": "complete", "step": 0, "bytes_fp16": 100}
    return [
        base
        | {"trial_id": f"t{i}" + (f"r{r}" if r else ""), "config_id": f"t{i}", "replicate": r, "macs": int(macs)}
        | {"val_macro_avg_acc": float(np.clip(accuracy + sd * rng.standard_normal(), 0, 1))}
        for i, (macs, accuracy) in enumerate(pairs)
        for r in range(seeds)
        if (i, r) not in missing
    ]
