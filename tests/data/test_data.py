"""TAU on disk, the hold-out, the waveform cache, the front-end and the augmentations."""

import itertools
import os
import random
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import torchaudio

from data import cache, tau
from data.augment import AugmentConfig, augment_features, augment_waveforms, draw_waveforms, freq_mixstyle, mask
from data.cache import open_cache, read_clip
from data.features import FrontEndConfig, LogMel
from data.files import locked
from data.holdout import HoldOut, hold_out
from data.tau import SCENES, SUBSETS, DataConfig, DatasetError, dataset_root, read_split
from tests.support import workers
from tests.support.tau import coloured_noise

# --- data/tau.py ---


@pytest.fixture
def tables(tiny_tau: Path, tmp_path: Path) -> Path:
    """A data set whose tables may be damaged: the clips are links."""
    root = tmp_path / "tau"
    shutil.copytree(tiny_tau / "split_setup", root / "split_setup")
    shutil.copy(tiny_tau / "meta.csv", root)
    (root / "audio").symlink_to(tiny_tau / "audio")
    return root


def edit(path: Path, pattern: str, replacement: str, count: int = 0) -> None:
    """Replace in a text file; fails when there is nothing to replace."""
    text, changes = re.subn(pattern, replacement, path.read_text(), count=count, flags=re.MULTILINE)
    assert changes, f"{pattern} not in {path}"
    path.write_text(text)


def test_split_rows_agree_with_the_names_on_disk(tiny_tau):
    sizes = []
    for name in ("test", *(f"split{s}" for s in SUBSETS)):
        clips = read_split(tiny_tau, name)
        lines = (tiny_tau / "split_setup" / f"{name}.csv").read_text().splitlines()[1:]
        assert (clips.filename + "\t" + clips.scene_label).tolist() == lines  # every row, in order
        for clip in clips.to_dict("records"):
            scene, city, location, segment, _chunk, device = Path(clip["filename"]).stem.split("-")
            assert (clip["scene_label"], clip["identifier"], clip["device"]) == (scene, f"{city}-{location}", device)
            assert clip["segment"] == f"{scene}-{city}-{location}-{segment}"
            assert SCENES[clip["label"]] == scene
            assert (tiny_tau / clip["filename"]).is_file()
        sizes.append(len(clips))
    assert sizes == [20, 25, 25, 25, 25, 50]
    assert list(SCENES) == sorted(SCENES)
    assert len(SCENES) == 10


def test_subsets_are_nested_and_apart_from_test(tiny_tau):
    names = [set(read_split(tiny_tau, f"split{s}").filename) for s in SUBSETS]
    assert all(small <= large for small, large in itertools.pairwise(names))
    assert not names[-1] & set(read_split(tiny_tau, "test").filename)


def test_dataset_dir_wins_over_the_environment(tiny_tau, tmp_path, monkeypatch):
    monkeypatch.setenv("TAU24_PATH", str(tmp_path))
    assert dataset_root(str(tiny_tau)) == tiny_tau
    monkeypatch.setenv("TAU24_PATH", str(tiny_tau))
    assert dataset_root(None) == tiny_tau
    with pytest.raises(DatasetError):
        dataset_root(str(tmp_path))  # given, wrong, and not papered over by the environment
    monkeypatch.chdir(tiny_tau.parent)
    assert dataset_root(tiny_tau.name) == tiny_tau  # absolute: Ray changes the working directory


