"""A validation part held out of the training split, so that the search never sees the test split.

Whole recording locations leave (all their devices and segments together), scene by scene, seeded. A scene recorded at
one location only falls back to whole 10 s segments, and that is said.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data.tau import DatasetError

_DRAWS = 64  # random orders tried per scene; the one whose total comes closest to the share is kept


@dataclass(frozen=True)
class HoldOut:
    """Two parts of one split and what had to be said about the division."""

    train: pd.DataFrame
    validation: pd.DataFrame
    notes: tuple[str, ...]


def hold_out(clips: pd.DataFrame, share: float, seed: int) -> HoldOut:
    """Divide `clips` (see `tau.read_split`), aiming at `share` of each scene's clips for validation.

    DatasetError when a scene has a single 10 s segment: it cannot be in both parts without leaking.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(clips), dtype=bool)
    side: dict[str, bool] = {}  # location -> held out; a location shared by two scenes is decided once
    notes = []
    labels, locations, segments = (clips[c].to_numpy(dtype=str) for c in ("scene_label", "identifier", "segment"))
    scenes = sorted(set(labels.tolist()), key=lambda s: (len(set(locations[labels == s])), s))
    for scene in scenes:
        rows = labels == scene
        groups, places = locations, sorted(set(locations[rows].tolist()))
        if len({side.get(place, place) for place in places}) == 1:  # nothing to divide, or decided already
            groups = segments
            if len(set(segments[rows])) < 2:
                raise DatasetError(
                    f"scene {scene!r} has one 10 s segment only ({segments[rows][0]}), which cannot serve both "
                    "training and validation; use a larger subset or add recordings"
                )
            notes.append(
                f"scene {scene!r} was recorded at one location ({places[0]}): held out by whole 10 s segments instead, "
                "so its validation accuracy is optimistic"
                if len(places) == 1
                else f"scene {scene!r} shares all its locations ({', '.join(places)}) with other scenes, which left "
                "them on one side: held out by whole 10 s segments instead, so its validation accuracy is optimistic"
            )
        sizes = Counter(groups[rows].tolist())
        chosen = _choose(sizes, share * rows.sum(), rng, {g: side[g] for g in sizes if g in side})
        side.update({g: g in chosen for g in sizes})
        held |= rows & np.isin(groups, list(chosen))
    parts = [clips.loc[mask].reset_index(drop=True) for mask in (~held, held)]
    return HoldOut(parts[0], parts[1], tuple(notes))


def _choose(sizes: dict[str, int], target: float, rng: np.random.Generator, known: dict[str, bool]) -> set[str]:
    """Groups whose total is near `target`, at least one and never all; `known` groups stay as decided."""
    fixed = {g for g, held in known.items() if held}
    free = np.array(sorted(g for g in sizes if g not in known), dtype=str)
    # one group at least on either side, unless a decided one is there already
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
