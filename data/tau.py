"""TAU Urban Acoustic Scenes 2022 Mobile on disk: clips, devices and splits (DCASE 2024 Task 1).

    root = dataset_root(None)                 # the folder of the data set, from the environment variable TAU24_PATH.
    train = read_split(root, "split25")       # a table with one row per clip.

The folder `root` has meta.csv, split_setup/*.csv and audio/<scene>-<city>-<location>-<segment>-<chunk>-<device>.wav. It
is Zenodo record 6337421. The split csv files are those of the DCASE 2024 baseline's release.
"""

import os
import re
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from data.config.dataset import SOURCE_RATE, DataConfig
from data.files import make_folder, replace_bytes
from data.untrusted import is_relative_path

SCENES = (
    *("airport", "bus", "metro", "metro_station", "park", "public_square", "shopping_mall"),
    *("street_pedestrian", "street_traffic", "tram"),
)
LOUDEST = 2.0  # largest sample in a clip of floats: full scale is 1, and processing may exceed it a little
CLIP_SAMPLES = 44_100  # 1 s
DEVICE_GROUPS = {"real": ("a", "b", "c"), "seen": ("s1", "s2", "s3"), "unseen": ("s4", "s5", "s6")}
ZENODO = "https://zenodo.org/records/6337421"
SPLIT_URL = "https://github.com/CPJKU/dcase2024_task1_baseline/releases/download/files/"
_WAV = (b"RIFF", b"RIFX", b"RF64")  # first bytes of a WAV file: little endian, big endian, 64-bit sizes
EVALUATION_DIR = "TAU-urban-acoustic-scenes-2024-mobile-evaluation"


class DatasetError(ValueError):
    """The data set on disk is missing, incomplete or damaged, or does not have TAU's layout of files."""


def dataset_root(dataset_dir: str | None) -> Path:
    """Return the absolute path of TAU's development set: `dataset_dir`, or else the environment variable TAU24_PATH.

    If this folder is not a TAU data set, or if both are empty, DatasetError is raised.
    """
    value = dataset_dir or os.environ.get("TAU24_PATH")
    how = (
        "set --dataset_dir=FOLDER (data.dataset_dir) or the environment variable TAU24_PATH to the TAU Urban Acoustic "
        f"Scenes 2022 Mobile development set (Zenodo record 6337421, {ZENODO}); "
        "for a try without TAU, `make synthetic` builds a synthetic data set in ./tau-synthetic"
    )
    if not value:
        raise DatasetError(f"no data set given (data.dataset_dir and TAU24_PATH are empty): {how}")
    root = Path(value).expanduser().resolve()
    if not (root / "meta.csv").is_file():
        if (root.parent / "meta.csv").is_file():
            way = f"--dataset_dir={root.parent} (data.dataset_dir)" if dataset_dir else f"TAU24_PATH={root.parent}"
            raise DatasetError(f"{root} holds no meta.csv, but its parent folder does: set {way}")
        raise DatasetError(f"{root} holds no meta.csv, so it is not a TAU data set: {how}")
    return root


def resolved(config: DataConfig) -> DataConfig:
    """Return `config` with absolute paths, so that a process with another working directory finds the same files.

    The csv file of the training split of `config.subset` per cent is downloaded if it is missing.
    """
    root = dataset_root(config.dataset_dir)
    cache_dir = Path(config.cache_dir).expanduser().resolve()
    table = split_file(root, f"split{config.subset}", config.split_dir, cache_dir / "split_setup")
    ours = config.split_dir or table.parent == Path("split_setup").resolve()
    split_dir = str(table.parent) if ours else None
    return replace(config, dataset_dir=str(root), split_dir=split_dir, cache_dir=str(cache_dir))


