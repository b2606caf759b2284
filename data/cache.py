"""Waveform cache: each clip is decoded and resampled once; all trials memory-map the result.

    cache = open_cache(root, filenames, sample_rate=32000, cache_dir=Path("runs/cache"))
    waveforms = cache.batch(cache.rows(filenames))          # float32 [B, S]

Samples are int16 with one scale per clip (with a fixed scale, quiet clips would consist of rounding noise). The key of
a cache is a hash of the files' content. A lock is held only to hash files and to build, and a build ends with a rename.
So two processes may open the same cache at once, a killed build leaves nothing behind, and readers of an existing cache
never wait.
"""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from tqdm import tqdm

from data.files import locked, make_folder, remove_temporary, replace_folder, replace_text
from data.tau import DatasetError

SOURCE_RATE = 44_100  # Hz
CLIP_SAMPLES = 44_100  # 1 s
FORMAT = 1
LOCK = "waveforms.lock"  # in the cache folder
_CHUNK = 32  # number of clips that a worker decodes and resamples together
_WINDOW = 256  # number of chunks in progress at once
_NAMED = 5  # number of missing files that an error message lists
_STATS = 1024  # number of files per `stat` task of a thread


class WaveformCache:
    """Memory-mapped waveforms `[N, S]` in the order of `filenames`; `skipped` maps skipped files to the reason."""

    def __init__(self, folder: Path, content: str):
        manifest = json.loads((folder / "manifest.json").read_text())
        self.folder = folder
        self.content = content  # hash of names and bytes of all clips (skipped clips included) before resampling
        self.sample_rate: int = manifest["sample_rate"]
        self.filenames: list[str] = manifest["filenames"]
        self.skipped: dict[str, str] = manifest["skipped"]
        self.key: str = manifest["key"]
        self._scales = np.load(folder / "scales.npy")
        self._samples = np.load(folder / "waveforms.npy", mmap_mode="r")
        self._row = {name: row for row, name in enumerate(self.filenames)}

    def rows(self, filenames: Sequence[str]) -> np.ndarray:
        """Return the row numbers of `filenames`; KeyError if one is not in the cache."""
        return np.array([self._row[name] for name in filenames], dtype=np.int64)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return waveforms `[B, S]` float32 in [-1, 1] on `device`; the int16 samples are copied and scaled there."""
        samples = torch.from_numpy(self._samples[rows]).to(device)
        return samples.float() * torch.from_numpy(self._scales[rows]).to(device)[:, None]


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

    DatasetError names a broken clip (not mono 44.1 kHz, not 1 s, or unreadable). With `skip_broken` such clips are left
    out and listed in `skipped`. Missing files mean an incomplete data set and always raise DatasetError. `num_workers`
    threads decode (None: one per core).

    `content` is the `WaveformCache.content` that another process has just computed for these clips (the driver of a
    study, for its actors). If a cache with this content exists, it is opened without reading the files. Otherwise
    DatasetError is raised if the files on this machine have other content.
    """
    files = sorted(filenames)
    if content is not None:
        folder = _folder(cache_dir, content, sample_rate, skip_broken)
        if folder.is_dir():
            cache = WaveformCache(folder, content)
            if sorted([*cache.filenames, *cache.skipped]) != files:
                raise DatasetError(
                    f"the split's csv file lists {len(files)} clips, but the waveform cache {folder} was built for "
                    "other clips: restore the csv file, or start a new study"
                )
            return cache
    workers = max(1, os.cpu_count() or 1 if num_workers is None else num_workers)
    found = _content(root, files, cache_dir, progress, workers)
    if content not in (None, found):
        raise DatasetError(
            f"the clips in {root} have another content (hash {found[:16]}) than at the study's start or resume (hash "
            f"{content[:16]}): the data have changed or differ between machines; restore them, or start a new study"
        )
    folder = _folder(cache_dir, found, sample_rate, skip_broken)
    if not folder.is_dir():
        with locked(cache_dir / LOCK):
            remove_temporary(cache_dir, "waveforms-")  # left by killed builds; safe because we hold the lock
            if not folder.is_dir():  # otherwise another process built it while we waited
                key = cache_key(found, sample_rate, skip_broken)
                replace_folder(
                    folder,
                    lambda temporary: _build(temporary, root, files, sample_rate, skip_broken, key, progress, workers),
                )
    return WaveformCache(folder, found)


