"""The section of the report on what can be believed: significant differences, and ranks that are reliable."""

from analysis.findings import ranks
from analysis.findings.ranks import LEAST, Correlation
from analysis.page import sentences
from analysis.page.document import Cell, Head, Row, Section, Table, Text
from analysis.results import Study


def belief_section(study: Study) -> Section:
    """Return the section with the noise of the accuracies and with rank correlations."""
    section = Section("belief", "Can I believe it", [Text(line) for line in sentences.noise(study)])
    section.blocks.append(Text(_on_test(study)))
    if (other := ranks.between_studies(study)) is not None:
        name, found, n = other
        text = f"{n} networks are also in study {name}: too few, or too alike, to compare ranks."
        if found:
            text = f"This study and {name} rank the {n} networks that are in both {_alike(found)}."
        section.blocks.append(Text(text))
    epochs, n = ranks.at_epochs(study)
    if epochs:
        shown = _some(epochs)
        note = (
            f"Does an early epoch tell which trial will be good? Rank correlation of the best accuracy up to an epoch "
            f"with the end of the dense training (mean of its last three epochs), over the {n} trials with a complete "
            "dense training; trials that were stopped before are not among them."
        )
        heads = [Head("epoch", "text"), *(Head(str(epoch)) for epoch, _ in shown)]
        row = Row([Cell("rank correlation", kind="text"), *(Cell(f"{rho:.2f}", rho) for _, rho in shown)])
        section.blocks.extend([Text(note, "note"), Table("epochs", heads, [row])])
    return section


def _on_test(study: Study) -> str:
    if study.test is None:
        return (
            "Whether validation ranks these networks as test does is not known: the test split is closed. "
            "tune/evaluate.py opens it once, for the chosen points."
        )
    n = len(study.test)
    found = ranks.validation_and_test(study)
    if found is None:
        few = f"fewer than {LEAST} networks were tested" if n < LEAST else "all have the same accuracy"
        return f"Whether validation ranks these networks as test does cannot be said: {few}."
    return f"Validation and test rank the {found.n} tested networks {_alike(found)}."


def _alike(found: Correlation) -> str:
    """Return how alike two rankings are, in words and with the interval of their correlation."""
    bounds = {0.8: "nearly alike", 0.5: "roughly alike", 0.0: "hardly alike", -1.0: "in opposite orders"}
    words = next(word for bound, word in bounds.items() if found.rho >= bound - 1e-9)
    unsure = ", which includes 0" if found.low <= 0 <= found.high else ""
    interval = f"95 % interval {found.low:.2f} to {found.high:.2f}{unsure}"
    return f"{words}: Spearman's rank correlation is {found.rho:.2f} ({interval})"


def _some(epochs: list[tuple[int, float]], most: int = 12) -> list[tuple[int, float]]:
    """Return at most `most` of `epochs`, at about equal distances, with the last one."""
    step = -(-len(epochs) // most)
    return epochs[::-1][::step][::-1]
