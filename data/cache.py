"""Waveform cache: each clip is decoded and resampled once, and all trials memory-map the resulting file.

    cache = open_cache(root, filenames, sample_rate=32000, cache_dir=Path("runs/cache"))
    waveforms = cache.batch(cache.rows(filenames))          # float32 [B clips, S samples]

`root` is the folder of the data set, and `filenames` are paths of clips relative to it.

Samples are stored as int16 with one scale factor per clip; with a common factor, quiet clips would consist of rounding
noise. The folder of a cache is named after a hash of the clips' names and bytes, the sample rate and `skip_broken`.

Several processes may open the same cache at once. A process locks the cache directory only while it hashes the clips or
builds a cache. A cache is built in a temporary folder that is renamed at the end, so a killed build leaves no partial
cache.
"""

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
import torchaudio
from tqdm import tqdm

from data.config.dataset import SOURCE_RATE
from data.files import locked, make_folder, read_json, remove_temporary, replace_folder, replace_text
from data.tau import CLIP_SAMPLES, DatasetError, read_clip
from data.untrusted import printable

FORMAT = 1
_FILES = ("manifest.json", "scales.npy", "waveforms.npy")
# errors of json and of numpy, which reads headers with `tokenize`, for damaged files
_DAMAGE = (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, EOFError, TokenError)
LOCK = "waveforms.lock"  # name of the lock file in `cache_dir`
_CHUNK = 32  # number of clips that a thread decodes and resamples together
_WINDOW = 256  # number of chunks submitted to the threads at once
_NAMED = 5  # number of missing files that an error message names
_LOG = logging.getLogger(__name__)
_STATS = 1024  # number of files for which a thread calls `stat` in one task


