"""The section of the report on the importance of the searched parameters."""

from analysis import front
from analysis.findings import importance
from analysis.page.document import Cell, Head, Plot, Row, Section, Table, Text
from analysis.results import Study

NAMES = {"val_macro_avg_acc": "validation accuracy", "macs": "MACs"}


def importance_section(study: Study, plots: set[str]) -> Section | None:
    """Return the section with the importance of each searched parameter for each objective, and the plot "effects".

    Sentences name the parameters of the front at an end of their range. None without enough points. `plots` has the
    names of the plots that the page can draw.
    """
    found = importance.importances(study)
    if not found:
        return None
    objectives = list(found)
    order = sorted(found[objectives[0]], key=lambda name: -found[objectives[0]][name])
    heads = [Head("parameter", "text"), *(Head(NAMES.get(name, name)) for name in objectives)]
    rows = [
        Row([Cell(name, kind="text"), *(_share(found[objective][name]) for objective in objectives)]) for name in order
    ]
    best = front.pareto_points(study).to_dict("records")
    note = (
        "Importance of each searched parameter in per cent (PED-ANOVA): how far its values in the best points, a tenth "
        "but at least five, differ from those in all points. With few points it is a hint, not a proof; "
        f"this study has {len(study.points)}."
    )
    section = Section("importance", "What mattered", [Text(note, "note")])
    section.blocks.extend(Text(line) for line in importance.at_edges(study, best))
    section.blocks.append(Table("importance", heads, rows))
    if line := importance.without_effect(found, len(study.points)):
        section.blocks.append(Text(line))
    if "effects" in plots:
        caption = (
            "Every measured network over each parameter; its colour shows its MACs. Lists are shown by their mean. "
            "Parameters are not independent of each other here: the search tries more values where it found good ones."
        )
        section.blocks.append(Plot("effects", caption, "wide"))
    return section


def _share(share: float) -> Cell:
    return Cell(f"{100 * share:.0f}", share, "", bar=share)
