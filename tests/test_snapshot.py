"""Ray's snapshots are rewritten in place; a torn one is replaced by the last that was whole."""

import json
import pickle
from pathlib import Path

import pytest

from tune.study import keep_snapshot, mend_snapshot, snapshot_files


def write_snapshot(folder: Path, session: str, content: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"experiment_state-{session}.json"]
    paths += [folder / f"search_gen_state-{session}.json", folder / f"searcher-state-{session}.pkl"]
    paths[0].write_text(json.dumps(content))
    for path in paths[1:]:
        path.write_bytes(pickle.dumps(content))
    return paths


@pytest.mark.parametrize("torn", [0, 1, 2])
@pytest.mark.parametrize("left", [0, 3])
def test_torn_snapshot_is_replaced_by_the_kept_one(tmp_path: Path, torn: int, left: int) -> None:
    results, kept = tmp_path / "ray", tmp_path / "kept"
    paths = write_snapshot(results, "2026-01-01", 12345678)
    keep_snapshot(results, kept)
    assert {f.name: f.read_bytes() for f in kept.iterdir()} == {f.name: f.read_bytes() for f in paths}
    whole = [p.read_bytes() for p in paths]
    paths[torn].write_bytes(paths[torn].read_bytes()[:left] if left else b"")
    if torn == 0 and left:
        paths[0].write_text('{"tr')
    keep_snapshot(results, kept)  # a torn one never replaces the copy
    assert mend_snapshot(results, kept)
    assert [p.read_bytes() for p in paths] == whole


def test_without_a_whole_snapshot_there_is_nothing_to_restore(tmp_path: Path) -> None:
    results = tmp_path / "ray"
    for path in write_snapshot(results, "2026-01-01", 1):
        path.write_bytes(b"")
    assert not mend_snapshot(results, tmp_path / "kept")
    assert list(results.iterdir()) == []


def test_older_session_serves_where_no_copy_was_kept(tmp_path: Path) -> None:
    results = tmp_path / "ray"
    old = write_snapshot(results, "2026-01-01", 1)
    write_snapshot(results, "2026-01-02", 2)[2].write_bytes(b"")
    assert mend_snapshot(results, tmp_path / "kept")
    assert snapshot_files(results) == old


def test_newer_snapshot_replaces_the_kept_one(tmp_path: Path) -> None:
    results, kept = tmp_path / "ray", tmp_path / "kept"
    write_snapshot(results, "2026-01-01", 1)
    keep_snapshot(results, kept)
    write_snapshot(results, "2026-01-02", 2)
    keep_snapshot(results, kept)
    assert sorted(json.loads(f.read_text()) for f in kept.glob("experiment_state*")) == [2]