def cache_key(content: str, sample_rate: int, skip_broken: bool) -> str:
    """Return the key of the cache of clips with the hash `content` at `sample_rate` Hz."""
    return hashlib.sha256(f"{FORMAT} {content} {sample_rate} {skip_broken}".encode()).hexdigest()[:16]


def _folder(cache_dir: Path, content: str, sample_rate: int, skip_broken: bool) -> Path:
    return cache_dir / f"waveforms-{cache_key(content, sample_rate, skip_broken)}"


def _build(
    folder: Path,
    root: Path,
    files: list[str],
    rate: int,
    skip_broken: bool,
    key: str,
    progress: bool,
    workers: int,
) -> None:
    """Write the waveforms, their scales and the manifest into the empty folder `folder`."""
    length = round(CLIP_SAMPLES * rate / SOURCE_RATE)
    samples = np.lib.format.open_memmap(folder / "waveforms.npy", "w+", np.int16, (len(files), length))
    with (folder / "waveforms.npy").open("r+b") as handle:
        try:  # reserve the space now: writing to a memory map on a full disk ends in SIGBUS
            os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
        except OSError as error:
            raise DatasetError(
                f"no space for the waveform cache ({samples.nbytes:,} bytes) in {folder} ({error}): free space, or set "
                "data.cache_dir to another disk"
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

    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(files), desc="decoding", unit="clip", disable=not progress) as bar,
    ):
        for first in range(0, len(chunks), _WINDOW):  # bounds the memory of decoded clips if the disk is slow
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


def read_clip(path: Path) -> np.ndarray:
    """Return the samples `[44100]` float32 of one 1 s clip; DatasetError names the file and its fault."""
    remedy = "restore the file, or set data.skip_broken=true to leave such clips out"
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as WAV ({error}): {remedy}") from error
    if samples.shape[1] != 1 or rate != SOURCE_RATE:
        raise DatasetError(
            f"{path} has {samples.shape[1]} channel(s) at {rate} Hz; expected mono at {SOURCE_RATE} Hz: {remedy}"
        )
    if len(samples) != CLIP_SAMPLES:
        raise DatasetError(f"{path} has {len(samples)} samples; expected {CLIP_SAMPLES} (1 s): {remedy}")
    if not np.isfinite(samples).all():
        raise DatasetError(f"{path} holds samples that are not finite numbers: {remedy}")
    return samples[:, 0]


def _stamp(root: Path, files: Sequence[str], workers: int) -> str:
    """Return a hash of the files' paths, sizes and change times; while it stays the same, `_content` reads no file.

    It includes the inode change time because `cp -p` and `touch -d` can set the modification time, but not this one.
    `workers` threads call `stat` once per file, because network file systems respond slowly. DatasetError for missing
    files.
    """

    def facts_of(names: Sequence[str]) -> list[str | None]:
        return [_facts(root / name) for name in names]

    chunks = [files[i : i + _STATS] for i in range(0, len(files), _STATS)]
    with ThreadPoolExecutor(workers) as pool:
        facts = [fact for found in pool.map(facts_of, chunks) for fact in found]
    missing = [name for name, fact in zip(files, facts, strict=True) if fact is None]
    if missing:
        names = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        raise DatasetError(
            f"{len(missing)} of {len(files)} clips are not in {root}: {names}; complete the data set, or remove their "
            "lines from the split's csv file (data.skip_broken leaves out broken files, not missing ones)"
        )
    digest = hashlib.sha256()
    for name, fact in zip(files, facts, strict=True):
        digest.update(f"{root}\0{name}\0{fact}\0".encode())
    return digest.hexdigest()[:16]


def _facts(path: Path) -> str | None:
    """Return size, modification time and change time of a file as text; None if it does not exist."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}" if stat.S_ISREG(found.st_mode) else None


def _content(root: Path, files: list[str], cache_dir: Path, progress: bool, workers: int) -> str:
    """Return the hash of the files' names and bytes; it is cached in a file named after their `_stamp`."""
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
    """Return the hash in the file `memo`; "" if there is no file or a power loss has left it empty."""
    try:
        text = memo.read_text()
    except FileNotFoundError:
        return ""
    return text if len(text) == hashlib.sha256().digest_size * 2 else ""
