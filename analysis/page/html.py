"""The report on a study as one HTML page that needs no network access."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis import front, summary
from analysis.figures import interactive, parameters, parts, search
from analysis.findings import markers
from analysis.manifest import Dataset
from analysis.page import explorer, sentences
from analysis.page import tables as page_tables
from analysis.page.belief import belief_section
from analysis.page.document import Block, Code, Facts, Plot, Section, Text
from analysis.page.importance_table import importance_section
from analysis.page.rendering import render, script_json
from analysis.page.search_section import search_section
from analysis.page.space_table import space_section
from analysis.results import Study


def page(study: Study, strip: str = "", live: str = "") -> str:
    """Return the complete HTML page of the report, which contains plotly.js.

    If the study has no measured point, the page has no plots. `strip` is HTML that is placed above the report. `live`
    is JavaScript that updates the page while a study runs (tune/live.py). The Content-Security-Policy of the page
    allows requests (to its own server) only if `live` is given. It allows `eval`, because plotly's parallel coordinates
    compile their shaders with it; all names and texts are escaped.
    """
    plots = figures(study)
    made = render(
        "report.html.j2",
        title=f"{study.name}: accuracy against complexity",
        body=Markup(strip) + main(study, set(plots)),
        plotly=Markup(get_plotlyjs() if plots else ""),
        figures=script_json(plots),
        data=script_json(data(study)),
        connect=Markup("; connect-src 'self'" if live else ""),
        live=Markup(live),
    )
    return str(made)


def figures(study: Study) -> dict[str, Any]:
    """Return the plots as a dict: id of the HTML element -> plotly figure as JSON.

    If no point was measured, it has the plot of the trials at most.
    """
    made: dict[str, go.Figure | None] = {}
    if measured(study):
        made = {
            "pareto": interactive.interactive(study, parts.macs_axis(study)),
            "bytes": interactive.interactive(study, parts.bytes_axis(study)),
            "effects": parameters.effects(study),
            "parameters": parameters.parallel(study),
        }
    made |= search.search_figures(study)
    found = {name: json.loads(pio.to_json(figure) or "") for name, figure in made.items() if figure is not None}
    for figure in found.values():
        figure["layout"].pop("template", None)  # 7 kB of defaults of plotly; the page sets its own
        for trace in figure["data"]:
            trace["uid"] = re.sub(r"\W", "", trace.get("name", ""))  # a trace hidden by the user stays so on update
    return found


def data(study: Study) -> dict[str, Any]:
    """Return what the script of the page knows about the networks, and the colours of a dark page, as JSON values."""
    known = {"networks": explorer.networks(study)} if measured(study) else {}
    return {**known, "dark": parts.DARK}


def main(study: Study, plots: set[str]) -> Markup:
    """Return the HTML of the report without page header and scripts.

    `plots` are the keys of `figures`. The elements of the plots are empty: JavaScript fills them.
    """
    return render("sections.html.j2", name=study.name, top=top(study), sections=sections(study, plots))


def measured(study: Study) -> bool:
    return bool((summary.roles(study) != "unmeasured").any())


def top(study: Study) -> list[Block]:
    """Return what is above the first heading of the report: a summary, facts and warnings."""
    warnings = [Text(line, "warning") for line in sentences.warnings(study)]
    return [Text(sentences.headline(study), "lead"), Facts(sentences.facts(study)), *warnings]


def sections(study: Study, plots: set[str]) -> list[Section]:
    """Return the sections of the report that this study has. `plots` are the keys of `figures`."""
    found: list[Section | None] = [_plots(study)] if measured(study) else []
    if len(front.pareto_points(study)):
        found += [page_tables.budgets_section(study), page_tables.front_section(study), belief_section(study)]
        found += [page_tables.test_section(study), page_tables.classes_section(study)]
    found += [
        search_section(study, plots),
        importance_section(study, plots),
        space_section(study, plots),
        _reproduce(study),
    ]
    return [section for section in found if section is not None]


def _plots(study: Study) -> Section:
    """Return the section with the plots of accuracy over MACs and over bytes."""
    form = study.manifest.resolved.deployed_form
    deployed = f" MACs and bytes are those of the deployed form: {form}." if form else ""
    best = "a mean of feasible networks of two seeds or more" if study.replicated else "a feasible network"
    others = " Crosses are other systems, measured on the data that they name." if markers.markers(study) else ""
    seeds = " A marker is a mean over seeds; rings are the single networks." if study.replicated else ""
    caption = (
        "Validation macro average accuracy (mean of the class-wise accuracies) over multiply-accumulate operations for "
        f"one clip. The step line is the best accuracy that {best} attains up to each cost, whether its trial "
        "completed or not; thin lines connect the prune steps of a trial. Point at a network to see its configuration, "
        "click it to see its learning curve and its mistakes; click the legend to hide a group."
        f"{seeds}{others}{deployed}"
    )
    box = Markup('<section id="network" class="empty"><p class="note">Click a network to see it here.</p></section>')
    below = "The same networks over model size; markers keep their role from the plot above."
    return Section("plots", "Accuracy and complexity", [Plot("pareto", caption, "main"), box, Plot("bytes", below)])


def _reproduce(study: Study) -> Section:
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
    shown = {term: str(value) for term, value in entries.items() if value not in (None, "")}
    command: list[Block] = [Code(requested.command)] if requested.command else []
    return Section("reproduce", "How to reproduce", [*command, Facts(shown)])


def _data(dataset: Dataset) -> dict[str, Any]:
    """Return the fields of `dataset` that have a value, without hashes and without the notes (shown separately)."""
    facts = dataclasses.asdict(dataset)
    return {
        key: value for key, value in facts.items() if key not in ("fingerprint", "notes") and value not in (None, "")
    }


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
