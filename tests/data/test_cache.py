"""The waveform cache: its contents, its key, concurrent and killed builds, broken clips (`data/cache.py`)."""

import os
import random
import re
import shutil
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from data import cache
from data.cache import open_cache
from data.files import locked
from data.tau import DatasetError
from tests.support import workers


def contents(folder: Path) -> list[str]:
    """Return the names in a cache folder; keys and random parts are replaced by placeholders."""
    names = (re.sub(r"\.[0-9a-f]{8}\.", ".RANDOM.", path.name) for path in folder.iterdir())
    return sorted(re.sub(r"[0-9a-f]{16}", "KEY", name) for name in names)


FINISHED = ["waveforms-KEY", "waveforms-KEY.digest", "waveforms.lock"]


@pytest.mark.parametrize(("rate", "steps"), [(32_000, 1.0), (16_000, 1.0), (44_100, 0.51)])
def test_the_cache_holds_every_clip_to_within_16_bit_rounding(tiny_tau, tmp_path, names, rate, steps):
    """The error is half a 16-bit step without resampling; the resampling filter's float32 error may add as much."""
    opened = open_cache(tiny_tau, names, rate, tmp_path, progress=False)
    assert opened.filenames == sorted(names)
    assert (opened.sample_rate, opened.skipped) == (rate, {})
    shuffled = random.Random(0).sample(names, len(names))
    batch = opened.batch(opened.rows(shuffled))
    assert batch.shape == (len(names), rate)
    assert batch.dtype == torch.float32
    raw = torch.from_numpy(np.stack([soundfile.read(tiny_tau / n, dtype="float32")[0] for n in shuffled]))
    expected = torchaudio.functional.resample(raw.double(), 44_100, rate)
    step = expected.abs().amax(dim=1, keepdim=True) / 32_767  # of each clip: quiet ones lose no precision
    assert ((batch - expected).abs() <= steps * step).all()
    assert ((batch - expected).abs() > 0.4 * step).any()  # the cache has 16 bits, not more
    assert step.max() / step.min() > 10  # the clips differ in level
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
    with pytest.raises(AssertionError, match="is decoded"):  # decoding does raise here
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
    os.utime(root / chosen[0])  # new modification time, same content
    assert key() == original
    samples, rate = soundfile.read(root / chosen[0], dtype="int32")
    samples[20_000] ^= 1 << 20  # one bit of one sample; the file size is unchanged
    time.sleep(0.01)
    soundfile.write(root / chosen[0], samples, rate, "PCM_24")
    changed = key()
    assert changed != original
    (moved / chosen[0]).rename(moved / "spare")
    (moved / chosen[1]).rename(moved / chosen[0])
    (moved / "spare").rename(moved / chosen[1])
    assert key(moved) not in (original, changed)  # two clips were exchanged
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
    """The stamp of the files does not depend on the chunks in which they are checked."""
    root, chosen = few
    first = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    monkeypatch.setattr(cache, "_STATS", 4)
    before = contents(tmp_path / "cache")
    again = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False, num_workers=3)
    assert again.content == first.content
    assert contents(tmp_path / "cache") == before


def test_known_content_is_compared_where_there_is_no_cache_of_it(few, tmp_path):
    """On another machine, equal copies of the clips are cached, and different ones are refused before decoding."""
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

    with locked(tmp_path / "cache" / cache.LOCK):  # another process builds another cache
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
    assert contents(tmp_path) == [".waveforms-KEY.RANDOM.tmp", *FINISHED[1:]]  # the build was incomplete
    opened = open_cache(tiny_tau, names, 8000, tmp_path, progress=False)
    assert contents(tmp_path) == FINISHED
    last = opened.filenames[-1]
    raw = torch.from_numpy(soundfile.read(tiny_tau / last, dtype="float32")[0])
    expected = torchaudio.functional.resample(raw, 44_100, 8000)
    assert torch.allclose(opened.batch(opened.rows([last]))[0], expected, atol=float(expected.abs().max()) / 60_000)


def test_a_process_killed_while_hashing_does_not_spoil_the_cache(few, tmp_path):
    """It leaves a temporary file with a part of the digest, which a later build must not use."""
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


def flac_header(rate: int, n_channels: int, n_samples: int) -> bytes:
    """Return a FLAC file of 42 bytes without sound, whose header declares `n_samples` samples of 16 bits."""
    packed = rate << 44 | (n_channels - 1) << 41 | 15 << 36 | n_samples
    return b"fLaC\x80\x00\x00\x22" + struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8) + bytes(16)


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
    elif how == "int16 scale":
        soundfile.write(path, 4096 * samples / abs(samples).max(), rate, "FLOAT")
    elif how == "long FLAC header":
        path.write_bytes(flac_header(44_100, 1, 2**36 - 1))
    elif how == "FLAC of 8 channels":
        path.write_bytes(flac_header(44_100, 8, 44_100))
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
    "int16 scale": "samples of up to 4096",
    "long FLAC header": "samples; expected 44100|cannot be read as WAV",
    "FLAC of 8 channels": r"8 channel\(s\)|cannot be read as WAV",
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
    complete = open_cache(root, chosen, 8000, tmp_path / "cache", progress=False)
    before = complete.batch(complete.rows(chosen))
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
    with pytest.raises(DatasetError):  # without the flag, an earlier list of skipped clips has no effect
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