class WaveformCache:
    """Memory-mapped waveforms `[N, S]` of a cache folder, one row for each name in `filenames`.

    `skipped` maps the name of each broken clip that was left out to an error message that describes the fault. The
    constructor raises DatasetError, before it takes memory, if the files are damaged or do not fit each other.
    """

    def __init__(self, folder: Path, content: str):
        self.folder, self.content = folder, content  # content: hash of names and bytes of all clips, also skipped ones
        try:
            if not all((folder / name).is_file() for name in _FILES):  # a pipe would never be read to its end
                raise ValueError(f"one of {', '.join(_FILES)} is missing or no file")
            manifest = read_json(folder / "manifest.json")
            self.sample_rate: int = manifest["sample_rate"]
            self.filenames: list[str] = manifest["filenames"]
            self.skipped: dict[str, str] = manifest["skipped"]
            self.key: str = manifest["key"]
            self._row = {name: row for row, name in enumerate(self.filenames)}
            n_clips = len(self.filenames) + len(self.skipped)
            length = round(CLIP_SAMPLES * self.sample_rate / SOURCE_RATE)
            # memory-mapped: numpy raises ValueError if the header declares more than the file has, or Python objects
            scales = np.lib.format.open_memmap(folder / "scales.npy", mode="r")
            self._samples = np.lib.format.open_memmap(folder / "waveforms.npy", mode="r")
            found = [(x.dtype, x.shape) for x in (scales, self._samples)]
            expected = [(np.dtype(np.float32), (n_clips,)), (np.dtype(np.int16), (n_clips, length))]
            if found != expected:
                raise ValueError(f"scales.npy and waveforms.npy have the types and shapes {found}; expected {expected}")
            self._scales, self.shape = np.array(scales), self._samples.shape
            if not ((self._scales > 0) & (self._scales <= 1)).all():
                raise ValueError("scales.npy has a factor that is not above 0 and at most 1")
            if len(self._row) < len(self.filenames) or not all(isinstance(name, str) for name in self._row):
                raise ValueError("manifest.json lists a clip twice, or a name that is no text")
        except _DAMAGE as error:
            raise DatasetError(
                f"the waveform cache {folder} is damaged ({error}); expected the files that asc-tune wrote: delete the "
                "folder, then it is made again from the WAV files"
            ) from error

    def rows(self, filenames: Sequence[str]) -> np.ndarray:
        """Return the row number of each clip in `filenames`; raise KeyError if a clip is not in the cache."""
        return np.array([self._row[name] for name in filenames], dtype=np.int64)

    def stored(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the int16 samples `[B, S]` of the rows `rows`, and the factors `[B]` that scale them to [-1, 1]."""
        return torch.from_numpy(self._samples[rows]), torch.from_numpy(self._scales[rows])

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the waveforms with the row numbers `rows` as float32 `[B, S]` in [-1, 1] on `device`.

        The int16 samples are copied to `device` before they are scaled, which halves the transfer.
        """
        samples, scales = self.stored(rows)
        return samples.to(device).float() * scales.to(device)[:, None]


def open_cache(
    root: Path,
    filenames: Sequence[str],
    sample_rate: int,
    cache_dir: Path,
    skip_broken: bool = False,
    progress: bool = True,
    num_workers: int | None = None,
    content: str | None = None,
) -> WaveformCache:
    """Return the cache of `filenames` (relative to `root`) at `sample_rate` Hz; build it if it does not exist.

    A broken clip (not mono 44.1 kHz, not 1 s, or unreadable) raises DatasetError. With `skip_broken`, broken clips are
    left out and listed in `WaveformCache.skipped`. A missing file always raises DatasetError. `progress` shows progress
    bars. `num_workers` is the number of threads that read and decode (None: one per core).

    `content` is the expected hash of the clips' names and bytes; None accepts any clips. The driver of a study computes
    this hash once (`WaveformCache.content`) and passes it to its actors. If a cache with this hash exists, it is opened
    without reading the clips. Otherwise the clips are hashed; if the hash is not `content`, DatasetError is raised.
    """
    files = sorted(filenames)
    if content is not None:
        folder = _folder(cache_dir, content, sample_rate, skip_broken)
        if cache := _existing(folder, content):
            if sorted([*cache.filenames, *cache.skipped]) != files:
                raise DatasetError(
                    f"split<data.subset>.csv, the csv file of the training split, lists {len(files)} clips; expected "
                    f"the clips with which this study was started, which are in the waveform cache {folder}: restore "
                    "the csv file, or start a new study"
                )
            return cache
    workers = max(1, os.cpu_count() or 1 if num_workers is None else num_workers)
    found = _content(root, files, cache_dir, progress, workers)
    if content not in (None, found):
        raise DatasetError(
            f"the content hash of the clips in {root} is {found[:16]}; expected {content[:16]}, as when the study was "
            "started or resumed: the WAV files were changed or differ between machines; restore the files, or start a "
            "new study"
        )
    folder = _folder(cache_dir, found, sample_rate, skip_broken)
    if cache := _existing(folder, found, files):
        return cache
    with locked(cache_dir / LOCK):
        remove_temporary(cache_dir, "waveforms-")  # left by killed builds: only the lock holder builds
        if cache := _existing(folder, found, files):  # another process built it while we waited
            return cache
        key = cache_key(found, sample_rate, skip_broken)
        replace_folder(folder, lambda new: _build(new, root, files, sample_rate, skip_broken, key, progress, workers))
    return WaveformCache(folder, found)


def _existing(folder: Path, content: str, files: list[str] | None = None) -> WaveformCache | None:
    """Return the cache in `folder`; None if it must be built, because it does not exist or is damaged.

    `content` is the hash of the clips' names and bytes, of which the name of `folder` was made (`_folder`). `files` are
    these names, sorted; None: they are not compared.
    """
    if not folder.is_dir():
        return None
    try:
        cache = WaveformCache(folder, content)
        if files not in (None, sorted([*cache.filenames, *cache.skipped])):
            raise DatasetError(f"the waveform cache {folder} is damaged (manifest.json lists other clips)")
        return cache
    except DatasetError as error:
        _LOG.warning("%s; it is made again now", printable(str(error)))
        return None


def cache_key(content: str, sample_rate: int, skip_broken: bool) -> str:
    """Return the 16 hex digits in the folder name of the cache with these settings.

    `content` is the hash of the clips' names and bytes, and `skip_broken` is True if broken clips are left out.
    """
    return hashlib.sha256(f"{FORMAT} {content} {sample_rate} {skip_broken}".encode()).hexdigest()[:16]


def _folder(cache_dir: Path, content: str, sample_rate: int, skip_broken: bool) -> Path:
    return cache_dir / f"waveforms-{cache_key(content, sample_rate, skip_broken)}"


def _build(
    folder: Path, root: Path, files: list[str], rate: int, skip_broken: bool, key: str, progress: bool, workers: int
) -> None:
    """Decode the clips `files` below `root`, and write the files of a cache into the empty folder `folder`.

    The cache has the sample rate `rate` in Hz, and is named after `key` (from `cache_key`). `workers` is the number of
    threads. A broken clip raises DatasetError, or is left out if `skip_broken` is set. `progress` shows a progress bar.
    """
    length = round(CLIP_SAMPLES * rate / SOURCE_RATE)
    samples = np.lib.format.open_memmap(folder / "waveforms.npy", "w+", np.int16, (len(files), length))
    with (folder / "waveforms.npy").open("r+b") as handle:
        try:  # reserve the space now: a write to a memory map on a full disk kills the process (SIGBUS)
            os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
        except OSError as error:
            raise DatasetError(
                f"cannot reserve {samples.nbytes:,} bytes for the waveform cache in {folder} ({error}): free disk "
                "space, or set data.cache_dir to a folder on another disk"
            ) from error
    scales = np.ones(len(files), np.float32)
    kept, skipped = [], {}
    resample = torchaudio.transforms.Resample(SOURCE_RATE, rate)
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]

    def load(chunk: list[str]) -> tuple[list[str], dict[str, str], np.ndarray, np.ndarray]:
        good, bad, waves = [], {}, []
        for name in chunk:
            try:
                waves.append(read_clip(root / name))
                good.append(name)
            except DatasetError as error:
                if not skip_broken:
                    raise
                bad[name] = str(error)
        stack = torch.from_numpy(np.stack(waves)) if waves else torch.zeros(0, CLIP_SAMPLES)
        resampled = resample(stack)[:, :length]
        peaks = resampled.abs().amax(dim=1) if good else torch.zeros(0)
        scale = torch.where(peaks > 0, peaks / 32767, torch.ones(()) / 32767)
        return good, bad, (resampled / scale[:, None]).round().to(torch.int16).numpy(), scale.numpy()

    hidden = not progress
    with ThreadPoolExecutor(workers) as pool, tqdm(None, "decoding", len(files), unit="clip", disable=hidden) as bar:
        for first in range(0, len(chunks), _WINDOW):  # limits the decoded clips that wait in memory for a slow disk
            for good, bad, waves, scale in pool.map(load, chunks[first : first + _WINDOW]):
                rows = slice(len(kept), len(kept) + len(good))
                samples[rows], scales[rows] = waves, scale
                kept += good
                skipped |= bad
                bar.update(len(good) + len(bad))
    samples.flush()
    np.save(folder / "scales.npy", scales)
    manifest = {"format": FORMAT, "key": key, "sample_rate": rate, "filenames": kept, "skipped": skipped}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _stamp(root: Path, files: Sequence[str], workers: int) -> str:
    """Return one hash of the path, size, modification time and inode change time of all `files` below `root`.

    A changed file changes this hash, although no file is read. The inode change time is included because `cp -p` and
    `touch -d` can set the modification time, but not the inode change time. `stat` runs in `workers` threads, because
    network file systems respond slowly. A missing file raises DatasetError.
    """

    def facts_of(names: Sequence[str]) -> list[str | None]:
        return [_facts(root / name) for name in names]

    chunks = [files[i : i + _STATS] for i in range(0, len(files), _STATS)]
    with ThreadPoolExecutor(workers) as pool:
        facts = [fact for found in pool.map(facts_of, chunks) for fact in found]
    if missing := [name for name, fact in zip(files, facts, strict=True) if fact is None]:
        names = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        raise DatasetError(
            f"{len(missing)} of {len(files)} clips are not in {root}: {names}; add the files, or remove their lines "
            "from the split's csv file (data.skip_broken leaves out broken files, not missing ones)"
        )
    digest = hashlib.sha256()
    for name, fact in zip(files, facts, strict=True):
        digest.update(f"{root}\0{name}\0{fact}\0".encode())
    return digest.hexdigest()[:16]


