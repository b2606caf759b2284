"""Reference markers of a report: published systems, and systems from a YAML file of the user.

A YAML file is a list of mappings such as

    - {name: our system, macs: 12.3e6, accuracy: 58.1, params: 48000, training: 25 %, split: development-test,
       source: "our paper, table 2"}

`accuracy` is the macro average accuracy in per cent, `macs` the multiply-accumulate operations for one clip. `name`,
`macs` and `accuracy` are required.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.results import Study
from analysis.typed_json import ResultsError
from search_spaces.yaml_file import YamlFileError, read_yaml

PUBLISHED = Path(__file__).parents[1] / "published.yaml"
TAU_CLIPS = 230_350  # rows of the meta.csv of TAU Urban Acoustic Scenes 2022 Mobile, development set
TEXTS = ("name", "training", "split", "source")
NUMBERS = ("macs", "accuracy", "params")
REMEDY = "correct the file (analysis/published.yaml shows the format)"


@dataclass(frozen=True)
class Marker:
    """A system that a report shows together with the networks of a study."""

    name: str
    macs: float  # for one clip
    accuracy: float  # macro average accuracy, per cent
    params: float | None = None
    training: str = ""  # the training data, such as 25 %
    split: str = ""  # the data on which the accuracy was measured
    source: str = ""

    @property
    def text(self) -> str:
        """The marker as text: name, accuracy and where it was measured, size, training data and source."""
        size = f"{self.macs / 1e6:.2f} M MACs" + (f", {self.params / 1e3:.1f} k parameters" if self.params else "")
        where = f" on {self.split}" if self.split else ""
        trained = f"trained on {self.training}" if self.training else ""
        return "; ".join(filter(None, [self.name, f"{self.accuracy:.1f} %{where}", size, trained, self.source]))


def markers(study: Study) -> list[Marker]:
    """Return the markers for the report on `study`: published systems if its data set is TAU, and those of the user.

    The data set is TAU if its meta.csv has as many rows as the published one; studies
    of versions that did not store this number have no published systems. Raise ResultsError for an invalid file.
    """
    published = read_markers(PUBLISHED) if study.manifest.prepared.dataset.n_clips == TAU_CLIPS else []
    return published + (read_markers(study.markers_file) if study.markers_file else [])


def read_markers(file: Path) -> list[Marker]:
    """Return the markers in a YAML file. Raise ResultsError if the file cannot be read or has an invalid entry."""
    try:
        content = read_yaml(file)
    except YamlFileError as error:
        raise ResultsError(str(error)) from error
    if not isinstance(content, list):
        raise ResultsError(f"{file}: found {type(content).__name__}; expected a list of systems: {REMEDY}")
    return [_marker(entry, f"{file}: system {number}") for number, entry in enumerate(content, start=1)]


def _marker(entry: Any, where: str) -> Marker:
    if not isinstance(entry, dict):
        raise ResultsError(f"{where} is {str(entry)[:80]!r}; expected a mapping with name, macs and accuracy: {REMEDY}")
    entry = {key: _number(value) if key in NUMBERS else value for key, value in entry.items()}
    for key, value in entry.items():
        if key not in (*TEXTS, *NUMBERS):
            expected = ", ".join((*TEXTS, *NUMBERS))
            raise ResultsError(f"{where} has the key {str(key)[:80]!r}; expected only {expected}: {REMEDY}")
        if key in TEXTS and not (isinstance(value, str) and value.strip()):
            raise ResultsError(f"{where}: {key} is {str(value)[:80]!r}; expected a text: {REMEDY}")
        if key in NUMBERS and not _positive(value, at_most=100 if key == "accuracy" else math.inf):
            kind = "a number above 0, at most 100 (per cent)" if key == "accuracy" else "a number above 0"
            raise ResultsError(f"{where}: {key} is {str(value)[:80]!r}; expected {kind}: {REMEDY}")
    if missing := [key for key in ("name", "macs", "accuracy") if key not in entry]:
        raise ResultsError(f"{where} has no key {missing[0]!r}; expected name, macs and accuracy: {REMEDY}")
    return Marker(**entry)


def _number(value: Any) -> Any:
    """Return `value`, as a number if it is a text such as 29.42e6, which YAML does not read as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _positive(value: Any, at_most: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= at_most and math.isfinite(value)
