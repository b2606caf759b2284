"""Waveform caches and hashes of clips that others have changed (damaged files: tests/data/test_seals.py)."""

from pathlib import Path

import pytest
import torch

from data.cache import open_cache
from data.files import locked


def test_a_cache_that_lists_other_clips_and_a_damaged_digest_are_made_again(few, tmp_path):
    root, chosen = few
    first = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    expected = first.batch(first.rows(chosen))
    manifest = first.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(chosen[0], "audio/other-lyon-1-2-3-a.wav"))
    again = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    assert torch.equal(again.batch(again.rows(chosen)), expected)
    (memo,) = (tmp_path / "cache").glob("*.digest")
    for content in (b"\xff" * 64, b"../" * 21 + b"x"):
        memo.write_bytes(content)
        assert open_cache(root, chosen, 8000, tmp_path / "cache", progress=False).content == first.content
    memo.unlink()
    memo.symlink_to("/dev/zero")
    assert open_cache(root, chosen, 8000, tmp_path / "cache", progress=False).content == first.content


def test_a_lock_that_is_a_link_creates_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), locked(tmp_path / "lock"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