@pytest.mark.parametrize("value", [None, "", "/nonexistent/tau"])
def test_a_missing_data_set_names_both_ways_and_the_record(value, monkeypatch):
    monkeypatch.delenv("TAU24_PATH", raising=False)
    with pytest.raises(DatasetError) as error:
        dataset_root(value)
    for part in ("--dataset_dir", "TAU24_PATH", "6337421", value or "no data set"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "message"),
    [
        ("split25", r"\tbus$", "\ttrain", r"unknown scene 'train'.*airport, bus"),
        ("split25", r"^(audio/tram.*\n)", r"\1\1", r"audio/tram\S+ is listed twice"),
        ("split25", r"^audio/tram.*\n", "", "no clip of scene tram"),
        (
            "split25",
            r"^audio/park-(\w+)",
            r"audio/park-x\1",
            r"names 2 clip\(s\) that meta.csv does not list, first audio",
        ),
        ("split25", r"^(audio/park.*)\tpark$", r"\1\tbus", "is bus, but park in meta.csv"),
        ("split25", "\t", ",", "no column 'filename'"),
        ("split25", "scene_label", "scene", "no column 'scene_label'"),
        ("../meta", "identifier", "location", "no column 'identifier'"),
        ("../meta", r"^audio/park.*\n", "", r"names 2 clip\(s\) that meta.csv does not list, first audio/park"),
    ],
)
def test_damaged_tables_are_named(tables, file, pattern, replacement, message):
    path = tables / "split_setup" / f"{file}.csv"
    edit(path, pattern, replacement)
    with pytest.raises(DatasetError, match=message) as error:
        read_split(tables, "split25")
    assert file.strip("./") + ".csv" in str(error.value)


def test_a_name_out_of_layout_is_refused(tables):
    for file in ("split_setup/split5.csv", "meta.csv"):
        edit(tables / file, r"^audio/bus-\w+-100-\S+", "audio/bus.wav", count=1)
    with pytest.raises(DatasetError, match=r"'audio/bus\.wav': .*audio/<scene>-<city>-<location>"):
        read_split(tables, "split5")


def test_an_empty_csv_is_named(tables):
    (tables / "split_setup" / "split5.csv").write_text("")
    with pytest.raises(DatasetError, match=r"cannot read .*split5\.csv"):
        read_split(tables, "split5")


@pytest.mark.parametrize("skip_broken", [False, True])
def test_clips_that_are_not_on_disk_are_named_and_never_skipped(tiny_tau, tmp_path, skip_broken):
    names = list(read_split(tiny_tau, "split5").filename)
    gone = [f"audio/gone-{i}.wav" for i in range(7)]
    with pytest.raises(DatasetError) as error:
        open_cache(tiny_tau, [*names, *gone], 8000, tmp_path / "cache", skip_broken)
    told = str(error.value)
    assert f"7 of {len(names) + 7} clips" in told
    assert str(tiny_tau) in told
    assert [name in told for name in gone] == [True] * 5 + [False] * 2
    assert "data.skip_broken" in told
    assert not (tmp_path / "cache").exists()


def test_a_folder_inside_the_data_set_points_to_its_parent(tiny_tau, monkeypatch):
    monkeypatch.delenv("TAU24_PATH", raising=False)
    for inside in ("audio", "split_setup"):
        with pytest.raises(DatasetError) as error:
            dataset_root(str(tiny_tau / inside))
        assert f"--dataset_dir={tiny_tau} " in str(error.value)
        assert "6337421" not in str(error.value)
    monkeypatch.setenv("TAU24_PATH", str(tiny_tau / "audio"))
    with pytest.raises(DatasetError) as error:
        dataset_root(None)
    assert str(error.value).endswith(f"TAU24_PATH={tiny_tau}")


def test_places_of_the_split_tables(tables, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    (tables / "split_setup").rename(elsewhere)
    with pytest.raises(DatasetError, match=r"split5\.csv is in none of .*github.com/CPJKU"):
        read_split(tables, "split5")
    assert len(read_split(tables, "split5", str(elsewhere))) == 25
    with pytest.raises(DatasetError, match=r"split5\.csv is in none of"):
        read_split(tables, "split5", str(tmp_path))
    shutil.copy(elsewhere / "split5.csv", tables)  # directly in the data set's folder
    assert len(read_split(tables, "split5")) == 25
    (tmp_path / "work" / "split_setup").mkdir(parents=True)
    shutil.copy(elsewhere / "split10.csv", tmp_path / "work" / "split_setup")
    monkeypatch.chdir(tmp_path / "work")
    assert len(read_split(tables, "split10")) == 25


def test_missing_split_tables_are_downloaded(tables, tmp_path, monkeypatch):
    (tables / "split_setup").rename(tmp_path / "server")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tau, "SPLIT_URL", "http://127.0.0.1:1/")  # nobody listens there
    with pytest.raises(DatasetError, match=r"could not be downloaded .*fetch http\S+split5.csv yourself"):
        read_split(tables, "split5", download_dir=tmp_path / "down")
    assert not list((tmp_path / "down").iterdir())
    monkeypatch.setattr(tau, "SPLIT_URL", f"file://{tmp_path}/server/")
    assert len(read_split(tables, "split5", download_dir=tmp_path / "down")) == 25
    assert [p.name for p in (tmp_path / "down").iterdir()] == ["split5.csv"]
    shutil.rmtree(tmp_path / "server")
    assert len(read_split(tables, "split5", download_dir=tmp_path / "down")) == 25  # kept


