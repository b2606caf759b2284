"""The file names in the csv files of a data set, and files that are no clip under the name of one."""

import io
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data import tau
from data.cache import open_cache
from data.tau import DatasetError, read_clip, read_evaluation, read_split
from tests.support.tau import coloured_noise, write_tsv

CLIP = "audio/bus-lyon-1-2-3-a.wav"
STRANGE = (
    *("", "audio/", "../audio/bus-lyon-1-2-3-a.wav", "audio/../bus-lyon-1-2-3-a.wav", "audio/bus-..-..-../x-3-a.wav"),
    *("/audio/bus-lyon-1-2-3-a.wav", "audio//bus-lyon-1-2-3-a.wav", "audio/./bus-lyon-1-2-3-a.wav", "C:\\a-3-a.wav"),
    *("audio\\bus-lyon-1-2-3-a.wav", "audio/bus\\lyon-1-2-3-a.wav", "audio/bus-lyon-1-2-\\-a.wav", "~/bus-1-2-a.wav"),
    *("audio/bus-lyon-1-2\x00-3-a.wav", "audio/bus-lyon-1-2-3\x00-a.wav", "audio/bus-lyon-1-2-3-a\x1b[2J.wav"),
    *("audio/bus-lyon-1-2-3-\x7f.wav", "audio/bus-lyon-1-2-\u202e3-a.wav", "audio/.bus-lyon-1-2-3-a.wav"),
    f"audio/bus-lyon-{'1' * 300}-2-3-a.wav",
)
KIB = 2**10  # ru_maxrss is in KiB


def tables(root: Path, name: str, labels: tuple[str, ...] = tau.SCENES) -> Path:
    """Write the csv files of a data set in which the clip of the scene "bus" has the file name `name`."""
    names = [name if label == "bus" else f"audio/{label}-lyon-1-2-3-a.wav" for label in labels]
    rows = list(zip(names, labels, strict=True))
    write_tsv(root / "split_setup" / "split5.csv", rows, ("filename", "scene_label"))
    meta = [(name, label, "lyon-1", "a") for name, label in rows]
    write_tsv(root / "meta.csv", meta, ("filename", "scene_label", "identifier", "source_label"))
    return root


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_file_name_in_a_split_is_refused(tmp_path: Path, name: str) -> None:
    assert list(read_split(tables(tmp_path / "good", CLIP), "split5").filename)[1] == CLIP
    with pytest.raises(DatasetError) as error:
        read_split(tables(tmp_path / "bad", name), "split5")
    assert repr(name) in str(error.value) or not name
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in STRANGE if name and not name.startswith(("~", "audio/bus-..-"))])
def test_a_strange_file_name_in_the_evaluation_set_is_refused(tmp_path: Path, name: str) -> None:
    table = tmp_path / tau.EVALUATION_DIR / "evaluation_setup" / "fold1_test.csv"
    write_tsv(table, [("audio/0.wav",)], ("filename",))
    assert read_evaluation(tmp_path / "tau")[1] == ["audio/0.wav"]
    write_tsv(table, [("audio/0.wav",), (name,), ("audio/1.wav",)], ("filename",))
    with pytest.raises(DatasetError) as error:
        read_evaluation(tmp_path / "tau")
    assert repr(name) in str(error.value) and str(table) in str(error.value)


def test_a_link_is_read_only_if_it_leads_to_a_clip(tmp_path: Path) -> None:
    """Data sets are often put together from links, so a link out of the folder is allowed."""
    root, outside = tmp_path / "tau", tmp_path / "outside"
    (root / "audio").mkdir(parents=True)
    outside.mkdir()
    wave = coloured_noise(0, 0, 0, np.random.default_rng(0))
    soundfile.write(outside / "clip.wav", wave, 44_100, "PCM_16")
    (outside / "secret.txt").write_text("not a clip")
    (root / CLIP).symlink_to(outside / "clip.wav")
    cache = open_cache(root, [CLIP], 8000, tmp_path / "cache", progress=False)
    assert cache.filenames == [CLIP]
    for target in (outside / "secret.txt", outside, "/dev/zero", root / CLIP, outside / "missing"):
        (root / CLIP).unlink()
        (root / CLIP).symlink_to(target)
        with pytest.raises((DatasetError, OSError)) as error:
            open_cache(root, [CLIP], 8000, tmp_path / "cache", progress=False)
        assert CLIP in str(error.value)
        assert "not a clip" not in str(error.value)


def written(form: str, subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, coloured_noise(0, 0, 0, np.random.default_rng(0)), 44_100, format=form, subtype=subtype)
    return stream.getvalue()


def flac(rate: int, n_channels: int, n_samples: int) -> bytes:
    """Return a FLAC file whose header (STREAMINFO) declares other values than its content has."""
    content = written("FLAC", "PCM_16")
    declared = rate << 44 | n_channels - 1 << 41 | 15 << 36 | n_samples
    return content[:18] + declared.to_bytes(8, "big") + content[26:]


def wav(
    n_channels: int = 1,
    form: int = 1,
    bits: int = 16,
    size: int | None = None,
    more: bytes = b"",
    kind: bytes = b"RIFF",
) -> bytes:
    """Return a WAV file of 44,100 zeros whose header declares these values; `size` is that of the samples in bytes."""
    block, data = n_channels * bits // 8, bytes(88_200)
    head = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, form, n_channels, 44_100, 44_100 * block % 2**32, block & 0xFFFF, bits
    )
    body = b"WAVE" + more + head + struct.pack("<4sI", b"data", len(data) if size is None else size) + data
    return kind + struct.pack("<I", len(body)) + body


def chunk(name: str, size: int) -> bytes:
    return name.encode() + struct.pack("<I", size) + bytes(100)


@pytest.mark.parametrize("form", sorted(set(soundfile.available_formats()) - {"RAW", "WAV", "WAVEX", "RF64"}))
def test_another_format_under_the_name_of_a_wav_file_is_refused(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for SD2, libsndfile writes a second file to the current folder
    path = tmp_path / "a.wav"
    path.write_bytes(written(form))
    with pytest.raises(DatasetError) as error:
        read_clip(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_each_kind_of_wav_file_is_read(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.wav").write_bytes(written(form))
    (tmp_path / "b.wav").write_bytes(wav())
    assert abs(read_clip(tmp_path / "a.wav")).max() > 0.001
    assert not read_clip(tmp_path / "b.wav").any()


CRAFTED = {
    "FLAC of 1e9 samples": flac(44_100, 1, 10**9),
    "FLAC of 2^36 samples": flac(44_100, 1, 2**36 - 1),
    "FLAC of 8 channels": flac(44_100, 8, 10**9),
    "FLAC of an unknown length": flac(44_100, 1, 0),
    "1,024 channels": wav(1024),
    "65,535 channels": wav(65_535),
    "a-law of half the size": wav(form=6, bits=8),
    "floats in integers": wav(form=3, bits=16),
    "an unknown codec": wav(form=0x5346),
    "64-bit sizes": wav(
        kind=b"RF64", more=struct.pack("<4sIQQQI", b"ds64", 28, 2**40, 2**40, 2**40, 0), form=6, bits=8
    ),
    **{
        f"a chunk {name} of 2 GB": wav(more=chunk(name, 2**31 - 2)) for name in ("LIST", "PEAK", "bext", "cart", "cue ")
    },
    "no content": b"",
    "only a header": wav()[:44],
    "half a file": wav()[:40_000],
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_declared_size_takes_no_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(CRAFTED[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetError) as error:
        read_clip(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * KIB
