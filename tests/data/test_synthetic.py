"""The embedded synthetic data set: TAU's file layout, disjoint splits, reproducible bytes, atomic creation.

pytest tests/data/test_synthetic.py
"""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import soundfile as sf

from data import synthetic
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow  # builds the data set
TRAIN, TEST, EVAL = 200, 60, 10
UNSEEN = {"s4", "s5", "s6"}
SCENES = {"airport", "bus", "metro", "metro_station", "park", "public_square", "shopping_mall"}
SCENES |= {"street_pedestrian", "street_traffic", "tram"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def filenames(folder: Path, split: str) -> list[str]:
    return [row["filename"] for row in rows(folder / f"split_setup/{split}.csv")]


def parts(filename: str) -> list[str]:
    """Return the parts of a file name: [scene, city, location, segment, chunk, device]."""
    return Path(filename).stem.split("-")


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def build(dest: Path, n_train: int = TRAIN, seed: int = 0) -> Path:
    return synthetic.build(dest, n_train, TEST, seed, EVAL, progress=False, workers=1)


def name_only(segment: synthetic.Segment, folder: Path, seed: int) -> int:
    """A replacement of the renderer for tests of folders: it writes the seed instead of sound."""
    for take in segment.takes:
        (folder / take.filename).write_bytes(bytes([seed]))
    return len(segment.takes)


def render_some(folder: Path, seed: int = 0, workers: int = 1) -> dict[str, str]:
    """Return the digests of three rendered segments of the smallest training set."""
    folder.mkdir()
    synthetic._write_audio(synthetic.plan("train", 10)[:3], folder, seed, progress=False, workers=workers)
    return digests(folder)


@pytest.fixture(scope="module")
def tau(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("embedded") / "tau")


def test_the_files_are_those_of_the_tables(tau: Path) -> None:
    on_disk = {f"audio/{path.name}" for path in (tau / "audio").iterdir()}
    meta = [row["filename"] for row in rows(tau / "meta.csv")]
    listed = filenames(tau, "split100") + filenames(tau, "test")
    assert len(on_disk) == TRAIN + TEST
    assert sorted(meta) == sorted(listed) == sorted(on_disk)
    assert len(filenames(tau, "split100")) == TRAIN and len(filenames(tau, "test")) == TEST


def test_tables_have_tau_columns_that_agree_with_the_names(tau: Path) -> None:
    header = (tau / "meta.csv").read_text().splitlines()[0]
    assert header == "filename\tscene_label\tidentifier\tsource_label"
    assert (tau / "split_setup/test.csv").read_text().splitlines()[0] == "filename\tscene_label"
    for row in rows(tau / "meta.csv"):
        scene, city, location, _, chunk, device = parts(row["filename"])
        assert (scene, f"{city}-{location}", device) == (
            row["scene_label"], row["identifier"], row["source_label"],
        )  # fmt: skip
        assert 0 <= int(chunk) < 10
    assert {row["scene_label"] for row in rows(tau / "meta.csv")} == SCENES


def test_wavs_are_one_second_mono_24_bit(tau: Path) -> None:
    for row in rows(tau / "meta.csv"):
        info = sf.info(tau / row["filename"])
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (44_100, 1, "PCM_24", 44_100)
        peak = abs(sf.read(tau / row["filename"])[0]).max()
        assert 0.005 < peak < 0.991, row


def test_splits_are_nested_and_hold_whole_segments_of_every_scene(tau: Path) -> None:
    segments = Counter(tuple(parts(name)[:4]) for name in filenames(tau, "split100"))
    outer = set(filenames(tau, "split100"))
    for percent in (50, 25, 10, 5):
        inner = filenames(tau, f"split{percent}")
        assert set(inner) <= outer
        assert {parts(name)[0] for name in inner} == SCENES
        counts = Counter(tuple(parts(name)[:4]) for name in inner)
        assert all(count == segments[segment] for segment, count in counts.items())
        outer = set(inner)


def test_split_sizes_come_near_their_percentages() -> None:
    splits = synthetic.nested_splits(synthetic.plan("train", 2000), seed=0)
    clips = {percent: sum(len(segment.takes) for segment in split) for percent, split in splits.items()}
    assert clips[100] == 2000
    for percent in (25, 50):
        assert abs(clips[percent] - 20 * percent) <= 50  # half of the smallest segment (10 clips), in ten scenes


def test_the_smallest_split_can_be_divided_into_training_and_validation() -> None:
    smallest = synthetic.nested_splits(synthetic.plan("train", 2000), seed=0)[5]
    for scene in synthetic.SCENES:
        own = [segment for segment in smallest if segment.scene == scene]
        assert len(own) == 2
        assert len({segment.location for segment in own}) == 2


def test_locations_belong_to_one_scene_and_one_part() -> None:
    planned = {part: synthetic.plan(part, n) for part, n in (("train", 2000), ("test", 600), ("eval", 300))}
    places = [(part, s.location, s.scene, s.city) for part, segments in planned.items() for s in segments]
    assert len({place[1] for place in places}) == len(set(places))
    assert len({place[3] for place in places}) >= 4
    for scene in SCENES:
        train = [s for s in planned["train"] if s.scene == scene]
        assert len({s.location for s in train}) >= 4 and len({s.city for s in train}) >= 3
        assert {take.device for s in planned["test"] if s.scene == scene for take in s.takes} == set(synthetic.DEVICES)


def test_devices(tau: Path) -> None:
    train = Counter(parts(name)[5] for name in filenames(tau, "split100"))
    test = Counter(parts(name)[5] for name in filenames(tau, "test"))
    assert set(train) == {"a", "b", "c", "s1", "s2", "s3"}
    assert set(test) == set(train) | UNSEEN
    assert (train + test).most_common(1)[0][0] == "a"
    chunks = Counter(tuple(parts(name)[:5]) for name in filenames(tau, "split100"))
    assert max(chunks.values()) == 2 and min(chunks.values()) == 1  # some were recorded side by side


def test_devices_side_by_side_hear_the_same_second() -> None:
    segment = next(s for s in synthetic.plan("train", 200) if {t.device for t in s.takes} == {"a", "b"})
    spectrum = synthetic.render(segment.scene, segment.location, segment.number, seed=0)
    waves = synthetic.record(spectrum, "a"), synthetic.record(spectrum, "b")
    same = (waves[0] * waves[1]).mean() / (waves[0].std() * waves[1].std())
    assert 0.5 < same < 0.999


def test_evaluation_set_lies_beside_without_labels(tau: Path) -> None:
    folder = tau.parent / "TAU-urban-acoustic-scenes-2024-mobile-evaluation"
    table = rows(folder / "evaluation_setup/fold1_test.csv")
    assert len(table) == EVAL and all(list(row) == ["filename"] for row in table)
    assert {row["filename"] for row in table} == {f"audio/{path.name}" for path in (folder / "audio").iterdir()}
    assert all(Path(row["filename"]).stem.isdigit() for row in table)
    assert not (folder / "meta.csv").exists()


def test_same_seed_same_bytes_whatever_the_processes(tau: Path, tmp_path: Path) -> None:
    one, two = render_some(tmp_path / "one"), render_some(tmp_path / "two", workers=2)
    assert len(one) == 3 and one == two
    assert one.items() <= digests(tau).items()  # and does not depend on the size of the set
    other = render_some(tmp_path / "other", seed=1)
    assert all(one[name] != other[name] for name in one)


def test_same_seed_same_tables(tau: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "write_segment", name_only)
    tables = {name: digest for name, digest in digests(tau).items() if not name.startswith("audio/")}
    assert len(tables) == 8  # meta, five splits, test, manifest
    again = digests(build(tmp_path / "again" / "tau"))
    assert tables.items() <= again.items()
    other = digests(build(tmp_path / "other" / "tau", seed=1))
    assert other["split_setup/split50.csv"] != tables["split_setup/split50.csv"]


def test_a_finished_set_is_left_alone(tau: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in tau.parent.rglob("*")}
    monkeypatch.setattr(synthetic, "write_segment", None)  # a second rendering would fail
    assert build(tau) == tau
    assert {path: path.stat().st_mtime_ns for path in tau.parent.rglob("*")} == before


def test_other_parameters_are_refused_and_both_are_named(tau: Path) -> None:
    before = digests(tau)
    with pytest.raises(FileExistsError, match=r"'train': 200.*'train': 300"):
        build(tau, n_train=300)
    with pytest.raises(FileExistsError, match=r"'seed': 0.*'seed': 7"):
        build(tau, seed=7)
    assert digests(tau) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recordings.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="another kind"):
        build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recordings.txt"]
    for damaged in ("", "{", "[" * 100_000, "[]"):
        (tmp_path / synthetic.MANIFEST).write_text(damaged)
        with pytest.raises(FileExistsError) as error:
            build(tmp_path)
        assert str(tmp_path / synthetic.MANIFEST) in str(error.value)


