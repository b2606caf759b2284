"""A validation part held out of the training split, so that the search never sees the test split.

Whole recording locations leave (all their devices and segments together), scene by scene, seeded. A scene recorded at
one location only falls back to whole 10 s segments, and that is said.
"""

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
    held = pd.Series(False, index=clips.index)
    side: dict[str, bool] = {}  # location -> held out; a location shared by two scenes is decided once
    notes = []
    by_scene = sorted(clips.groupby("scene_label"), key=lambda item: (item[1].identifier.nunique(), item[0]))
    for scene, rows in by_scene:
        column = "identifier" if rows.identifier.nunique() > 1 else "segment"
        if column == "segment":
            if rows.segment.nunique() < 2:
                raise DatasetError(
                    f"scene {scene!r} has one 10 s segment only ({rows.segment.iloc[0]}), which cannot serve both "
                    "training and validation; use a larger subset or add recordings"
                )
            notes.append(
                f"scene {scene!r} was recorded at one location ({rows.identifier.iloc[0]}): held out by whole 10 s "
                "segments instead, so its validation accuracy is optimistic"
            )
        sizes = rows.groupby(column).size()
        known = {g: side[g] for g in sizes.index if g in side}
        chosen = _choose(sizes, share * len(rows), rng, known)
        side.update({g: g in chosen for g in sizes.index})
        held |= clips.index.isin(rows.index[rows[column].isin(list(chosen))])
    return HoldOut(clips.loc[~held].reset_index(drop=True), clips.loc[held].reset_index(drop=True), tuple(notes))


def _choose(sizes: pd.Series, target: float, rng: np.random.Generator, known: dict[str, bool]) -> set[str]:
    """Groups whose total is near `target`, at least one and never all; `known` groups stay as decided."""
    fixed = {g for g, held in known.items() if held}
    free = np.array([g for g in sizes.index if g not in known], dtype=object)
    # one group at least on either side, unless a decided one is there already
    most = len(free) - (len(fixed) == len(known))
    best: tuple[float, set[str]] = (np.inf, fixed)
    for _ in range(_DRAWS):
        order = rng.permutation(free)
        for count in range(0 if fixed else 1, most + 1):
            chosen = fixed | set(order[:count])
            distance = abs(sizes[list(chosen)].sum() - target)
            if distance < best[0]:
                best = (distance, chosen)
            if sizes[list(chosen)].sum() > target:
                break
    return best[1]
