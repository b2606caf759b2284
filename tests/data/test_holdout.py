"""The hold-out: its share, its locations, its seed (`data/holdout.py`)."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from data.holdout import HoldOut, hold_out
from data.tau import DatasetError, read_split


def table(scenes: dict[str, dict[str, list[int]]]) -> pd.DataFrame:
    """Return the table of clips for {scene: {location: [number of clips of each segment]}}."""
    rows = [
        (f"{scene}-{place}-{seg}-{chunk}", scene, place, f"{scene}-{place}-{seg}")
        for scene, places in scenes.items()
        for place, segments in places.items()
        for seg, n in enumerate(segments)
        for chunk in range(n)
    ]
    return pd.DataFrame(rows, columns=["filename", "scene_label", "identifier", "segment"])


def random_table(rng: np.random.Generator, shared: bool = False) -> pd.DataFrame:
    """Return a table of 2 to 5 scenes with 2 to 4 locations each, which are their own or from a common pool."""
    scenes = {}
    for s in range(rng.integers(2, 6)):
        count = rng.integers(2, 5)
        places = rng.permutation(6)[:count] if shared else range(100 * s, 100 * s + count)
        scenes[f"scene{s}"] = {f"city-{p}": rng.integers(1, 9, size=rng.integers(1, 4)).tolist() for p in places}
    return table(scenes).sample(frac=1, random_state=int(rng.integers(2**31)))


def check_division(clips: pd.DataFrame, parts: HoldOut) -> None:
    train, validation = set(parts.train.filename), set(parts.validation.filename)
    assert not train & validation
    assert train | validation == set(clips.filename)
    assert len(parts.train) + len(parts.validation) == len(clips)
    assert set(parts.train.scene_label) == set(parts.validation.scene_label) == set(clips.scene_label)
    assert not set(parts.train.segment) & set(parts.validation.segment)


@pytest.mark.parametrize("seed", range(12))
def test_hold_out_by_location_comes_as_close_to_the_share_as_any_division(seed):
    rng = np.random.default_rng(seed)
    clips, share = random_table(rng), rng.uniform(0.1, 0.6)
    parts = hold_out(clips, share, seed)
    check_division(clips, parts)
    assert not set(parts.train.identifier) & set(parts.validation.identifier)
    assert parts.notes == ()
    for scene, rows in clips.groupby("scene_label"):
        sizes = rows.groupby("identifier").size()
        sums = [sum(chosen) for k in range(1, len(sizes)) for chosen in itertools.combinations(sizes, k)]
        best = min(abs(total - share * len(rows)) for total in sums)
        n_held_out = (parts.validation.scene_label == scene).sum()
        assert abs(n_held_out - share * len(rows)) == pytest.approx(best)


def test_hold_out_with_locations_shared_between_scenes():
    """A shared location is on one side for all its scenes. A scene that is thereby on one side only is noted."""
    noted = 0
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        clips = random_table(rng, shared=True)
        if not (clips.groupby("scene_label").segment.nunique() > 1).all():
            continue
        parts = hold_out(clips, 0.25, seed)
        check_division(clips, parts)
        excepted = {re.findall(r"'(.+?)'", note)[0] for note in parts.notes}
        noted += len(excepted)
        sides = [part[~part.scene_label.isin(list(excepted))] for part in (parts.train, parts.validation)]
        assert not set(sides[0].identifier) & set(sides[1].identifier)
    assert 0 < noted < 20


def test_a_scene_whose_locations_were_all_decided_to_one_side():
    """Scenes b and c are divided first, which may hold out both locations of a; a must still have training clips."""
    for seed in range(20):
        scenes = {"b": {"1": [9, 9], "3": [1, 1]}, "c": {"2": [9, 9], "4": [1, 1]}, "d": {"3": [4, 4], "4": [4, 4]}}
        clips = table(scenes)  # b holds out location 3 and c location 4, so d has no training clips
        parts = hold_out(clips, 0.1, seed)
        check_division(clips, parts)
        (note,) = parts.notes
        assert "'d' shares all its locations (3, 4)" in note
        assert (parts.validation.scene_label == "d").sum() == 4


def test_hold_out_is_seeded_by_its_argument_alone():
    clips = random_table(np.random.default_rng(5))
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first, again = hold_out(clips, 0.2, 3), hold_out(clips, 0.2, 3)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    pd.testing.assert_frame_equal(first.validation, again.validation)
    pd.testing.assert_frame_equal(first.train, again.train)
    equal = table({"park": {f"x-{i}": [2] for i in range(8)}})
    divisions = {tuple(hold_out(equal, 0.25, seed).validation.filename) for seed in range(20)}
    assert len(divisions) > 10  # of 28 equally good pairs, so the seed decides


def test_a_single_location_is_held_out_by_segments_and_noted():
    clips = table({"metro": {"city-1": [10, 10, 10, 10, 10]}, "park": {f"city-{i}": [10, 10] for i in range(2, 7)}})
    parts = hold_out(clips, 0.2, 0)
    check_division(clips, parts)
    metro = parts.validation[parts.validation.scene_label == "metro"]
    assert len(metro) == 10
    assert metro.segment.nunique() == 1
    (note,) = parts.notes
    assert "'metro'" in note
    assert "city-1" in note
    assert "optimistic" in note
    with pytest.raises(DatasetError, match=r"'metro' .*\(metro-city-1-0\)"):
        hold_out(table({"metro": {"city-1": [10]}, "park": {"a": [1], "b": [1]}}), 0.2, 0)


def test_hold_out_of_the_tiny_set(tiny_tau):
    clips = read_split(tiny_tau, "split100")
    parts = hold_out(clips, 0.2, 0)
    check_division(clips, parts)
    assert not set(parts.train.identifier) & set(parts.validation.identifier)
    assert len(parts.validation) == 20  # one location with two clips in each of ten scenes
    assert list(parts.train.columns) == list(clips.columns)
