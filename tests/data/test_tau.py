"""The TAU data set on disk: split tables, folders, what is refused (`data/tau.py`)."""

import itertools
import re
import shutil
from pathlib import Path

import pytest

from data import tau
from data.cache import open_cache, read_clip
from data.config.dataset import SUBSETS, DataConfig
from data.tau import SCENES, DatasetError, dataset_root, read_split


@pytest.fixture
def tables(tiny_tau: Path, tmp_path: Path) -> Path:
    """Return a data set of links to the clips, whose tables a test may damage."""
    root = tmp_path / "tau"
    shutil.copytree(tiny_tau / "split_setup", root / "split_setup")
    shutil.copy(tiny_tau / "meta.csv", root)
    (root / "audio").symlink_to(tiny_tau / "audio")
    return root


def edit(path: Path, pattern: str, replacement: str, count: int = 0) -> None:
    """Replace a pattern in a text file, which must contain it."""
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
        dataset_root(str(tmp_path))  # a wrong argument is an error, although the environment variable is right
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
    message = str(error.value)
    assert f"7 of {len(names) + 7} clips" in message
    assert str(tiny_tau) in message
    assert [name in message for name in gone] == [True] * 5 + [False] * 2
    assert "data.skip_broken" in message
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
    monkeypatch.setattr(tau, "SPLIT_URL", "http://127.0.0.1:1/")  # no server there
    with pytest.raises(DatasetError, match=r"could not be downloaded .*fetch http\S+split5.csv yourself"):
        read_split(tables, "split5", download_dir=tmp_path / "down")
    assert not list((tmp_path / "down").iterdir())
    monkeypatch.setattr(tau, "SPLIT_URL", f"file://{tmp_path}/server/")
    assert len(read_split(tables, "split5", download_dir=tmp_path / "down")) == 25
    assert [p.name for p in (tmp_path / "down").iterdir()] == ["split5.csv"]
    shutil.rmtree(tmp_path / "server")
    assert len(read_split(tables, "split5", download_dir=tmp_path / "down")) == 25  # the downloaded table is kept


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
        ({"validation_share": -0.1}, r"data\.validation_share=-0\.1"),
        ({"validation_share": 1.0}, r"data\.validation_share=1\.0"),
        ({"validation_share": float("nan")}, r"data\.validation_share=nan"),
    ],
)
def test_data_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**values)