def read_split(root: Path, name: str, split_dir: str | None = None, download_dir: Path | None = None) -> pd.DataFrame:
    """Return a table of the clips of the split `name` ("split5" ... "split100" or "test"), one row per clip.

    Columns: filename, scene_label, label (index in SCENES), identifier (recording location), device, segment (name of
    the 10 s recording). `split_file` finds the csv file, or downloads it to `download_dir`. DatasetError is raised for
    an unknown scene, a scene without clips, a clip that is listed twice, and a clip that is not in meta.csv or has
    another scene there.
    """
    path = split_file(root, name, split_dir, download_dir)
    split = _read_tsv(path, ("filename", "scene_label"))
    meta = _read_tsv(root / "meta.csv", ("filename", "scene_label", "identifier", "source_label"))
    twice = split.filename[split.filename.duplicated()]
    if len(twice):
        raise DatasetError(f"{path}: {twice.iloc[0]} is listed twice; expected each clip once: remove one of the lines")
    unknown = sorted(set(split.scene_label) - set(SCENES))
    if unknown:
        raise DatasetError(f"{path}: unknown scene {unknown[0]!r}; expected one of {', '.join(SCENES)}: correct it")
    clips = split.merge(meta.drop_duplicates("filename"), on="filename", how="left", suffixes=("", "_meta"))
    missing = clips.filename[clips.identifier.isna()]
    if len(missing):
        raise DatasetError(
            f"{path} names {len(missing)} clip(s) that meta.csv does not list, first {missing.iloc[0]}: restore "
            f"{root / 'meta.csv'}, or use the split csv files of this data set"
        )
    disagree = clips[clips.scene_label != clips.scene_label_meta]
    if len(disagree):
        row = disagree.iloc[0]
        raise DatasetError(
            f"{path}: the scene of {row.filename} is {row.scene_label}, but {row.scene_label_meta} in meta.csv; "
            "expected the same scene: restore the file that is wrong"
        )
    empty = sorted(set(SCENES) - set(clips.scene_label))
    if empty:
        raise DatasetError(
            f"{path}: no clip of scene {', '.join(empty)}; expected clips of all ten scenes: use a complete split"
        )
    clips["label"] = clips.scene_label.map({scene: i for i, scene in enumerate(SCENES)})
    clips["segment"] = [_segment(f) for f in clips.filename]
    clips = clips.rename(columns={"source_label": "device"})
    return clips.loc[:, ["filename", "scene_label", "label", "identifier", "device", "segment"]]


def count_clips(root: Path) -> int:
    """Return the number of clips that the meta.csv of the data set in `root` lists."""
    with (root / "meta.csv").open("rb") as stream:
        return max(0, sum(1 for line in stream if line.strip()) - 1)


def read_evaluation(root: Path) -> tuple[Path, list[str]]:
    """Return the folder of the unlabelled evaluation set, and the file names of its clips relative to this folder.

    The evaluation set is expected next to the development set `root`. If it is missing, DatasetError is raised.
    """
    folder = root.parent / EVALUATION_DIR
    table = folder / "evaluation_setup" / "fold1_test.csv"
    if not table.is_file():
        raise DatasetError(
            f"no evaluation set: {table} is missing; expected the TAU 2024 Mobile evaluation set next to {root}: "
            "unpack it there"
        )
    names = list(_read_tsv(table, ("filename",)).filename)
    if wrong := [name for name in names if not is_relative_path(name)]:
        raise DatasetError(
            f"{table}: filename {wrong[0]!r}; expected a path below {folder}, such as audio/0.wav: correct the file"
        )
    return folder, names


