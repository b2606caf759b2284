"""The section of the report on the search space: the ranges of its parameters, and the values that were tried."""

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from analysis import front, summary
from analysis.page.document import Cell, Head, Plot, Row, Section, Table, Text
from analysis.results import Study


def space_section(study: Study, plots: set[str]) -> Section | None:
    """Return the section on the search space; None if study.json has no space and no plot shows the parameters.

    A table has one row per parameter: name, range, values in all points, and values in the points on the front. `plots`
    has the names of the plots that the page can draw.
    """
    section = Section("space", "Hyper-parameters explored")
    space = study.manifest.resolved.space
    found, auxiliary = space.get("parameters"), space.get("auxiliary") or {}
    if found and isinstance(found, dict) and isinstance(auxiliary, dict):
        title = f"Space {space.get('name', '')}: {space.get('description') or ''}".rstrip(" :")
        best, rows = front.pareto_points(study), []
        for name, spec in found.items():
            sampled = [_span(frame.get(f"config/{name}", [])) for frame in (study.points, best)]
            texts = (name, range_text(spec, auxiliary), *sampled)
            rows.append(Row([Cell(text, kind="text wrap") for text in texts]))
        heads = [Head(name, "text") for name in ("parameter", "range", "sampled", "on the front")]
        section.blocks.extend([Text(title), Table("space", heads, rows)])
    if "parameters" in plots:
        caption = (
            "Each line is a measured network (of more than 2,000, a part of them); its colour shows its accuracy "
            "(bright is high). Drag along an axis to brush a range: in every other plot, those of these networks that "
            "are outside the brushed ranges turn pale. Click a brushed range to remove it. Lists are shown by their "
            "mean."
        )
        count = Markup('<p id="brushed" class="note"></p>')  # filled by the script: how many networks are inside
        section.blocks.extend([Plot("parameters", caption, "wide"), count])
    return section if section.blocks else None


def range_text(spec: Any, auxiliary: Mapping[str, Any] | None = None) -> str:
    """Return the range of a parameter in a search space as text, e.g. {"uniform": [0, 1]} as "0 to 1".

    `spec` is the range as in the YAML file of the space. `auxiliary` maps the auxiliary parameters of the space, which
    set the lengths of lists, to their ranges.
    """
    match spec:
        case {"loguniform": [low, high]}:
            return f"{low} to {high}, log scale"
        case {"uniform": [low, high]} | {"int": [low, high]}:
            step = spec.get("step", 1 if "int" in spec else None)
            return f"{low} to {high}" + (f", step {step}" if step not in (None, 1) else "")
        case {"choice": [*values]}:
            return f"one of {', '.join(map(summary.value_text, values))}"
        case {"subset": [*members]}:
            least = spec.get("min", 0)
            return f"any of {', '.join(map(summary.value_text, members))}" + (f", at least {least}" if least else "")
        case {"each": str(length_key), "item": item}:
            length = (auxiliary or {}).get(length_key)
            times = f" ({range_text(length)})" if length else ""
            return f"{range_text(item)} for each of {length_key}{times}"
    return json.dumps(spec)  # unknown kind of range (newer version)


def _span(values: Any) -> str:
    """Return the distinct values of a configuration column as text.

    Up to six values are listed; more are shown as a range from the smallest to the largest. If the values are lists of
    numbers, such as prune ratios, the range covers all numbers of all lists.
    """
    distinct = sorted({value for value in values if not summary.absent(value)})
    if len(distinct) <= 6:
        return ", ".join(map(summary.value_text, distinct)) or summary.DASH
    numbers = [number for value in distinct for number in _numbers(value)]
    if numbers:
        return f"{summary.value_text(float(min(numbers)))} to {summary.value_text(float(max(numbers)))}"
    return f"{len(distinct)} different values"


def _numbers(value: Any) -> list[float]:
    """Return the numbers in a configuration value: a number, or a list of numbers as JSON text.

    The result is empty if the value is another text.
    """
    if not isinstance(value, str):
        return [value]
    try:
        items = json.loads(value)
    except ValueError:
        return []
    found = items if isinstance(items, list) else [items]
    return found if all(isinstance(item, int | float) for item in found) else []
