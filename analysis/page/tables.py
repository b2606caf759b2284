"""Sections of the report with tables: the front, what each budget buys, accuracy by scene and device, test results."""

import shlex
from typing import Any

from analysis import front, summary
from analysis.findings import budgets
from analysis.page.document import Cell, Head, Row, Section, Table, Text
from analysis.results import Study

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


def front_section(study: Study) -> Section:
    """Return the section with the table of the front; its foot is the baseline, if there is one."""
    best = front.pareto_points(study)
    config = summary.short_config(best)
    numbers = {  # header -> (column, function that formats a value; None: an interval from _low to _high)
        "seeds": ("n_seeds", str),
        "val %": ("val_macro_avg_acc", summary.percent),
        "val 95 %": ("val_macro_avg_acc_low", None),
        "test %": ("test_macro_avg_acc", summary.percent),
        "test 95 %": ("test_macro_avg_acc_low", None),
        "refit seeds": ("refitted_test_n_seeds", _seeds),
        "refitted, test %": ("refitted_test_macro_avg_acc", summary.percent),
        "refitted, test 95 %": ("refitted_test_macro_avg_acc_low", None),
        "M MACs": ("macs", summary.millions),
        "k params": ("params", summary.thousands),
        f"kB {study.precision}": (study.bytes_column, summary.thousands),
        "sparsity %": ("sparsity", summary.percent),
    }
    numbers = {head: spec for head, spec in numbers.items() if spec[0] in best}
    if set(best["status"]) - {"complete"}:
        config.insert(0, "trial status", best["status"])
    words = {"trial", *(name for name in config if not all(map(_is_number, config[name])))}
    rows = []
    for point, sampled in zip(best.to_dict("records"), config.to_dict("records"), strict=True):
        cells = [Cell(point["trial_id"], point["trial_id"], "text"), Cell(str(point["step"]), point["step"])]
        for column, show in numbers.values():
            shown = show(point[column]) if show else summary.span(point, column.removesuffix("_low"))
            cells.append(Cell(shown, point[column]))
        cells += [Cell(v, v, "text wrap" if k in words else "") for k, v in sampled.items()]
        rows.append(Row(cells, point["trial_id"], point["step"]))
    names = ("trial", "step", *numbers, *map(str, config))
    heads = [Head(name, "text" if name in words else "", sorted=name == "M MACs") for name in names]
    table = Table("front", heads, rows, _baseline_row(study, list(numbers), len(config.columns)), sortable=True)
    note = (
        "Step 0 is the dense network; sparsity is the share of "
        "its parameters that pruning removed. front.csv contains the same rows with all columns and checkpoints"
    )
    note += "; points.csv contains the rows of each seed." if study.replicated else "."
    title = "The front: means over seeds" if study.replicated else "The front"
    hint = "Click a header to sort, and a row to see its network."
    return Section("front", title, [table, Text(hint, "hint"), Text(note, "note")])


def _baseline_row(study: Study, numbers: list[str], n_config: int) -> Row | None:
    """Return the foot of the front's table, with the accuracies of the baseline; None without a baseline."""
    if (found := summary.baseline(study)) is None:
        return None
    values = {"val %": summary.percent(found[1]), "test %": summary.percent(found[2])}
    last = "test %" if "test %" in numbers else "val %"
    before = numbers[: numbers.index(last) + 1]
    rest = Cell(found[0], kind="text wrap", span=len(numbers) + n_config - len(before))
    return Row([Cell("baseline", kind="text", span=2), *(Cell(values.get(name, "")) for name in before), rest])


def budgets_section(study: Study) -> Section | None:
    """Return the section with the most accurate candidate within each budget of MACs and of bytes, and the knee.

    Each row has the command that exports its network. None if the study has no candidate.
    """
    bought = budgets.budgets(study)
    if not bought:
        return None
    names = {"val_macro_avg_acc": "val %", "test_macro_avg_acc": "test %", "refitted_test_macro_avg_acc": "refitted %"}
    shown = {column: head for column, head in names.items() if any(column in (b.point or {}) for b in bought)}
    clips, rows = summary.validation_clips(study), []
    for budget in bought:
        unit = f"{budget.limit / 1e6:g} M MACs" if budget.column == "macs" else f"{budget.limit / 1e3:g} kB"
        cells = [Cell(unit, budget.limit, "text")]
        if budget.point is None:
            rows.append(Row([*cells, Cell("no network is so small", kind="text", span=len(shown) + 5)]))
            continue
        point = budget.point
        for column in shown:
            text = summary.percent(point.get(column))
            if column == "val_macro_avg_acc":
                text += _uncertainty(study, point, clips)
            cells.append(Cell(text, point.get(column)))
        cells.append(Cell(summary.millions(point["macs"]), point["macs"]))
        cells.append(Cell(summary.thousands(point[study.bytes_column]), point[study.bytes_column]))
        cells += [Cell(point["trial_id"], point["trial_id"], "text"), Cell(str(point["step"]), point["step"])]
        rows.append(Row([*cells, _export(study, point)], point["trial_id"], point["step"]))
    words = {"up to", "trial", "to export it"}
    columns = ["up to", *shown.values(), "M MACs", f"kB {study.precision}", "trial", "step", "to export it"]
    heads = [Head(name, "text" if name in words else "") for name in columns]
    note = "The most accurate network, by validation, that fits each budget"
    if study.replicated or clips:
        spread = "half of the 95 % interval over seeds" if study.replicated else "one binomial standard error"
        note += f"; {PLUS_MINUS}: {spread}"
    blocks = [Text(f"{note}.{_knee_text(study)}", "note"), Table("budgets", heads, rows)]
    return Section("budgets", "What each budget buys", [*blocks])


