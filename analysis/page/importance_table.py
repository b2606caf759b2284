"""The section of the HTML report on the importance of the searched parameters."""

import html

from analysis import front
from analysis.findings import importance
from analysis.results import Study

NAMES = {"val_macro_avg_acc": "validation accuracy", "macs": "MACs"}


def importance_section(study: Study) -> str:
    """Return the HTML section with the importance of each searched parameter for each objective.

    Sentences name the parameters of the front at an end of their range. The section is empty without enough points.
    """
    found = importance.importances(study)
    if not found:
        return ""
    objectives = list(found)
    order = sorted(found[objectives[0]], key=lambda name: -found[objectives[0]][name])
    head = "".join(f"<th>{_text(NAMES.get(name, name))}</th>" for name in objectives)
    rows = ""
    for name in order:
        cells = "".join(_bar(found[objective][name]) for objective in objectives)
        rows += f'<tr><td class="text">{_text(name)}</td>{cells}</tr>'
    best = front.pareto_points(study).to_dict("records")
    lines = "".join(f"<p>{_text(line)}</p>" for line in importance.at_edges(study, best))
    n = len(study.points)
    note = (
        "Importance of each searched parameter in per cent (PED-ANOVA): how far its values in the best points, a tenth "
        "but at least five, differ from those in all points. With few points it is a hint, not a proof; "
        f"this study has {n}."
    )
    return (
        f'<h2>What mattered</h2><p class="note">{_text(note)}</p>{lines}<div class="scroll"><table id="importance">'
        f'<thead><tr><th class="text">parameter</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _bar(share: float) -> str:
    """Return a table cell with a share in [0, 1] in per cent, and a bar behind it that is as long as the share."""
    end = round(100 * share, 1)
    style = f"background:linear-gradient(to right, #cfe0ee {end}%, transparent {end}%)"
    return f'<td class="bar" style="{style}">{100 * share:.0f}</td>'


def _text(value: object) -> str:
    return html.escape(str(value))
