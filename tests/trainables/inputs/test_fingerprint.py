"""The data fingerprint: every change of the data that a resume must notice, and moves that it must not."""

import json
import os
import re
import shutil
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import soundfile

from data.tau import DatasetError
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.inputs.clips import load_clips
from trainables.inputs.fingerprint import DataFingerprint, differences, fingerprint

pytestmark = pytest.mark.slow  # prepares data and trains in most tests

RATE_HZ = 8000


@pytest.fixture
def root(tiny_tau: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may change."""
    return Path(shutil.copytree(tiny_tau, tmp_path / "tau"))


def configured(root: Path, *words: str, cache: Path | None = None) -> TrialConfig:
    cache = cache or root.parent / "cache"
    return compose([f"data.dataset_dir={root}", f"data.cache_dir={cache}", *words])


def taken(root: Path, *words: str, cache: Path | None = None, rate: int = RATE_HZ) -> DataFingerprint:
    config = configured(root, *words, cache=cache)
    return fingerprint(config, load_clips(config, rate))


def parts(old: DataFingerprint, new: DataFingerprint) -> dict[str, str]:
    """Return part -> sentence for each difference, after checking that both directions name the same parts."""
    assert differences(old, old) == differences(new, new) == []
    sentences = {sentence.partition(":")[0]: sentence for sentence in differences(old, new)}
    assert set(sentences) == {sentence.partition(":")[0] for sentence in differences(new, old)}
    assert (not sentences) == (old == new)
    return sentences


def flip_one_bit(path: Path) -> None:
    samples, rate = soundfile.read(path, dtype="int32")
    samples[20_000] ^= 1 << 20
    soundfile.write(path, samples, rate, "PCM_24")


def edit(path: Path, pattern: str, replacement: str, count: int = 0) -> None:
    text, changes = re.subn(pattern, replacement, path.read_text(), count=count, flags=re.MULTILINE)
    assert changes
    path.write_text(text)


def train_clip(root: Path) -> str:
    config = configured(root)
    clips = load_clips(config, RATE_HZ).train
    return clips.cache.filenames[clips.rows[0]]


def test_json_keeps_it_and_it_is_small(root):
    first = taken(root)
    text = json.dumps(first.as_dict())
    assert DataFingerprint.from_dict(json.loads(text)) == first
    assert len(text) < 2000
    assert (first.n_train, first.n_validation, first.subset, first.validation_share, first.seed) == (
        30,
        20,
        100,
        0.2,
        0,
    )
    assert sum(first.scenes.values()) == sum(first.device_counts.values()) == 50
    assert (len(first.scenes), set(first.device_counts)) == (10, {"a", "b", "c", "s1", "s2", "s3"})


@pytest.mark.parametrize("change", ["format", "unknown", "missing", "no mapping"])
def test_another_format_is_refused(root, change):
    values = taken(root).as_dict()
    if change == "format":
        values["format"] += 1
    elif change == "unknown":
        values["sounds"] = "a"
    elif change == "missing":
        del values["sound"]
    with pytest.raises(DatasetError, match="format"):
        DataFingerprint.from_dict([] if change == "no mapping" else values)  # type: ignore[arg-type]


def test_a_moved_data_set_and_a_moved_cache_are_the_same(root, tmp_path):
    first = taken(root)
    assert taken(root, cache=tmp_path / "another") == first
    assert taken(root, rate=4000) == first
    moved = root.rename(tmp_path / "moved")
    assert taken(moved, cache=tmp_path / "cache") == first
    os.utime(moved / train_clip(moved))
    assert taken(moved, cache=tmp_path / "cache") == first


def test_changed_sound_of_one_clip_and_of_all(root):
    first = taken(root)
    time.sleep(0.01)
    flip_one_bit(root / train_clip(root))
    one = taken(root)
    assert set(parts(first, one)) == {"sound"}
    for path in (root / "audio").iterdir():
        flip_one_bit(path)
    every = taken(root)
    sentences = parts(one, every)
    assert set(sentences) == {"sound"}
    assert one.sound[:16] in sentences["sound"]
    assert every.sound[:16] in sentences["sound"]


def test_a_clip_replaced_with_its_size_and_modification_time_kept_is_noticed(root):
    """`cp -p` and rsync keep size and modification time, but not the inode's time of change."""
    path = root / train_clip(root)
    first, before = taken(root), path.stat()
    time.sleep(0.01)
    flip_one_bit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert set(parts(first, taken(root))) == {"sound"}


def test_changed_labels_name_the_scenes(root):
    first = taken(root)
    clip = train_clip(root)  # an airport clip by its file name, but the tables decide
    for table in ("meta.csv", "split_setup/split100.csv"):
        edit(root / table, rf"^({re.escape(clip)}\t)airport", r"\1tram")
    sentences = parts(first, taken(root))
    assert "labels" in sentences
    assert "sound" not in sentences
    for words in ("airport 4 clips before, 3 now", "tram 6 clips before, 7 now"):
        assert words in sentences["labels"]


def test_exchanged_devices_are_noticed(root):
    first = taken(root)
    rows = [line.split("\t") for line in (root / "meta.csv").read_text().splitlines()]
    one = next(row for row in rows if row[0] == train_clip(root))
    two = next(
        row
        for row in rows
        if row[0] in (root / "split_setup" / "split100.csv").read_text()
        and row[3] != one[3]
        and row[3] != "source_label"
    )
    one[3], two[3] = two[3], one[3]
    (root / "meta.csv").write_text("".join("\t".join(row) + "\n" for row in rows))
    sentences = parts(first, taken(root))
    assert set(sentences) == {"devices"}
    for value in (first.devices, taken(root).devices):
        assert value in sentences["devices"]


def test_a_removed_split_line_names_the_counts(root):
    first = taken(root)
    edit(root / "split_setup" / "split100.csv", rf"^{re.escape(train_clip(root))}\t.*\n", "")
    sentences = parts(first, taken(root))
    assert "clips of the split" in sentences
    assert not {"sound", "labels", "devices"} & set(sentences)
    assert "50 before, 49 now" in sentences["clips of the split"]


def test_another_order_of_the_training_clips_is_noticed(root):
    first = taken(root)
    path = root / "split_setup" / "split100.csv"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *rows[::-1]]) + "\n")
    assert set(parts(first, taken(root))) == {"training clips", "validation clips"}


