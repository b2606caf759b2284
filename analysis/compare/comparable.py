"""Which studies may be compared, and which of them are repetitions of one method.

    methods = grouped(studies)      # raises ResultsError if a comparison would be false

Two points can be compared if their accuracies were measured on the same clips and their costs have the same meaning.
So all studies must have equal limits, objectives and data. If a value differs, the error names its key, both values and
what to do. Two cases need a decision:

- **Held-out clips.** The seed of a study (`--seed`) selects the recording locations that are held out for validation.
  So runs of one method with different seeds are measured on different clips, and some locations are more difficult than
  others. Two methods are compared only if they were run on the same divisions of the clips: both with seed 0, or both
  with the seeds 0, 1 and 2, but not one with seed 0 and the other with seed 1.
- **Front-end.** A different front-end (sample rate, hop, mel bins) is part of a method, so it is allowed. Accuracies
  are measured on the same clips, and MACs are those of the network for the same 1 s of audio. But MACs do not contain
  the computation of the features, whose cost differs between front-ends. So studies with different front-ends are never
  repetitions of one method, and the page states the difference.

Older versions did not write fingerprints of the data. If one of the studies has none, the subset, the total number of
clips and the seed are compared instead, and the page states that equal data could not be verified.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from analysis.results import Study
from analysis.typed_json import ResultsError

_PLACES = ("seed", "data.dataset_dir", "data.cache_dir")  # overrides that do not change a method
FINGERPRINT_KEYS = (
    "sound",
    "labels",
    "devices",
    "clips",
    "validation_share",
)  # keys of the fingerprint, equal for all divisions


@dataclass(frozen=True)
class Method:
    """One method of search, and its runs: studies that differ only in their seed.

    Runs at the same position in two methods have the same validation clips.
    `key` ("A", "B", ...) is its short name in sentences. `labels` are the unique names of its runs.
    """

    key: str
    runs: tuple[Study, ...]
    labels: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name of the method in tables and legends."""
        if len(self.runs) == 1:
            return self.labels[0]
        seeds = ", ".join(str(study.manifest.requested.seed) for study in self.runs)
        return f"{self.labels[0]} and its repetitions (seeds {seeds})"


def grouped(studies: Sequence[Study]) -> list[Method]:
    """Return the methods of `studies` in the order of their first runs.

    Raise ResultsError if there are fewer than two studies, a study is given twice, one is a refit, or a value in which
    all studies must agree differs.
    """
    if len(studies) < 2:
        raise ResultsError(f"studies: found {len(studies)}; expected two or more to compare: name more study folders")
    check_comparable(studies)
    names = labels(studies)
    groups: list[list[int]] = []
    for i in range(len(studies)):
        mine, seed = method_of(studies[i]), studies[i].manifest.requested.seed
        for group in groups:
            seeds = [studies[j].manifest.requested.seed for j in group]
            if method_of(studies[group[0]]) == mine and seed not in seeds:
                group.append(i)
                break
        else:
            groups.append([i])
    _check_divisions(studies, names, groups)
    made = []
    for key, group in zip(keys(len(groups)), groups, strict=True):
        group.sort(key=lambda i: (division(studies[i], _all_fingerprinted(studies)), i))
        made.append(Method(key, tuple(studies[i] for i in group), tuple(names[i] for i in group)))
    return made


def check_comparable(studies: Sequence[Study]) -> None:
    """Raise ResultsError if `studies` cannot be compared: the message has the key, both values and what to do."""
    places: dict[Path, Study] = {}
    for study in studies:
        place = study.path.resolve()
        if place in places:
            raise ResultsError(f"study folder {study.path} was given twice; expected each study once: leave one out")
        places[place] = study
        if (source := study.manifest.requested.refit_of) is not None:
            raise ResultsError(
                f"{study.path}: refit_of is {source!r}, and a refit has no validation accuracy; expected the study "
                f"itself: give {place.parent}"
            )
    first, fingerprinted = studies[0], _all_fingerprinted(studies)
    for study in studies[1:]:
        pairs = zip(_required(first, fingerprinted).items(), _required(study, fingerprinted).values(), strict=True)
        for (key, expected), found in pairs:
            if found != expected:
                raise ResultsError(
                    f"{study.path}: {key} is {_shown(found)}, but {_shown(expected)} in {first.path}; expected the "
                    f"same value, because otherwise {_reason(key)}: compare only studies with equal {key}"
                )