def test_evaluation_set(tiny_tau, tables):
    folder, names = tau.read_evaluation(tiny_tau)
    assert names == ["audio/0.wav", "audio/1.wav", "audio/2.wav"]
    assert all(len(read_clip(folder / name)) == 44_100 for name in names)
    with pytest.raises(DatasetError, match=r"fold1_test\.csv is missing"):
        tau.read_evaluation(tables)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"subset": 7}, r"data\.subset=7: expected one of 5, 10, 25, 50, 100"),
        ({"validation_share": 0.0}, r"data\.validation_share=0\.0"),
        ({"validation_share": 1.0}, r"data\.validation_share=1\.0"),
        ({"validation_share": float("nan")}, r"data\.validation_share=nan"),
    ],
)
def test_data_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**values)


# --- data/holdout.py ---


def table(scenes: dict[str, dict[str, list[int]]]) -> pd.DataFrame:
    """Clips of {scene: {location: [clips in each segment]}}."""
    rows = [
        (f"{scene}-{place}-{seg}-{chunk}", scene, place, f"{scene}-{place}-{seg}")
        for scene, places in scenes.items()
        for place, segments in places.items()
        for seg, n in enumerate(segments)
        for chunk in range(n)
    ]
    return pd.DataFrame(rows, columns=["filename", "scene_label", "identifier", "segment"])


def random_table(rng: np.random.Generator, shared: bool = False) -> pd.DataFrame:
    """Two to five scenes of two to four locations, their own or drawn from a common pool."""
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
        got = (parts.validation.scene_label == scene).sum()
        assert abs(got - share * len(rows)) == pytest.approx(best)


def test_hold_out_with_locations_shared_between_scenes():
    """A shared location is on one side for all its scenes; where that leaves a scene on one side, it is noted."""
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
    """b and c go their ways first; a's two locations may then both be held out, and a must not vanish."""
    for seed in range(20):
        scenes = {"b": {"1": [9, 9], "3": [1, 1]}, "c": {"2": [9, 9], "4": [1, 1]}, "d": {"3": [4, 4], "4": [4, 4]}}
        clips = table(scenes)  # b holds out 3, c holds out 4: d has nothing left to train on
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
    drawn = {tuple(hold_out(equal, 0.25, seed).validation.filename) for seed in range(20)}
    assert len(drawn) > 10  # 28 equally good pairs: seeds really choose


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
    assert len(parts.validation) == 20  # one location of two clips a scene
    assert list(parts.train.columns) == list(clips.columns)


# --- data/cache.py ---


@pytest.fixture(scope="module")
def names(tiny_tau):
    return list(read_split(tiny_tau, "split100").filename)


@pytest.fixture
def few(tiny_tau, tmp_path, names):
    """Six clips that a test may damage: their folder and names."""
    chosen = sorted(names)[::9]
    for name in chosen:
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_tau / name, tmp_path / "clips" / name)
    return tmp_path / "clips", chosen


def contents(folder: Path) -> list[str]:
    """What a cache folder holds, without keys and random parts of names."""
    names = (re.sub(r"\.[0-9a-f]{8}\.", ".RANDOM.", path.name) for path in folder.iterdir())
    return sorted(re.sub(r"[0-9a-f]{16}", "KEY", name) for name in names)