@pytest.mark.parametrize(("n_train", "seed"), [(9, 0), (10, -1)])
def test_too_few_clips_or_a_negative_seed(tmp_path: Path, n_train: int, seed: int) -> None:
    with pytest.raises(ValueError, match=f"train {n_train}.*seed {seed}"):
        build(tmp_path / "tau", n_train, seed)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch: list[str] = []

    def fail_midway(segment: synthetic.Segment, folder: Path, seed: int) -> int:
        if len(list((folder / "audio").iterdir())) > 100:
            scratch.extend(path.name for path in tmp_path.iterdir())
            raise KeyboardInterrupt
        return name_only(segment, folder, seed)

    monkeypatch.setattr(synthetic, "write_segment", fail_midway)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "tau")
    assert len(scratch) == 1 and scratch[0].startswith(".tau.")  # nothing was at DEST during the build
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_nothing_at_dest_and_the_next_one_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "data.synthetic", str(tmp_path / "tau")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".tau.*.tmp/audio/*.wav")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert [path.name.startswith(".tau.") for path in tmp_path.iterdir()] == [True]
    monkeypatch.setattr(synthetic, "write_segment", name_only)
    build(tmp_path / "tau")
    assert {path.name for path in tmp_path.iterdir()} == {"tau", synthetic.EVALUATION_FOLDER}