def _required(study: Study, fingerprinted: bool) -> dict[str, Any]:
    """Return key -> value of everything in which compared studies must agree."""
    limits, dataset = study.limits, study.manifest.prepared.dataset
    values: dict[str, Any] = {
        "limits.macs": limits.macs,
        "limits.bytes": limits.bytes,
        "limits.precision": limits.precision,
        "objectives": study.manifest.resolved.objectives,
        "dataset.subset": dataset.subset,
        "dataset.n_classes": dataset.n_classes,
        "dataset.holdout": dataset.holdout,
    }
    if fingerprinted:
        return values | {f"dataset.fingerprint.{key}": dataset.fingerprint.get(key) for key in FINGERPRINT_KEYS}
    total = None if dataset.n_train is None or dataset.n_validation is None else dataset.n_train + dataset.n_validation
    return values | {"dataset.n_train + dataset.n_validation": total}


def _reason(key: str) -> str:
    if key.startswith("limits"):
        return "the searches had to find networks of different sizes"
    return "they searched for different things" if key == "objectives" else "the accuracies are of different clips"


def division(study: Study, fingerprinted: bool) -> str:
    """Return what identifies the division of a study's clips into training and validation clips.

    It is the hash of the validation clips or, in studies without fingerprints, the seed, which selects these clips.
    """
    dataset = study.manifest.prepared.dataset
    if fingerprinted:
        return str(dataset.fingerprint.get("validation"))
    return f"seed {study.manifest.requested.seed} with {dataset.n_validation} clips"


def _check_divisions(studies: Sequence[Study], names: Sequence[str], groups: Sequence[Sequence[int]]) -> None:
    fingerprinted = _all_fingerprinted(studies)
    first, *others = [Counter(division(studies[i], fingerprinted) for i in group) for group in groups]
    for divisions, group in zip(others, groups[1:], strict=True):
        if divisions != first:
            mine, theirs = (
                ", ".join(f"{division(studies[i], fingerprinted)} in {names[i]}" for i in some)
                for some in (group, groups[0])
            )
            key = "dataset.fingerprint.validation" if fingerprinted else "seed"
            raise ResultsError(
                f"{studies[group[0]].path}: {key} is {mine}, but {theirs}; expected the same validation clips for each "
                "method, because accuracies on different clips cannot be compared, and --seed selects the clips: give "
                "studies with equal seeds, or run the missing seeds"
            )


def _all_fingerprinted(studies: Sequence[Study]) -> bool:
    return all(study.manifest.prepared.dataset.fingerprint for study in studies)


def method_of(study: Study) -> str:
    """Return a text that is equal for two studies if they are runs of one method, with any seeds.

    It contains the space, the overrides, sampler, scheduler, numbers of configurations and of seeds per configuration,
    warm start and front-end, and whether the points are means over seeds.
    """
    requested, resolved = study.manifest.requested, study.manifest.resolved
    overrides = sorted(text for text in requested.overrides if text.lstrip("+").partition("=")[0] not in _PLACES)
    values = [resolved.space, overrides, requested.sampler, requested.scheduler, requested.num_samples]
    values += [requested.seeds_per_config, requested.warm_start, resolved.frontend, study.replicated]
    return json.dumps(values, sort_keys=True)


def labels(studies: Sequence[Study]) -> list[str]:
    """Return a unique name for each study: its name and, if others have the same name, the end of its path."""
    names = [study.name for study in studies]
    made = list(names)
    for i, study in enumerate(studies):
        same = [other.path.resolve().parts for j, other in enumerate(studies) if names[j] == names[i] and j != i]
        mine = study.path.resolve().parts
        if same:
            depth = next(n for n in range(1, len(mine) + 1) if all(mine[-n:] != parts[-n:] for parts in same))
            made[i] = f"{names[i]} ({'/'.join(mine[-depth:])})"
    for i, name in enumerate(made):  # a study may have a name such as "x (a)"
        if name in made[:i]:
            made[i] = next(text for n in range(2, len(made) + 2) if (text := f"{name} no. {n}") not in made)
    return made


def keys(n: int) -> list[str]:
    """Return `n` short names: A, B, ..., Z, AA, AB, ..."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [*letters, *map("".join, product(letters, letters))][:n]


def _shown(value: Any) -> str:
    return json.dumps(value, sort_keys=True)[:120]