FINISHED = ["waveforms-KEY", "waveforms-KEY.digest", "waveforms.lock"]


@pytest.mark.parametrize(("rate", "steps"), [(32_000, 1.0), (16_000, 1.0), (44_100, 0.51)])
def test_the_cache_holds_every_clip_to_within_16_bit_rounding(tiny_tau, tmp_path, names, rate, steps):
    """Half a step where nothing is resampled; the resampling filter's own float32 error may add as much."""
    opened = open_cache(tiny_tau, names, rate, tmp_path, progress=False)
    assert opened.filenames == sorted(names)
    assert (opened.sample_rate, opened.skipped) == (rate, {})
    shuffled = random.Random(0).sample(names, len(names))
    batch = opened.batch(opened.rows(shuffled))
    assert batch.shape == (len(names), rate)
    assert batch.dtype == torch.float32
    raw = torch.from_numpy(np.stack([soundfile.read(tiny_tau / n, dtype="float32")[0] for n in shuffled]))
    expected = torchaudio.functional.resample(raw.double(), 44_100, rate)
    step = expected.abs().amax(dim=1, keepdim=True) / 32_767  # of each clip: quiet ones lose nothing
    assert ((batch - expected).abs() <= steps * step).all()
    assert ((batch - expected).abs() > 0.4 * step).any()  # 16 bits, not more
    assert step.max() / step.min() > 10  # the clips do differ in level
    with pytest.raises(KeyError, match=r"gone\.wav"):
        opened.rows(["gone.wav"])


def test_a_second_opening_decodes_nothing(few, tmp_path, monkeypatch):
    root, chosen = few
    first = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)

    def refuse(path):
        raise AssertionError(f"{path} is decoded")

    monkeypatch.setattr(cache, "read_clip", refuse)
    second = open_cache(root, list(reversed(chosen)), 8000, tmp_path / "cache", progress=False)
    assert second.folder == first.folder
    assert torch.equal(first.batch(first.rows(chosen)), second.batch(second.rows(chosen)))
    with pytest.raises(AssertionError, match="is decoded"):  # the trap does work
        open_cache(root, chosen, 8000, tmp_path / "another", progress=False)


def test_the_key_follows_contents_names_and_rate_not_the_place(few, tmp_path):
    root, chosen = few
    cache_dir = tmp_path / "cache"

    def key(folder=root, files=chosen, rate=8000) -> str:
        return open_cache(folder, files, rate, cache_dir, progress=False).key

    original = key()
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    assert key(moved) == original
    assert key(files=chosen[1:]) != original
    assert key(rate=4000) != original
    os.utime(root / chosen[0])  # touched, not changed
    assert key() == original
    samples, rate = soundfile.read(root / chosen[0], dtype="int32")
    samples[20_000] ^= 1 << 20  # one bit of one sample, the size as before
    time.sleep(0.01)
    soundfile.write(root / chosen[0], samples, rate, "PCM_24")
    changed = key()
    assert changed != original
    (moved / chosen[0]).rename(moved / "spare")
    (moved / chosen[1]).rename(moved / chosen[0])
    (moved / "spare").rename(moved / chosen[1])
    assert key(moved) not in (original, changed)  # two clips have changed places
    assert len([p for p in cache_dir.iterdir() if p.is_dir()]) == 5


def test_each_opening_looks_once_at_each_file(few, tmp_path, looked_at):
    root, chosen = few
    once = sorted(Path(name).name for name in chosen)
    first = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    assert sorted(looked_at) == once
    looked_at.clear()
    open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    assert sorted(looked_at) == once
    looked_at.clear()
    known = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False, content=first.content)
    assert looked_at == []
    assert (known.folder, known.content, known.filenames) == (first.folder, first.content, first.filenames)


def test_many_files_are_looked_at_in_chunks(few, tmp_path, monkeypatch):
    """The stamp does not depend on how the files are shared out."""
    root, chosen = few
    whole = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    monkeypatch.setattr(cache, "_STATS", 4)
    before = contents(tmp_path / "cache")
    again = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False, num_workers=3)
    assert again.content == whole.content
    assert contents(tmp_path / "cache") == before


