"""HTML tables of the report: the front, its class-wise and device-wise accuracies, and the test results."""

import html
import shlex
from typing import Any

from analysis import front, summary
from analysis.findings import budgets
from analysis.results import Study


def front_section(study: Study) -> str:
    """Return the HTML section with the table of the front; the last row of the table is the baseline, if there is one.

    In the page, a click on a column header sorts the table by this column.
    """
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
    rows = ""
    for point, sampled in zip(best.to_dict("records"), config.to_dict("records"), strict=True):
        cells = _cell(point["trial_id"], point["trial_id"], "text") + _cell(point["step"], point["step"])
        for column, show in numbers.values():
            shown = show(point[column]) if show else summary.span(point, column.removesuffix("_low"))
            cells += _cell(shown, point[column])
        cells += "".join(_cell(v, v, "text wrap" if k in words else "") for k, v in sampled.items())
        rows += f'<tr data-trial="{_text(point["trial_id"])}" data-step="{point["step"]}">{cells}</tr>'
    head = ""
    for name in ("trial", "step", *numbers, *config):
        state = ' aria-sort="ascending"' if name == "M MACs" else ""
        kind = ' class="text"' if name in words else ""
        head += f'<th{kind}{state}><button type="button">{_text(name)}</button></th>'
    foot = ""
    if (found := summary.baseline(study)) is not None:
        values = {"val %": summary.percent(found[1]), "test %": summary.percent(found[2])}
        last = "test %" if "test %" in numbers else "val %"
        before = list(numbers)[: list(numbers).index(last) + 1]
        cells = '<td class="text" colspan="2">baseline</td>'
        cells += "".join(f"<td>{values.get(name, '')}</td>" for name in before)
        rest = len(numbers) + len(config.columns) - len(before)
        cells += f'<td class="text" colspan="{rest}">{_text(found[0])}</td>'
        foot = f'<tfoot><tr class="baseline">{cells}</tr></tfoot>'
    table = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>{foot}"
    title = "The front: means over seeds" if study.replicated else "The front"
    return (
        f'<h2>{title}</h2><div class="scroll"><table id="front" class="sortable">{table}</table></div>'
        '<p class="note">Click a header to sort. Step 0 is the dense network; sparsity is the share of its '
        "parameters that pruning removed. front.csv contains the same rows with all columns and checkpoints"
        + ("; points.csv contains the rows of each seed.</p>" if study.replicated else ".</p>")
    )