@pytest.mark.parametrize(
    ("word", "part", "values"),
    [
        ("data.validation_share=0.4", "data.validation_share", ("0.2", "0.4")),
        ("data.subset=25", "data.subset", ("100", "25")),
        ("seed=3", "seed", ("0", "3")),
    ],
)
def test_another_division_names_both_values(root, word, part, values):
    first = taken(root)
    sentences = parts(first, taken(root, word))
    assert all(value in sentences[part] for value in values)
    assert first.describes(configured(root))
    assert not first.describes(configured(root, word))


def test_a_newly_broken_file_that_is_skipped_is_named(root):
    first = taken(root, "data.skip_broken=true")
    assert (first.n_skipped, first.skipped) == (0, ())
    clip = train_clip(root)
    (root / clip).write_bytes(b"")
    now = taken(root, "data.skip_broken=true")
    sentences = parts(first, now)
    assert clip in sentences["skipped files"]
    assert "30 before, 29 now" in sentences["training clips"]
    assert now.skipped == (clip,)


def test_every_part_counts(root):
    """A change of any field of the fingerprint yields a sentence."""
    first = taken(root)
    changed = {"skipped": ("audio/x.wav",), "scenes": {"bus": 1}, "device_counts": {"a": 1}}
    for field in fields(first):
        if field.name in ("format", "scenes", "device_counts"):
            continue  # displayed only; the hash next to it is compared
        value = getattr(first, field.name)
        other = changed.get(field.name, value + 1 if isinstance(value, int | float) else "another")
        assert differences(first, replace(first, **{field.name: other})), field.name