def _export(study: Study, point: dict[Any, Any]) -> Cell:
    """Return the cell with the command that exports a network, or the reason why there is none."""
    if summary.absent(checkpoint := point.get("checkpoint")):
        return Cell(summary.DASH, kind="text wrap")
    if remote := study.manifest.resolved.remote:
        return Cell(f"copy {remote}/{checkpoint} to a folder, and give it to trainables/deploy.py", kind="text wrap")
    place = study.path / str(checkpoint)
    if not place.exists():
        return Cell(f"not possible: {checkpoint} is not in the study's folder any more", kind="text wrap")
    return Cell(f"python trainables/deploy.py --checkpoint={shlex.quote(str(place))}", kind="text wrap code")


def _uncertainty(study: Study, point: dict[Any, Any], clips: int | None) -> str:
    """Return the half width of the error bar of a validation accuracy, e.g. " ± 2.8"; empty if it is unknown."""
    if study.replicated:
        half = (point["val_macro_avg_acc_high"] - point["val_macro_avg_acc_low"]) / 2
    else:
        half = float(summary.standard_error(point["val_macro_avg_acc"], clips))
    return "" if summary.absent(half) else f" {PLUS_MINUS} {summary.percent(half)}"


def _knee_text(study: Study) -> str:
    found = budgets.knee(study)
    if found is None:
        return ""
    points = front.pareto_points(study).to_dict("records")
    point = next(p for p in points if (p["trial_id"], p["step"]) == found)
    return (
        f" The knee of the front, beyond which more MACs buy less accuracy than before it, is trial {found[0]} step "
        f"{found[1]}: {summary.percent(point['val_macro_avg_acc'])} % at {summary.millions(point['macs'])} M MACs."
    )


def classes_section(study: Study) -> Section | None:
    """Return the section with the validation accuracy of each front point by scene and by device, as heat maps."""
    best: list[dict[Any, Any]] = front.pareto_points(study).to_dict("records")
    section = Section("classes", "By scene and device")
    for prefix, words, name in (("val_acc/", "scene", "scenes"), ("val_device_acc/", "device", "devices")):
        if columns := study.prefixed(prefix):
            names = {"val_macro_avg_acc": "all"} | {c: c.removeprefix(prefix).replace("_", " ") for c in columns}
            note = (
                f"Validation accuracy by {words} in per cent, of each point of the front; stronger colours are higher."
            )
            section.blocks.extend([Text(note, "note"), heat_map(name, best, names)])
    return section if section.blocks else None


def test_section(study: Study) -> Section | None:
    """Return the section with the test accuracies of all points in test.csv, in total and by device group.

    None if the study has no test.csv.
    """
    if study.test is None:
        return None
    groups = [column for column in study.test.columns if column.startswith("test_acc/")]
    names = {"test_macro_avg_acc": "all"} | {column: column.removeprefix("test_acc/") for column in groups}
    names |= {"test_macro_avg_acc_std": "sd over seeds"} if study.replicated else {}
    chosen = study.test.merge(study.points[["trial_id", "step", "macs"]], on=["trial_id", "step"])
    records: list[dict[Any, Any]] = chosen.sort_values(by="macs").to_dict("records")
    note = "Test accuracy in per cent of the points that were chosen on validation."
    if study.replicated:
        note += f" Means over seeds, at least {chosen['test_n_seeds'].min()} per point; sd is that of single networks."
    section = Section("test", "Test split", [Text(note, "note"), heat_map("test", records, names)])
    if study.refitted is not None:
        refits = study.refitted.merge(study.points[["trial_id", "step", "macs"]], on=["trial_id", "step"])
        note = (
            "Refitted networks: the same configurations, trained again from scratch on all clips of the training "
            "split, those for validation included, without a choice of any kind; means over seeds."
        )
        of_refits = {f"refitted_{column}": name for column, name in names.items()}
        table = heat_map("refitted", refits.sort_values(by="macs").to_dict("records"), of_refits)
        section.blocks.extend([Text(note, "note"), table])
    return section


def heat_map(name: str, points: list[Any], names: dict[str, str]) -> Table:
    """Return a table of accuracies with shaded cells, one row per point.

    `names` maps each key of `points` that becomes a column of the table to the header of this column.
    """
    heads = [Head("trial, step", "text"), Head("M MACs"), *map(Head, names.values())]
    rows = []
    for point in points:
        cells = [Cell(f"{point['trial_id']}, {point['step']}", kind="text")]
        cells.append(Cell(summary.millions(point["macs"]), point["macs"]))
        for column in names:
            share = point[column]
            cells.append(Cell(summary.percent(share), share, shade=None if summary.absent(share) else float(share)))
        rows.append(Row(cells, point["trial_id"], point["step"]))
    return Table(name, heads, rows, heat=True)


def _seeds(n: float) -> str:
    return summary.DASH if summary.absent(n) else f"{n:.0f}"


def _is_number(text: str) -> bool:
    return text == summary.DASH or text.replace(".", "", 1).replace("e-", "", 1).isdecimal()
