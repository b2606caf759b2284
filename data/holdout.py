"""Division of the training split into training and validation, so that the search never uses the test split.

For each scene, complete recording locations (with all their devices and segments) are drawn for validation, from a
seed. A scene with only one recording location is divided by complete 10 s segments instead, and a note reports this.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data.tau import DatasetError

_DRAWS = 64  # random orders tried per scene; the one closest to the requested share is used


@dataclass(frozen=True)
class HoldOut:
    """A split divided into a training part and a held-out part; `notes` describe for the user how it was divided."""

    train: pd.DataFrame
    validation: pd.DataFrame
    notes: tuple[str, ...]


def hold_out(clips: pd.DataFrame, share: float, seed: int) -> HoldOut:
    """Divide `clips` (a table from `tau.read_split`) so that about `share` of each scene's clips are for validation.

    DatasetError if a scene has only one 10 s segment: it cannot be in both parts, because training data would leak into
    validation.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(clips), dtype=bool)
    side: dict[str, bool] = {}  # location -> whether held out; decided once for a location of two scenes
    notes = []
    labels, locations, segments = (clips[c].to_numpy(dtype=str) for c in ("scene_label", "identifier", "segment"))
    scenes = sorted(set(labels.tolist()), key=lambda s: (len(set(locations[labels == s])), s))
    for scene in scenes:
        rows = labels == scene
        groups, places = locations, sorted(set(locations[rows].tolist()))
        if len({side.get(place, place) for place in places}) == 1:  # one location, or all are decided already
            groups = segments
            if len(set(segments[rows])) < 2:
                raise DatasetError(
                    f"scene {scene!r} has only one 10 s segment ({segments[rows][0]}): expected at least two, for "
                    "training and for validation; use a larger subset or add recordings"
                )
            notes.append(
                f"scene {scene!r} was recorded at one location ({places[0]}): it is divided by 10 s segments instead, "
                "so its validation accuracy is optimistic"
                if len(places) == 1
                else f"scene {scene!r} shares all its locations ({', '.join(places)}) with other scenes, and all are "
                "in the same part: it is divided by 10 s segments instead, so its validation accuracy is optimistic"
            )
        sizes = Counter(groups[rows].tolist())
        chosen = _choose(sizes, share * rows.sum(), rng, {g: side[g] for g in sizes if g in side})
        side.update({g: g in chosen for g in sizes})
        held |= rows & np.isin(groups, list(chosen))
    parts = [clips.loc[mask].reset_index(drop=True) for mask in (~held, held)]
    return HoldOut(parts[0], parts[1], tuple(notes))


def _choose(sizes: dict[str, int], target: float, rng: np.random.Generator, known: dict[str, bool]) -> set[str]:
    """Return groups whose total size is near `target`: at least one, and not all.

    `known` maps the groups that are already decided to whether they are held out.
    """
    fixed = {g for g, held in known.items() if held}
    free = np.array(sorted(g for g in sizes if g not in known), dtype=str)
    # at least one group in each part, if no decided group is there already
    most = len(free) - (len(fixed) == len(known))
    best: tuple[float, set[str]] = (np.inf, fixed)
    for _ in range(_DRAWS):
        order = rng.permutation(free).tolist()
        for count in range(0 if fixed else 1, most + 1):
            chosen = fixed | set(order[:count])
            total = sum(sizes[g] for g in chosen)
            best = min(best, (abs(total - target), chosen), key=lambda candidate: candidate[0])
            if total > target:
                break
    return best[1]