def split_file(root: Path, name: str, split_dir: str | None = None, download_dir: Path | None = None) -> Path:
    """Return the absolute path of the split csv file `<name>.csv`; download it if it is missing.

    With `split_dir`, only this folder is searched and nothing is downloaded. Without, the folders are
    `root`/split_setup, `root`, ./split_setup and `download_dir`; a missing file is downloaded to `download_dir`, unless
    this is None. DatasetError is raised if the file is missing and is not downloaded.
    """
    folders = [Path(split_dir)] if split_dir else [root / "split_setup", root, Path("split_setup")]
    if download_dir and not split_dir:
        folders.append(download_dir)
    for folder in folders:
        if (folder / f"{name}.csv").is_file():
            return (folder / f"{name}.csv").resolve()
    places = ", ".join(str(f) for f in folders)
    problem = f"{name}.csv is in none of {places}"
    if split_dir or not download_dir:
        raise DatasetError(f"{problem}; download {SPLIT_URL}{name}.csv and put it into {folders[0]}")
    target = download_dir / f"{name}.csv"
    try:
        make_folder(download_dir)
        with urllib.request.urlopen(f"{SPLIT_URL}{name}.csv", timeout=20) as response:  # always https (bandit B310)
            replace_bytes(target, response.read())
    except (urllib.error.URLError, OSError) as error:
        raise DatasetError(
            f"{problem} and could not be downloaded ({error}); "
            f"fetch {SPLIT_URL}{name}.csv yourself and put it into {root / 'split_setup'}"
        ) from error
    return target


def _read_tsv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first columns as an index
            raise ValueError("rows have more fields than the header")
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise DatasetError(f"cannot read {path} ({cause}); expected a tab-separated csv file: restore it") from error
    absent = [c for c in columns if c not in table.columns]
    if absent:
        raise DatasetError(
            f"{path} has no column {absent[0]!r}; expected tab-separated columns {', '.join(columns)}: restore the file"
        )
    return table


def _segment(filename: str) -> str:
    """Return the name of the 10 s recording from which a clip was cut: `filename` without folder, chunk and device."""
    match = re.fullmatch(r"audio/([^/]+)-[^-/]+-[^-/]+\.wav", filename)
    if not match or not is_relative_path(filename):  # no path that leads elsewhere, no control characters
        raise DatasetError(
            f"filename {filename!r}: expected audio/<scene>-<city>-<location>-<segment>-<chunk>-<device>.wav; correct "
            "the name in the split's csv file, in meta.csv and on disk"
        )
    return match[1]


def read_clip(path: Path) -> np.ndarray:
    """Return the samples of the 1 s clip at `path` as float32 `[44100]`; raise DatasetError if the file is broken.

    Only WAV files are read. soundfile would recognise 20 other formats in a file of this name, such as FLAC, MP3 and
    Matlab's, whose decoders need not see what comes with a data set.
    """
    remedy = "restore the file, or set data.skip_broken=true to leave out broken clips"
    try:
        with path.open("rb") as stream:
            head = stream.read(12)
        if head[:4] not in _WAV or head[8:] != b"WAVE":
            raise DatasetError(f"{path} cannot be read as WAV (it does not begin with RIFF and WAVE): {remedy}")
        with soundfile.SoundFile(path) as file:
            if file.channels != 1 or file.samplerate != SOURCE_RATE:
                found = f"{file.channels} channel(s) at {file.samplerate} Hz"
                raise DatasetError(f"{path} has {found}; expected mono at {SOURCE_RATE} Hz: {remedy}")
            # soundfile takes memory for all samples that a header declares, which may be billions
            samples = file.read(min(file.frames, CLIP_SAMPLES), dtype="float32", always_2d=True)
            n_samples = file.frames if file.frames > CLIP_SAMPLES else len(samples)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as WAV ({error}): {remedy}") from error
    if n_samples != CLIP_SAMPLES:
        raise DatasetError(f"{path} has {n_samples} samples; expected {CLIP_SAMPLES} (1 s): {remedy}")
    if not np.isfinite(samples).all():
        raise DatasetError(f"{path} has samples that are not finite (NaN or infinite): {remedy}")
    if (peak := np.abs(samples).max()) > LOUDEST:
        raise DatasetError(
            f"{path} has samples of up to {peak:g}, perhaps in the scale of integers; expected a full scale of 1: "
            "divide the samples (by 32768 for int16), or set data.skip_broken=true to leave out broken clips"
        )
    return samples[:, 0]