def budgets_section(study: Study) -> str:
    """Return the HTML section with the most accurate candidate within each budget of MACs and of bytes, and the knee.

    Each row has the command that exports its network. The section is empty if the study has no candidate.
    """
    bought = budgets.budgets(study)
    if not bought:
        return ""
    names = {"val_macro_avg_acc": "val %", "test_macro_avg_acc": "test %", "refitted_test_macro_avg_acc": "refitted %"}
    shown = {column: head for column, head in names.items() if any(column in (b.point or {}) for b in bought)}
    clips, rows = summary.validation_clips(study), ""
    for budget in bought:
        unit = f"{budget.limit / 1e6:g} M MACs" if budget.column == "macs" else f"{budget.limit / 1e3:g} kB"
        cells = _cell(unit, budget.limit, "text")
        if budget.point is None:
            rows += f'<tr>{cells}<td class="text" colspan="{len(shown) + 5}">no network is so small</td></tr>'
            continue
        point = budget.point
        for column in shown:
            text = summary.percent(point.get(column))
            if column == "val_macro_avg_acc":
                text += _uncertainty(study, point, clips)
            cells += _cell(text, point.get(column))
        cells += _cell(summary.millions(point["macs"]), point["macs"])
        cells += _cell(summary.thousands(point[study.bytes_column]), point[study.bytes_column])
        cells += _cell(point["trial_id"], point["trial_id"], "text") + _cell(point["step"], point["step"])
        command = summary.DASH
        if not summary.absent(point.get("checkpoint")):
            place = shlex.quote(str(study.path / str(point["checkpoint"])))
            flag = "<span>--checkpoint=</span>"  # the page does not break lines within it
            command = f"<code>python trainables/deploy.py {flag}{_text(place)}</code>"
        cells += f'<td class="text wrap">{command}</td>'
        rows += f'<tr data-trial="{_text(point["trial_id"])}" data-step="{point["step"]}">{cells}</tr>'
    heads = ["up to", *shown.values(), "M MACs", f"kB {study.precision}", "trial", "step", "to export it"]
    words = {"up to", "trial", "to export it"}
    head = "".join(f'<th class="text">{n}</th>' if n in words else f"<th>{_text(n)}</th>" for n in heads)
    note = "The most accurate network, by validation, that fits each budget"
    if study.replicated or clips:
        spread = "half of the 95 % interval over seeds" if study.replicated else "one binomial standard error"
        note += f"; \N{PLUS-MINUS SIGN}: {spread}"
    note += f".{_knee_text(study)}"
    return (
        f'<h2>What each budget buys</h2><p class="note">{_text(note)}</p><div class="scroll">'
        f'<table id="budgets"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _uncertainty(study: Study, point: dict[Any, Any], clips: int | None) -> str:
    """Return the half width of the error bar of a validation accuracy, e.g. " ± 2.8"; empty if it is unknown."""
    if study.replicated:
        half = (point["val_macro_avg_acc_high"] - point["val_macro_avg_acc_low"]) / 2
    else:
        half = float(summary.standard_error(point["val_macro_avg_acc"], clips))
    return "" if summary.absent(half) else f" \N{PLUS-MINUS SIGN} {summary.percent(half)}"


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


def classes_section(study: Study) -> str:
    """Return the HTML section with the validation accuracy of each front point by scene and by device, as heat maps."""
    best: list[dict[Any, Any]] = front.pareto_points(study).to_dict("records")
    made = ""
    for prefix, title in (("val_acc/", "By scene"), ("val_device_acc/", "By device")):
        if columns := study.prefixed(prefix):
            names = {"val_macro_avg_acc": "all"} | {c: c.removeprefix(prefix).replace("_", " ") for c in columns}
            note = "Validation accuracy in per cent of every point of the front; darker is higher."
            made += f'<h2>{title}</h2><p class="note">{note}</p>{_heat_map(best, names)}'
    return made


def test_section(study: Study) -> str:
    """Return the HTML section with the test accuracies of all points in test.csv, in total and by device group.

    The section is an empty string if the study has no test.csv.
    """
    if study.test is None:
        return ""
    groups = [column for column in study.test.columns if column.startswith("test_acc/")]
    names = {"test_macro_avg_acc": "all"} | {column: column.removeprefix("test_acc/") for column in groups}
    names |= {"test_macro_avg_acc_std": "sd over seeds"} if study.replicated else {}
    chosen = study.test.merge(study.points[["trial_id", "step", "macs"]], on=["trial_id", "step"])
    records: list[dict[Any, Any]] = chosen.sort_values(by="macs").to_dict("records")
    note = "Test accuracy in per cent of the points that were chosen on validation."
    if study.replicated:
        note += f" Means over seeds, at least {chosen['test_n_seeds'].min()} per point; sd is that of single networks."
    made = f'<h2>Test split</h2><p class="note">{note}</p>{_heat_map(records, names)}'
    if study.refitted is not None:
        refits = study.refitted.merge(study.points[["trial_id", "step", "macs"]], on=["trial_id", "step"])
        note = (
            "The same configurations, trained again from scratch on all clips of the training split, those for "
            "validation included, without a choice of any kind; means over seeds."
        )
        of_refits = {f"refitted_{column}": name for column, name in names.items()}
        table = _heat_map(refits.sort_values(by="macs").to_dict("records"), of_refits)
        made += f'<h2>Refitted networks on the test split</h2><p class="note">{note}</p>{table}'
    return made


def _heat_map(points: list[Any], names: dict[str, str]) -> str:
    """Return an HTML table of accuracies with shaded cells, one row per point.

    `names` maps each key of `points` that becomes a column of the table to the header of this column.
    """
    head = '<th class="text">trial, step</th><th>M MACs</th>'
    head += "".join(f"<th>{_text(name)}</th>" for name in names.values())
    rows = ""
    for point in points:
        label = f"{_text(point['trial_id'])}, {point['step']}"
        cells = f'<td class="text">{label}</td><td class="cost">{summary.millions(point["macs"])}</td>'
        cells += "".join(_shade(point[column]) for column in names)
        rows += f'<tr data-trial="{_text(point["trial_id"])}">{cells}</tr>'
    table = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table class="heat">{table}</table></div>'


def _shade(share: float) -> str:
    """Return an HTML table cell for an accuracy in [0, 1], coloured from white (0) to blue (1)."""
    if summary.absent(share):
        return f"<td>{summary.DASH}</td>"
    red, green, blue = (round(255 + (end - 255) * share) for end in (0, 82, 140))
    ink = "#fff" if share > 0.7 else "#1f2933"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{summary.percent(share)}</td>'


def _cell(shown: str, value: Any, kind: str = "") -> str:
    """Return an HTML table cell with the text `shown` and the CSS class `kind`.

    The page sorts rows by `value`; a missing value is sorted last. In the text, a line may break after a plus sign.
    """
    raw = "" if summary.absent(value) or value == summary.DASH else value
    words = _text(shown).replace("+", "+<wbr>")
    marked = f' class="{kind}"' if kind else ""
    return f'<td{marked} data-value="{_text(raw)}">{words}</td>'


def _seeds(n: float) -> str:
    return summary.DASH if summary.absent(n) else f"{n:.0f}"


def _is_number(text: str) -> bool:
    return text == summary.DASH or text.replace(".", "", 1).replace("e-", "", 1).isdecimal()


def _text(value: Any) -> str:
    return html.escape(str(value))
