"""The report on a study as one HTML page that needs no network access (template: report.html.tmpl)."""

import dataclasses
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import plotly.io as pio
from plotly.offline import get_plotlyjs

from analysis import front, summary
from analysis.manifest import Dataset
from analysis.page import figure_html, figure_parts, sentences
from analysis.page import tables as page_tables
from analysis.page.importance_table import importance_section
from analysis.page.search_figures import search_figures
from analysis.page.search_section import search_section
from analysis.results import Study

TEMPLATE = Path(__file__).with_name("report.html.tmpl")


def page(study: Study, strip: str = "", live: str = "") -> str:
    """Return the complete HTML page of the report, which contains plotly.js.

    If the study has no measured point, the page has no plots. `strip` is HTML that is placed above the report. `live`
    is JavaScript that updates the page while a study runs (tune/live.py). The Content-Security-Policy
    of the page allows requests (to its own server) only if `live` is given.
    """
    plots, body = figures(study), strip + main(study)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=_text(study.name),
        body=body,
        plotly=get_plotlyjs() if plots else "",
        figures=json.dumps(plots).replace("<", "\\u003c"),  # a name that contains "</script>" must not end the element
        connect="; connect-src 'self'" if live else "",
        live=live,
    )


def figures(study: Study) -> dict[str, Any]:
    """Return the plots as a dict: id of the HTML element -> plotly figure as JSON; empty if no point was measured."""
    plots = {}
    if (summary.roles(study) != "unmeasured").any():
        plots = {
            "pareto": figure_html.interactive(study, figure_parts.macs_axis(study)),
            "bytes": figure_html.interactive(study, figure_parts.bytes_axis(study)),
        }
    plots |= search_figures(study)
    made = {name: json.loads(pio.to_json(figure) or "") for name, figure in plots.items()}
    for figure in made.values():
        for trace in figure["data"]:
            trace["uid"] = re.sub(r"\W", "", trace["name"])  # so that a trace hidden by the user stays hidden on update
    return made


def main(study: Study) -> str:
    """Return the HTML of the report without page header and scripts.

    The elements of the plots are empty: JavaScript fills them with the result of `figures`.
    """
    sections = [_top(study), _plots(study) if (summary.roles(study) != "unmeasured").any() else ""]
    if len(front.pareto_points(study)):
        sections += [page_tables.budgets_section(study), page_tables.front_section(study), _noise(study)]
        sections += [page_tables.test_section(study), page_tables.classes_section(study)]
    sections += [search_section(study)]
    return "\n".join([*sections, _space(study), importance_section(study), _reproduce(study)])


def _top(study: Study) -> str:
    facts = "".join(f"<dt>{term}</dt><dd>{_text(fact)}</dd>" for term, fact in sentences.facts(study).items())
    warnings = "".join(f'<p class="warning">{_text(line)}</p>' for line in sentences.warnings(study))
    lead = f'<p class="lead">{_text(sentences.headline(study))}</p>'
    return f"<h1>{_text(study.name)}</h1>{lead}<dl>{facts}</dl>{warnings}"


def _plots(study: Study) -> str:
    """Return the HTML of the plots of accuracy over MACs and over bytes: captions, and empty elements for the plots.

    JavaScript fills the elements with the result of `figures`.
    """
    form = study.manifest.resolved.deployed_form
    measured = f" MACs and bytes are those of the deployed form: {_text(form)}." if form else ""
    best = "a mean of feasible networks of two seeds or more" if study.replicated else "a feasible network"
    seeds = " A marker is a mean over seeds; rings are the single networks." if study.replicated else ""
    return (
        '<figure><div id="pareto" class="plot main"></div><figcaption>Validation macro average accuracy '
        "(mean of the class-wise accuracies) over multiply-accumulate operations for one clip. The step "
        f"line is the best accuracy that {best} attains up to each cost, whether its trial completed or not; thin "
        "lines connect the prune steps of a trial. Point at a network to see its configuration; click the "
        f"legend to hide a group.{seeds}{measured}</figcaption></figure>"
        '<figure><div id="bytes" class="plot small"></div><figcaption>The same networks over model size; '
        "markers keep their role from the plot above.</figcaption></figure>"
    )


def _noise(study: Study) -> str:
    lines = "".join(f"<p>{_text(line)}</p>" for line in sentences.noise(study))
    return f"<h2>Which differences are significant</h2>{lines}"


def _space(study: Study) -> str:
    """Return the HTML section on the search space, or an empty string if study.json has no space.

    A table has one row per parameter: name, range, values in all points, and values in the points on the front.
    """
    space = study.manifest.resolved.space
    parameters, auxiliary = space.get("parameters"), space.get("auxiliary") or {}
    if not parameters or not isinstance(parameters, dict) or not isinstance(auxiliary, dict):
        return ""
    best = front.pareto_points(study)
    rows = ""
    for name, spec in parameters.items():
        sampled = [_span(frame.get(f"config/{name}", [])) for frame in (study.points, best)]
        cells = (name, range_text(spec, auxiliary), *sampled)
        row = "".join(f'<td class="text wrap">{_text(cell)}</td>' for cell in cells)
        rows += f"<tr>{row}</tr>"
    heads = ("parameter", "range", "sampled", "on the front")
    head = "".join(f'<th class="text">{name}</th>' for name in heads)
    title = f"Space <b>{_text(space.get('name', ''))}</b>: {_text(space.get('description') or '')}".rstrip(" :")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h2>Hyper-parameters explored</h2><p>{title}</p><div class="scroll">{table}</div>'


def _reproduce(study: Study) -> str:
    requested, resolved, progress = study.manifest.requested, study.manifest.resolved, study.manifest.progress
    known_request = requested.num_samples is not None  # None (older versions): the other fields are only defaults
    entries = {
        "Status": progress.status,
        "Seed": requested.seed if known_request else None,
        "Configurations": requested.num_samples,
        "Seeds per configuration": requested.seeds_per_config if known_request else None,
        "Objectives": ", ".join(f"{direction} {key}" for key, direction in resolved.objectives.items()),
        "Data": _pairs(_data(study.manifest.prepared.dataset)),
        "Notes on the data": "; ".join(study.manifest.prepared.dataset.notes),
        "Front-end": _pairs(resolved.frontend),
        "Versions": _pairs(resolved.versions),
        "Created": requested.created,
        "Finished": progress.finished,
        "Wall time": f"{progress.wall_s:.0f} s" if progress.wall_s else None,
    }
    command = f"<pre>{_text(requested.command)}</pre>" if requested.command else ""
    shown = {term: value for term, value in entries.items() if value not in (None, "")}
    items = "".join(f"<dt>{term}</dt><dd>{_text(value)}</dd>" for term, value in shown.items())
    footer = "<footer>Written by asc-tune (analysis/report.py).</footer>"
    return f"<h2>How to reproduce</h2>{command}<dl>{items}</dl>{footer}"


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


def _data(dataset: Dataset) -> dict[str, Any]:
    """Return the fields of `dataset` that have a value, without hashes and without the notes (shown separately)."""
    facts = dataclasses.asdict(dataset)
    return {
        key: value for key, value in facts.items() if key not in ("fingerprint", "notes") and value not in (None, "")
    }


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _text(value: Any) -> str:
    return html.escape(str(value))