def test_known_content_is_compared_where_there_is_no_cache_of_it(few, tmp_path):
    """A machine of its own: equal copies are cached, other ones are refused before anything is decoded."""
    root, chosen = few
    content = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False).content
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    assert open_cache(copy, chosen, 8000, tmp_path / "local", progress=False, content=content).content == content
    spoil(copy / chosen[0], "stereo")
    with pytest.raises(DatasetError, match=content[:16]):
        open_cache(copy, chosen, 8000, tmp_path / "other", progress=False, content=content)
    with pytest.raises(DatasetError, match="waveform cache"):
        open_cache(root, chosen[1:], 8000, tmp_path / "cache", progress=False, content=content)


def test_readers_of_an_existing_cache_do_not_wait_for_whoever_builds(few, tmp_path):
    root, chosen = few
    first = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    opened = []

    def read() -> None:
        opened.append(open_cache(root, chosen, 8000, tmp_path / "cache", progress=False).folder)

    with locked(tmp_path / "cache" / cache.LOCK):  # somebody builds another cache
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(timeout=600)
        assert opened == [first.folder]


def test_a_digest_that_a_power_loss_left_empty_is_made_again(few, tmp_path):
    root, chosen = few
    first = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    (memo,) = (tmp_path / "cache").glob("*.digest")
    memo.write_text("")
    assert open_cache(root, chosen, 8000, tmp_path / "cache", progress=False).key == first.key
    assert memo.read_text() == first.content


@pytest.mark.slow
def test_two_processes_at_once_build_one_cache(tiny_tau, tmp_path, names, fresh_processes):
    (tmp_path / "waiting").mkdir()
    arguments = [
        (tiny_tau, names, tmp_path / "cache", tmp_path / "waiting", 2, tmp_path / f"result{i}") for i in range(2)
    ]
    assert fresh_processes(workers.build_cache, *arguments) == [0, 0]
    (one, key), (two, other_key) = ((tmp_path / f"result{i}").read_text().split() for i in range(2))
    assert sorted([int(one), int(two)]) == [0, len(names)]
    assert key == other_key
    assert contents(tmp_path / "cache") == FINISHED


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_is_used(tiny_tau, tmp_path, names, fresh_processes):
    assert fresh_processes(workers.die_building_cache, (tiny_tau, names, tmp_path)) == [-9]
    assert contents(tmp_path) == [".waveforms-KEY.RANDOM.tmp", *FINISHED[1:]]  # it was half-way
    opened = open_cache(tiny_tau, names, 8000, tmp_path, progress=False)
    assert contents(tmp_path) == FINISHED
    last = opened.filenames[-1]
    raw = torch.from_numpy(soundfile.read(tiny_tau / last, dtype="float32")[0])
    expected = torchaudio.functional.resample(raw, 44_100, 8000)
    assert torch.allclose(opened.batch(opened.rows([last]))[0], expected, atol=float(expected.abs().max()) / 60_000)


def test_a_process_killed_while_hashing_does_not_spoil_the_cache(few, tmp_path):
    """Its temporary file holds a part of the digest, where a killed build leaves a folder."""
    root, chosen = few
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f".waveforms-{'0' * 16}.digest.{'0' * 8}.tmp").write_text("half")
    open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    assert contents(tmp_path / "cache") == FINISHED


def test_a_build_that_fails_leaves_nothing_and_can_be_repeated(few, tmp_path, monkeypatch):
    root, chosen = few
    read = cache.read_clip

    def fail(path):
        if path.name == Path(chosen[3]).name:
            raise MemoryError("in the middle")
        return read(path)

    monkeypatch.setattr(cache, "read_clip", fail)
    with pytest.raises(MemoryError):
        open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    assert contents(tmp_path / "cache") == FINISHED[1:]
    monkeypatch.undo()
    assert open_cache(root, chosen, 8000, tmp_path / "cache", progress=False).filenames == chosen


