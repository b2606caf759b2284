"""The files of a study on a disk that others may write to: links and pipes are neither followed nor read."""

import os
from pathlib import Path

import pytest

from data.seals import SEAL, seal
from trainables.outputs.storage import Store, TrialCheckpoints


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with the file a and the file b/c, a link out of it, a link in a circle and a pipe."""
    place = tmp_path / "store"
    (place / "b").mkdir(parents=True)
    (place / "a").write_text("1")
    (place / "b" / "c").write_text("22")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("333")
    (place / "out").symlink_to(tmp_path / "outside")
    (place / "b" / "file").symlink_to(tmp_path / "outside" / "secret")
    (place / "b" / "circle").symlink_to(place)
    os.mkfifo(place / "b" / "pipe")
    return place


@pytest.mark.parametrize("form", ["path", "uri"])
def test_links_and_pipes_in_a_store_are_left_out(place: Path, tmp_path: Path, form: str) -> None:
    store = Store(str(place) if form == "path" else place.as_uri())
    assert store.sizes("", recursive=True) == {"a": 1, "b/c": 2}
    assert store.sizes("") == {"a": 1}
    assert store.sizes("b", recursive=True) == {"c": 2}
    assert store.sizes("out", recursive=True) == store.sizes("b/circle", recursive=True) == {}
    assert store.sizes("missing") == {}
    store.pull("b", tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["c"]
    assert store.stamps("")["a"] == store.stamp("a")
    (tmp_path / "link").symlink_to(place)  # the folder itself may be a link
    assert Store(str(tmp_path / "link")).sizes("b") == {"c": 2}


def test_a_pipe_in_place_of_a_seal_ends_no_search_for_checkpoints(tmp_path: Path) -> None:
    folders = [tmp_path / "run000" / "t0000" / f"checkpoint_{i:06d}" for i in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "trial.pt").write_text("w")
        seal(folder)
    (folders[1] / SEAL).unlink()
    os.mkfifo(folders[1] / SEAL)
    checkpoints = TrialCheckpoints(str(tmp_path), "t0000")
    checkpoints.clear(1)
    assert checkpoints.load_newest(lambda found: found.name, lambda message: None) == "checkpoint_000000"
