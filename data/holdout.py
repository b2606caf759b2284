"""Division of TAU's training split into a training part and a validation part.

The search measures validation accuracy on the validation part, so that it never uses the test split. For each scene,
complete recording locations (with all their devices and 10 s segments) are drawn at random for validation. A scene with
only one recording location is divided by complete 10 s segments instead, and a note reports this to the user.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data.tau import DatasetError

_DRAWS = 64  # random orders tried per scene; the one closest to the requested share is used


@dataclass(frozen=True)
class HoldOut:
    """The training clips and the validation clips of a split, as tables with one row per clip.

    The columns are those of `tau.read_split` (filename, scene_label, ...). `notes` has a sentence for the user about
    each scene that could not be divided by recording location.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    notes: tuple[str, ...]


def hold_out(clips: pd.DataFrame, share: float, seed: int) -> HoldOut:
    """Divide the clips of a split into training and validation clips at random.

    `clips` is a table from `tau.read_split`. For each scene, about `share` (between 0 and 1) of its clips are for
    validation. The same `seed` gives the same division. With a `share` of 0, all clips are training clips, in the order
    of the table.

    All clips of a recording location are in the same part, also those of different scenes. A scene is divided by 10 s
    segments instead if it has only one location, or if all its locations were already put into the same part for other
    scenes. A scene with only one segment raises DatasetError, because clips of one segment must not be in both parts.
    """
    if share == 0:
        return HoldOut(clips.reset_index(drop=True), clips.iloc[:0], ())
    rng = np.random.default_rng(seed)
    held = np.zeros(len(clips), dtype=bool)
    side: dict[str, bool] = {}  # location or segment -> whether it is for validation; scenes can share a location
    notes = []
    labels, locations, segments = (clips[c].to_numpy(dtype=str) for c in ("scene_label", "identifier", "segment"))
    scenes = sorted(set(labels.tolist()), key=lambda s: (len(set(locations[labels == s])), s))
    for scene in scenes:
        rows = labels == scene
        groups, places = locations, sorted(set(locations[rows].tolist()))
        if len({side.get(place, place) for place in places}) == 1:  # one location, or all in one part already
            groups = segments
            if len(set(segments[rows])) < 2:
                raise DatasetError(
                    f"scene {scene!r} has only one 10 s segment ({segments[rows][0]}): expected at least two, one for "
                    "training and one for validation; use a larger part of the data (data.subset) or add recordings"
                )
            notes.append(
                f"scene {scene!r} was recorded at only one location ({places[0]}), so training and validation have "
                "different 10 s segments of this location: its validation accuracy is optimistic"
                if len(places) == 1
                else f"scene {scene!r} shares all its locations ({', '.join(places)}) with other scenes, which use all "
                "of them for training or all of them for validation, so training and validation have different 10 s "
                "segments of these locations: its validation accuracy is optimistic"
            )
        sizes = Counter(groups[rows].tolist())
        chosen = _choose(sizes, share * rows.sum(), rng, {g: side[g] for g in sizes if g in side})
        side.update({g: g in chosen for g in sizes})
        held |= rows & np.isin(groups, list(chosen))
    parts = [clips.loc[mask].reset_index(drop=True) for mask in (~held, held)]
    return HoldOut(parts[0], parts[1], tuple(notes))


def _choose(sizes: dict[str, int], target: float, rng: np.random.Generator, known: dict[str, bool]) -> set[str]:
    """Return the groups (locations or segments) of one scene for validation: at least one, and not all.

    `sizes` maps each group to its number of clips, and `target` is the wanted number of validation clips. Scenes can
    share groups: `known` maps each group that was assigned for an earlier scene to True (validation) or False
    (training).
    """
    fixed = {g for g, held in known.items() if held}
    free = np.array(sorted(g for g in sizes if g not in known), dtype=str)
    # leave at least one group for training, unless `known` has one there
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