def spoil(path: Path, how: str) -> None:
    samples, rate = soundfile.read(path)
    if how == "stereo":
        soundfile.write(path, np.stack([samples, samples], axis=1), rate, "PCM_24")
    elif how == "8 kHz":
        soundfile.write(path, samples[:8000], 8000, "PCM_24")
    elif how == "short":
        soundfile.write(path, samples[:30_000], rate, "PCM_24")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:50_000])
    elif how == "not a number":
        samples[100] = np.nan
        soundfile.write(path, samples, rate, "FLOAT")
    elif how == "garbage":
        path.write_bytes(bytes(range(256)) * 100)
    else:
        path.write_bytes(b"")


BROKEN = {
    "stereo": r"2 channel\(s\) at 44100 Hz; expected mono",
    "8 kHz": r"1 channel\(s\) at 8000 Hz; expected mono at 44100",
    "short": "30000 samples; expected 44100",
    "truncated": "samples; expected 44100|cannot be read as WAV",
    "not a number": "not finite",
    "garbage": "cannot be read as WAV",
    "empty": "cannot be read as WAV",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_clip_stops_the_build_and_is_named(few, tmp_path, how):
    root, chosen = few
    spoil(root / chosen[2], how)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(root / chosen[2]))}.*({BROKEN[how]})"):
        open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    assert contents(tmp_path / "cache") == FINISHED[1:]


def test_broken_clips_are_left_out_and_listed_with_the_flag(few, tmp_path):
    root, chosen = few
    whole = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    before = whole.batch(whole.rows(chosen))
    spoiled = {chosen[i]: how for i, how in zip((0, 2, 5), BROKEN, strict=False)}
    for name, how in spoiled.items():
        spoil(root / name, how)
    opened = open_cache(root, chosen, 8000, tmp_path / "cache", skip_broken=True, progress=False)
    assert opened.filenames == [chosen[1], chosen[3], chosen[4]]
    assert set(opened.skipped) == set(spoiled)
    for name, how in spoiled.items():
        assert re.search(BROKEN[how], opened.skipped[name])
    assert torch.equal(opened.batch(opened.rows(opened.filenames)), before[[1, 3, 4]])
    again = open_cache(root, chosen, 8000, tmp_path / "cache", skip_broken=True, progress=False)
    assert again.skipped == opened.skipped
    with pytest.raises(DatasetError):  # without the flag the list of before does not help
        open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)


def test_silent_and_very_quiet_clips(few, tmp_path):
    root, chosen = few
    soundfile.write(root / chosen[0], np.zeros(44_100), 44_100, "PCM_24")
    quiet = 1e-5 * np.sin(np.arange(44_100) * 0.05)
    soundfile.write(root / chosen[1], quiet, 44_100, "PCM_24")  # about 84 steps of 24 bits, 0.3 of 16 bits
    opened = open_cache(root, chosen, 44_100, tmp_path / "cache", progress=False)
    batch = opened.batch(opened.rows(chosen[:2])).numpy()
    assert not batch[0].any()
    assert np.corrcoef(batch[1], quiet)[0, 1] > 0.999


# --- data/features.py ---


