"""Collect what the page shows of each network: texts under the mouse pointer, and the box of a selected network."""

import math
from typing import Any

from analysis import summary
from analysis.figures import parts
from analysis.findings import details
from analysis.results import Study

MOST_CURVES = 2000  # trials; with more, the page shows the learning curves of the front only


def networks(study: Study) -> dict[str, Any]:
    """Return the networks of a study for the page, as JSON values; the rows are those of `parts.measured`.

    The keys are: `n`, number of networks; `columns`, name -> [distinct texts, index of the text of each network];
    `details`, which has learning curves, accuracies by scene and device (in 1/1000) and the confusion matrices of the
    front.
    """
    points = parts.measured(study)
    sampled = study.prefixed("config/")
    records: list[dict[Any, Any]] = points.to_dict("records")
    made = [texts(study, point, sampled) for point in records]
    longest = max(made, key=len, default={})  # has the names in their order; a network without test results has fewer
    columns = list(dict.fromkeys([*longest, *(name for row in made for name in row)]))
    on_front = {str(point["trial_id"]) for point in records if point["role"] == "front"}
    curves = {
        trial: [_starts(curve.stages), [None if a is None else round(1000 * a) for a in curve.accuracies]]
        for trial, curve in details.learning_curves(study, None if len(points) <= MOST_CURVES else on_front).items()
    }
    scenes, devices = study.prefixed("val_acc/"), study.prefixed("val_device_acc/")
    labels = [column.removeprefix("val_acc/").replace("_", " ") for column in scenes]
    known: dict[str, Any] = {"curves": curves, "labels": labels}
    if scenes or devices:
        names = [*labels, *(f"device {column.removeprefix('val_device_acc/')}" for column in devices)]
        shares = [[_mille(point[column]) for column in (*scenes, *devices)] for point in records]
        known["accuracies"] = {"names": names, "rows": shares}
    known["confusion"] = {f"{trial}/{step}": m.tolist() for (trial, step), m in details.confusions(study).items()}
    encoded = {name: _encoded([row.get(name, "") for row in made]) for name in columns}
    return {"n": len(made), "columns": encoded, "details": known}


def _encoded(values: list[str]) -> tuple[list[str], list[int]]:
    """Return the distinct `values`, and for each value its index among them: many networks share a configuration."""
    numbers = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return list(numbers), [numbers[value] for value in values]


def texts(study: Study, point: dict[Any, Any], sampled: list[str]) -> dict[str, str]:
    """Return what is known about a network: name -> text, such as "validation accuracy" -> "61.2 % ± 2.4".

    `point` maps the columns of points.csv to the values of one point, and "role" to its role (front, dominated, ...).
    `sampled` lists the columns that have sampled configuration values (config/...).
    """
    found = {
        "trial": str(point["trial_id"]),
        "step": str(point["step"]),
        "group": parts.ROLES[point["role"]].label,
        "validation accuracy": f"{summary.percent(point['val_macro_avg_acc'])} %{_error_text(study, point)}",
    }
    if not summary.absent(point.get("test_macro_avg_acc")):
        groups = [name for name in point if name.startswith("test_acc/")]
        detail = ", ".join(f"{name.removeprefix('test_acc/')} {summary.percent(point[name])}" for name in groups)
        seeds = f", mean of {point['test_n_seeds']:.0f}" if study.replicated else ""
        by_group = f" ({detail})" if detail else ""
        found["test accuracy"] = f"{summary.percent(point['test_macro_avg_acc'])} %{seeds}{by_group}"
    if not summary.absent(refitted := point.get("refitted_test_macro_avg_acc")):
        n = f"{point['refitted_test_n_seeds']:.0f}"
        found["refitted, test accuracy"] = f"{summary.percent(refitted)} %, mean of {n}"
    found["MACs"] = f"{summary.millions(point['macs'])} M"
    found["parameters"] = f"{summary.thousands(point['params'])} k"
    found["size"] = f"{summary.thousands(point[study.bytes_column])} kB at {study.precision}"
    found["sparsity"] = f"{summary.percent(point['sparsity'])} %"
    epochs = f", {point['epochs']:.0f} epochs" if not summary.absent(point.get("epochs")) else ""
    found["trial status"] = f"{point['status']}{epochs}"
    for column in sampled:
        found[column.removeprefix("config/")] = summary.value_text(point[column])
    if not summary.absent(point.get("checkpoint")):
        found["checkpoint"] = str(point["checkpoint"])
    return found


def _error_text(study: Study, point: dict[Any, Any]) -> str:
    """Return the uncertainty of the validation accuracy of a point, as text that is placed after the accuracy.

    It is the 95 % interval of a mean over seeds, or the binomial standard error of a single run. The text is empty if
    the uncertainty is unknown.
    """
    if study.replicated:
        n = point["n_seeds"]
        if n < 2:
            return " (one seed)" if n else ""
        return (
            f", mean of {n} seeds, sd {summary.percent(point['val_macro_avg_acc_std'])}, 95 % {summary.span(point)} %"
        )
    error = float(summary.standard_error(point["val_macro_avg_acc"], summary.validation_clips(study)))
    return f" ± {summary.percent(error)}" if math.isfinite(error) else ""


def _starts(stages: list[int]) -> list[int]:
    """Return the index of the first epoch of each stage, counted from 0; the first one is 0."""
    return [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]


def _mille(share: Any) -> int | None:
    return None if summary.absent(share) else round(1000 * share)