def _facts(path: Path) -> str | None:
    """Return size, modification time and inode change time of a file as text; None if `path` is not a regular file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}" if stat.S_ISREG(found.st_mode) else None


def _content(root: Path, files: list[str], cache_dir: Path, progress: bool, workers: int) -> str:
    """Return the hash of the names and bytes of the clips `files` below `root`.

    The hash is computed once, by `workers` threads, and stored in a file in `cache_dir`. The name of this file contains
    a hash of the sizes and times of the clips, so a changed clip leads to a new computation. `progress` shows a
    progress bar.
    """
    memo = cache_dir / f"waveforms-{_stamp(root, files, workers)}.digest"
    if digest := _read_digest(memo):
        return digest
    make_folder(cache_dir)
    with locked(cache_dir / LOCK):
        if digest := _read_digest(memo):  # another process hashed the files while we waited
            return digest
        with ThreadPoolExecutor(workers) as pool:
            hashes = pool.map(lambda name: hashlib.sha256((root / name).read_bytes()).digest(), files)
            total = hashlib.sha256()
            for name, content in zip(files, tqdm(hashes, "hashing", len(files), disable=not progress), strict=True):
                total.update(name.encode() + b"\0" + content)
        replace_text(memo, total.hexdigest())
        return total.hexdigest()


def _read_digest(memo: Path) -> str:
    """Return the hash that `_content` wrote to the file `memo`; "" if the file is missing or damaged."""
    text = memo.read_text(errors="replace") if memo.is_file() else ""
    return text if re.fullmatch("[0-9a-f]{64}", text) else ""