def mel_filters(config: FrontEndConfig) -> np.ndarray:
    """HTK's triangles, from the formula: `[n_fft // 2 + 1, n_mels]`."""
    top = config.f_max or config.sample_rate / 2

    def mel(hz: float) -> float:
        return 2595 * np.log10(1 + hz / 700)

    edges = 700 * (10 ** (np.linspace(mel(config.f_min), mel(top), config.n_mels + 2) / 2595) - 1)
    hz = np.linspace(0, config.sample_rate // 2, config.n_fft // 2 + 1)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


FRONT_ENDS = {
    "dcase": FrontEndConfig(),
    "hop 512": FrontEndConfig(hop_length=512),
    "teacher": FrontEndConfig(16_000, 1024, 800, 320, 64, mean=-3.0, std=4.0),
    "band": FrontEndConfig(16_000, 1024, 1024, 160, 40, f_min=50.0, f_max=7000.0),
}


@pytest.mark.parametrize(
    ("name", "shape"), [("dcase", (256, 65)), ("hop 512", (256, 63)), ("teacher", (64, 51)), ("band", (40, 101))]
)
def test_log_mels_equal_a_second_implementation(name, shape):
    config, rng = FRONT_ENDS[name], np.random.default_rng(0)
    waves = np.stack([coloured_noise(s, 0, 0, rng)[: config.sample_rate] for s in (0, 5, 9)]).astype(np.float32)
    got = LogMel(config)(torch.from_numpy(waves))
    assert got.shape == (3, 1, *shape)
    assert config.frames == shape[1]
    spectrum = torch.stft(
        torch.from_numpy(waves).double(),
        config.n_fft,
        config.hop_length,
        config.win_length,
        torch.hann_window(config.win_length, dtype=torch.float64),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    filters = torch.from_numpy(mel_filters(config))
    theirs = torchaudio.functional.melscale_fbanks(
        config.n_fft // 2 + 1, config.f_min, config.f_max or config.sample_rate / 2, config.n_mels, config.sample_rate
    )
    assert torch.allclose(filters, theirs.double(), atol=1e-4)
    power = (spectrum.abs() ** 2).transpose(1, 2) @ theirs.double()
    expected = ((power.transpose(1, 2) + 1e-5).log() - config.mean) / config.std
    assert torch.allclose(got[:, 0].double(), expected, atol=2e-4)
    assert got.std() > 0.2  # there is something to compare


def test_normalisation_and_silence_in_closed_form():
    raw = LogMel(FrontEndConfig(16_000, 512, 512, 160, 32))(torch.zeros(1, 16_000))
    assert torch.allclose(raw, torch.full_like(raw, float(np.log(1e-5))))
    scaled = LogMel(FrontEndConfig(16_000, 512, 512, 160, 32, mean=-4.27, std=9.14))(torch.zeros(1, 16_000))
    assert torch.allclose(scaled, torch.full_like(scaled, float((np.log(1e-5) + 4.27) / 9.14)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_mels": 0}, r"frontend\.n_mels=0"),
        ({"std": 0.0}, r"frontend\.std=0"),
        ({"hop_length": -1}, r"frontend\.hop_length=-1"),
        ({"win_length": 8192}, r"frontend\.win_length=8192 is longer than frontend\.n_fft=4096"),
    ],
)
def test_front_end_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        FrontEndConfig(**values)


# --- data/augment.py ---


def rolled(x: torch.Tensor, config: AugmentConfig, rate: int, rng: np.random.Generator) -> torch.Tensor:
    return augment_waveforms(x, draw_waveforms(config, rate, np.array(["a"] * len(x)), 0, rng), rate)


def test_roll_turns_each_clip_by_its_own_amount_within_the_limit():
    x = torch.arange(400).repeat(300, 1) + 1000 * torch.arange(300)[:, None]
    y = rolled(x, AugmentConfig(roll_s=0.1), 50, np.random.default_rng(0))  # 5 samples at most
    shifts = []
    for before, after in zip(x, y, strict=True):
        shift = int((after == before[0]).nonzero())
        assert torch.equal(after, torch.roll(before, shift))
        shifts.append(shift if shift < 200 else shift - 400)
    assert set(shifts) == set(range(-5, 6))  # both ends are reached, nothing lies beyond
    assert torch.equal(x[0], torch.arange(400))  # the input is left alone


def test_mixstyle_mixes_each_clips_statistics_with_one_other_clips():
    """Whatever it drew: every clip's new mean and deviation lie at one lambda between its own and another clip's."""
    gen = torch.Generator().manual_seed(0)
    scale, shift = torch.rand(12, 1, 6, 1, generator=gen) * 3 + 0.5, torch.randn(12, 1, 6, 1, generator=gen) * 4
    x = (torch.randn(12, 1, 6, 50, generator=gen) * scale + shift).double()
    y = freq_mixstyle(x, 0.3, np.random.default_rng(1))
    mean, std, new_mean, new_std = (f(t, (1, 3)) for t in (x, y) for f in (torch.mean, torch.std))  # [B, F]
    shape_before = (x - mean[:, None, :, None]) / std[:, None, :, None]
    shape_after = (y - new_mean[:, None, :, None]) / new_std[:, None, :, None]
    assert torch.allclose(shape_before, shape_after, atol=1e-5)
    lambdas = []
    for i in range(12):
        fits = []
        for j in set(range(12)) - {i}:
            towards = torch.cat([mean[j] - mean[i], std[j] - std[i]])
            moved = torch.cat([new_mean[i] - mean[i], new_std[i] - std[i]])
            share = float(moved @ towards / (towards @ towards))  # 1 - lambda, least squares
            fits.append((float((moved - share * towards).abs().max()), share))
        residual, share = min(fits)
        assert residual < 1e-5
        assert -1e-6 <= share <= 1 + 1e-6
        lambdas.append(1 - share)
    assert len({round(v, 3) for v in lambdas}) > 6  # one for each clip


def test_masks_are_bands_within_the_bound():
    for dim, longest in ((2, 10), (3, 7), (2, 1000)):
        x = torch.rand(500, 1, 40, 30) + 1
        y = mask(x, dim, longest, np.random.default_rng(0))
        size = x.shape[dim]
        hit = (y == 0).squeeze(1).movedim(dim - 1, 1)  # [B, masked axis, other]
        assert (hit.all(dim=2) == hit.any(dim=2)).all()  # whole lines
        assert torch.equal(torch.where(y == 0, x, y), x)  # the rest is as it was
        widths, starts = [], set()
        for line in hit[:, :, 0]:
            places = line.nonzero().flatten().tolist()
            assert places == list(range(places[0], places[0] + len(places))) if places else True
            widths.append(len(places))
            starts |= {places[0]} if places else set()
        assert max(widths) <= min(longest, size)
        assert len(set(widths)) == min(longest, size)  # 0 ... longest - 1: uniform widths are rounded down
        assert min(starts) == 0
        assert len(starts) > size // 2
    assert mask(x, 3, 0, np.random.default_rng(0)) is x


def test_augmentation_depends_on_its_generator_alone():
    waves, features = torch.randn(8, 3200), torch.randn(8, 1, 32, 20)
    config = AugmentConfig(freq_mask=8, time_mask=5, mixstyle_p=1.0)

    def states() -> list:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index,union-attr]

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(seed)
        return rolled(waves, config, 32_000, rng), augment_features(features, config, rng)

    before = states()
    first = run(1)
    torch.manual_seed(99)
    np.random.seed(99)
    changed = states()
    second, other = run(1), run(2)
    assert states() == changed
    assert before != changed
    for a, b, c in zip(first, second, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    augment_features(torch.randn(4, 1, 8, 8, generator=torch.Generator()), AugmentConfig(), np.random.default_rng(0))
    assert torch.equal(state, torch.get_rng_state())


def test_strength_0_is_the_identity():
    off = AugmentConfig(roll_s=0, freq_mask=0, time_mask=0, mixstyle_p=0)
    waves, features = torch.randn(8, 3200), torch.randn(8, 1, 32, 20)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert torch.equal(rolled(waves, off, 32_000, rng), waves)
        assert torch.equal(augment_features(features, off, rng), features)


def test_mixstyle_takes_its_share_of_the_batches():
    features, rng = torch.randn(4, 1, 8, 10), np.random.default_rng(0)
    config = AugmentConfig(freq_mask=0, time_mask=0, mixstyle_p=0.4)
    changed = sum(not torch.equal(augment_features(features, config, rng), features) for _ in range(600))
    assert abs(changed - 240) < 5 * (600 * 0.4 * 0.6) ** 0.5  # five standard deviations


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixstyle_p": 1.5}, r"augment\.mixstyle_p=1\.5"),
        ({"mixstyle_alpha": 0.0}, r"augment\.mixstyle_alpha=0"),
        ({"roll_s": -0.1}, r"augment\.roll_s=-0\.1"),
        ({"freq_mask": -1}, r"augment\.freq_mask=-1"),
        ({"time_mask": -1}, r"augment\.time_mask=-1"),
    ],
)
def test_augment_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)
