"""The embedded data set: TAU Urban Acoustic Scenes 2022 Mobile in its files, invented in its sound.

    python -m data.synthetic DEST [--train 2000 --test 600 --eval 0 --seed 0]

No recording is involved. A scene is two textures over a bed of noise, and scenes differ less in how loud a
band is than in what happens in it: rising or falling chirps, single or paired knocks, slow or quick swells. A
location shifts and blurs its scene and lets another leak in; a device colours what is left. Figures on it say
nothing about real scenes: it is there so that every command can run, and differ, on a machine without TAU.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count, islice, pairwise
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import lfilter
from tqdm import tqdm

FORMAT_VERSION = 1  # raise it with every change of the sound or the layout
MANIFEST = "synthetic.json"
EVALUATION_FOLDER = "TAU-urban-acoustic-scenes-2024-mobile-evaluation"

RATE_HZ = 44_100
CHUNKS = 10  # of 1 s in a segment
SAMPLES = CHUNKS * RATE_HZ  # S below
KNOT_SAMPLES = 441  # slow envelopes are drawn this coarsely, then interpolated
EQ_HZ = (60, 120, 240, 480, 1000, 2000, 4000, 8000, 16_000)  # where responses are given
SEGMENTS_PER_LOCATION = 2
SPLITS_PERCENT = (5, 10, 25, 50, 100)
PARTS = ("train", "test", "eval")
CITIES = ("barcelona", "helsinki", "lisbon", "london", "lyon", "milan", "prague", "vienna")

# Train: who records a segment side by side, in turn; half of the takes are device a's.
TRAIN_TURNS = (("a", "b"), ("s1",), ("a",), ("a", "c"), ("s2",), ("a", "s3"), ("a",))
# Test: one file a chunk, devices in turn, so that even few clips cross every scene with every device.
TEST_TURNS = ("a", "s4", "s1", "b", "s5", "s2", "c", "s6", "s3")

# --- What is recorded: segments at a location, and the files cut from each ---


@dataclass(frozen=True)
class Take:
    """One file: a 1 s chunk of a segment as one device records it."""

    filename: str
    chunk: int
    device: str


@dataclass(frozen=True)
class Segment:
    """10 s at one location. Its ids depend on no size, so a larger set contains the smaller one."""

    scene: str
    city: str
    location: int
    number: int
    takes: tuple[Take, ...]


def plan(part: str, n_clips: int) -> list[Segment]:
    """The segments of one part, equally many clips a scene; no location is in two parts."""
    segments = []
    for scene_index, scene in enumerate(SCENES):
        missing = n_clips // len(SCENES) + (scene_index < n_clips % len(SCENES))
        for index in count():
            if missing == 0:
                break
            visit, nth = divmod(index, SEGMENTS_PER_LOCATION)
            round_ = visit * len(PARTS) + PARTS.index(part)
            location = round_ * len(SCENES) + scene_index
            number = location * SEGMENTS_PER_LOCATION + nth
            city = CITIES[(round_ + scene_index) % len(CITIES)]
            takes = tuple(
                Take(f"audio/{scene}-{city}-{location}-{number}-{chunk}-{device}.wav", chunk, device)
                for chunk, device in islice(_turn(part, scene_index + index), missing)
            )
            segments.append(Segment(scene, city, location, number, takes))
            missing -= len(takes)
    return segments


def _turn(part: str, turn: int) -> Iterator[tuple[int, str]]:
    """(chunk, device) of the files of one segment."""
    if part == "train":
        return ((chunk, d) for d in TRAIN_TURNS[turn % len(TRAIN_TURNS)] for chunk in range(CHUNKS))
    return ((chunk, TEST_TURNS[(turn * CHUNKS + chunk) % len(TEST_TURNS)]) for chunk in range(CHUNKS))


def nested_splits(segments: list[Segment], seed: int) -> dict[int, list[Segment]]:
    """Percent -> segments, each split inside the next: whole segments, at least one of every scene."""
    splits: dict[int, list[Segment]] = {percent: [] for percent in SPLITS_PERCENT}
    for scene_index, scene in enumerate(SCENES):
        own = [s for s in segments if s.scene == scene]
        order = [own[i] for i in _generator("splits", seed, scene_index).permutation(len(own))]
        clips = np.cumsum([len(s.takes) for s in order])
        for percent in SPLITS_PERCENT:
            nearest = int(np.argmin(np.abs(clips - clips[-1] * percent / 100)))
            splits[percent] += order[: nearest + 1]
    return splits


# --- What it sounds like: places, textures, scenes, devices ---


def _generator(purpose: str, *ids: int) -> Generator:
    """A stream for each purpose and id, so that no sample depends on which process drew first."""
    return default_rng([*purpose.encode(), 0, *(i + 1 for i in ids)])


@cache
def _octaves() -> np.ndarray:
    """The FFT's bins [S // 2 + 1] in octaves above 1 kHz."""
    return np.log2(np.maximum(np.arange(SAMPLES // 2 + 1) / CHUNKS, 20) / 1000).astype(np.float32)


def _gain(points_hz: Iterable[float], points_db: Iterable[float]) -> np.ndarray:
    """A magnitude response [S // 2 + 1] through the points, straight in dB over octaves."""
    x = np.log2(np.fromiter(points_hz, float) / 1000)
    return (10 ** (np.interp(_octaves(), x, np.fromiter(points_db, float)) / 20)).astype(np.float32)


@cache
def _device_gain(device: str) -> np.ndarray:
    return _gain(EQ_HZ, DEVICES[device].response_db)


def _wave(spectrum: np.ndarray) -> NDArray[np.float32]:
    return np.asarray(fft.irfft(spectrum.astype(np.complex64), SAMPLES))


def _unit(wave: np.ndarray) -> np.ndarray:
    return wave / (np.sqrt(np.mean(wave**2)) + 1e-9)


def _noise(rng: Generator, gain: np.ndarray) -> np.ndarray:
    real, imaginary = rng.standard_normal((2, len(gain)), dtype=np.float32)
    return _unit(_wave((real + 1j * imaginary) * gain))


def _band_noise(rng: Generator, low_hz: float, high_hz: float) -> np.ndarray:
    return _noise(rng, _gain((low_hz / 2, low_hz, high_hz, high_hz * 2), (-40, 0, 0, -40)))


def _onsets(rng: Generator, rate_hz: float, jitter: float) -> np.ndarray:
    """Starts of events in samples: jitter 0 is a clock, jitter 1 a Poisson process of the same rate."""
    gaps = (1 - jitter) + jitter * rng.exponential(size=int(2 * CHUNKS * rate_hz) + 20)
    starts = (np.cumsum(gaps) - gaps[0] * rng.random()) / rate_hz * RATE_HZ
    return starts[starts < SAMPLES].astype(int)


def _swell(rng: Generator, rate_hz: float, depth: float) -> np.ndarray:
    """A modulator between 1 - depth and 1 whose rate wanders by a tenth, [S]."""
    knots = np.arange(0, SAMPLES + KNOT_SAMPLES, KNOT_SAMPLES)
    cycle = rng.random() + np.cumsum(rate_hz * rng.normal(1, 0.1, len(knots))) * KNOT_SAMPLES / RATE_HZ
    return np.interp(np.arange(SAMPLES), knots, 1 - depth * (0.5 + 0.5 * np.cos(2 * np.pi * cycle)))


@dataclass(frozen=True)
class Place:
    """What a location does to its scene."""

    pace: float  # factor of every rate
    pitch: float  # factor of every frequency
    tilt_db: float  # of the bed, an octave
    layers_db: tuple[float, float]  # of the scene's textures over the bed
    guest: str  # the scene that leaks in
    guest_db: float
    eq: np.ndarray  # [S // 2 + 1]

    @staticmethod
    def of(scene: str, location: int, seed: int) -> Place:
        rng = _generator("place", seed, location)
        first_db, second_db = rng.uniform(-5.5, 1.5, size=2)
        return Place(
            pace=2 ** rng.uniform(-0.2, 0.2),
            pitch=2 ** rng.uniform(-0.3, 0.3),
            tilt_db=rng.uniform(-5, -3),
            layers_db=(first_db, second_db),
            guest=str(rng.choice([s for s in SCENES if s != scene])),
            guest_db=rng.uniform(-15, -2),
            eq=_gain(EQ_HZ, rng.normal(0, 2.3, size=len(EQ_HZ))),
        )


Texture = Callable[[Generator, Place], np.ndarray]  # -> wave [S] of RMS 1


def tones(
    rng: Generator, place: Place, *, rate_hz: float, jitter: float, seconds: float, octaves: float,
    low_hz: float, high_hz: float,
) -> np.ndarray:  # fmt: skip
    """Short tones that glide by `octaves` about a drawn centre: the mean spectrum hides which way."""
    out = np.zeros(SAMPLES)
    samples = int(seconds / place.pace * RATE_HZ)
    glide, window = octaves * np.linspace(-0.5, 0.5, samples), np.sqrt(np.hanning(samples))
    for start in _onsets(rng, rate_hz * place.pace, jitter):
        centre_hz = place.pitch * np.exp(rng.uniform(np.log(low_hz), np.log(high_hz)))
        phase = 2 * np.pi * np.cumsum(centre_hz * 2**glide) / RATE_HZ
        event = rng.uniform(0.6, 1.0) * window * np.sin(phase)
        out[start : start + samples] += event[: SAMPLES - start]
    return _unit(out)


def knocks(
    rng: Generator, place: Place, *, rate_hz: float, jitter: float, decay_s: float, pair_s: float = 0.0
) -> np.ndarray:
    """Decaying noise bursts: steps, clatter; with `pair_s` each comes twice, as wheels on a rail joint."""
    starts = _onsets(rng, rate_hz * place.pace, jitter)
    if pair_s:
        starts = np.concatenate([starts, starts + int(pair_s / place.pace * RATE_HZ)])
    hits = np.zeros(SAMPLES)
    hits[starts[starts < SAMPLES]] = 1.0
    envelope = lfilter([1.0], [1.0, -np.exp(-1 / (decay_s * RATE_HZ))], hits)
    return _unit(_band_noise(rng, 300 * place.pitch, 5000 * place.pitch) * envelope)


def murmur(
    rng: Generator, place: Place, *, rate_hz: float, edges_hz: tuple[float, ...], together: bool = False
) -> np.ndarray:
    """Noise bands that swell together (an engine's shake) or each on its own (voices, wind)."""
    shared = _swell(rng, rate_hz * place.pace, 0.95)
    out = np.zeros(SAMPLES)
    for low_hz, high_hz in pairwise(edges_hz):
        swell = shared if together else _swell(rng, rate_hz * place.pace, 0.95)
        out += _band_noise(rng, low_hz * place.pitch, high_hz * place.pitch) * swell
    return _unit(out)


def hum(rng: Generator, place: Place, *, f0_hz: float, partials: int, octaves: float, rate_hz: float) -> np.ndarray:
    """Harmonics whose pitch sways by `octaves`, `rate_hz` times a second: engines, motors."""
    sway = octaves * (_swell(rng, rate_hz * place.pace, 1.0) - 0.5)
    cycle = np.cumsum(f0_hz * place.pitch * 2**sway) / RATE_HZ
    k = np.arange(1, partials + 1)[:, None]
    angle = 2 * np.pi * (k * np.arange(4096) / 4096 + rng.random((partials, 1)))  # [partials, one period]
    period = np.sum(rng.uniform(0.5, 1, (partials, 1)) * np.sin(angle) / np.sqrt(k), axis=0)
    return _unit(period[(cycle * 4096).astype(np.int64) % 4096])


_voices = partial(murmur, rate_hz=4, edges_hz=(250, 500, 1000, 2000, 4000))
_wind = partial(murmur, rate_hz=2, edges_hz=(100, 400, 1600))
_calls = partial(tones, rate_hz=4, jitter=0.5, seconds=0.22, low_hz=1500, high_hz=4500)

# Scene -> (hump of the bed in Hz, its two textures). Many share bands and differ only in time.
SCENES: dict[str, tuple[float, tuple[Texture, Texture]]] = {
    "airport": (1400, (partial(_calls, octaves=0.0), _voices)),
    "bus": (150, (
        partial(hum, f0_hz=70, partials=25, octaves=0.05, rate_hz=1),
        partial(murmur, rate_hz=9, edges_hz=(100, 1000), together=True),
    )),
    "metro": (350, (
        partial(knocks, rate_hz=2.5, jitter=0.1, decay_s=0.025, pair_s=0.13),
        partial(hum, f0_hz=280, partials=8, octaves=0.6, rate_hz=1.5),
    )),
    "metro_station": (3000, (
        partial(tones, rate_hz=6, jitter=0, seconds=0.1, octaves=0, low_hz=1800, high_hz=2600),
        _voices,
    )),
    "park": (6000, (partial(_calls, octaves=1.0), _wind)),
    "public_square": (900, (partial(knocks, rate_hz=9, jitter=1, decay_s=0.015), _voices)),
    "shopping_mall": (600, (
        partial(tones, rate_hz=2.5, jitter=0, seconds=0.4, octaves=0, low_hz=300, high_hz=1200),
        _voices,
    )),
    "street_pedestrian": (2000, (partial(knocks, rate_hz=4, jitter=0, decay_s=0.04), _voices)),
    "street_traffic": (230, (
        partial(hum, f0_hz=120, partials=20, octaves=0.8, rate_hz=1.5),
        partial(_wind, together=True),
    )),
    "tram": (4200, (
        partial(_calls, octaves=-1.0),
        partial(hum, f0_hz=280, partials=8, octaves=0.05, rate_hz=1.5),
    )),
}  # fmt: skip


@dataclass(frozen=True)
class Device:
    """A colouring: a response in dB at EQ_HZ, a soft clipper's drive, a noise floor."""

    response_db: tuple[float, ...]
    drive: float = 0.0
    floor_dbfs: float = -75.0


DEVICES = {
    "a": Device((0, 0, 0, 0, 0, 0, 0, 0, 0)),
    "b": Device((-10, -6, -2, 0, 0, 1, 3, 2, -6), floor_dbfs=-68),
    "c": Device((-6, -2, 0, 1, 0, -2, 0, 3, -2), floor_dbfs=-66),
    "s1": Device((-14, -9, -3, 2, 3, 0, -2, -6, -14), floor_dbfs=-64),
    "s2": Device((-4, 2, 5, 1, -4, -3, 3, 4, -8), drive=10, floor_dbfs=-64),
    "s3": Device((-16, -8, -6, -2, 2, 6, 1, -5, -10), drive=5, floor_dbfs=-62),
    # Unseen in training, and further off than the others: a thin phone, a muffled pocket, an overdriven one.
    "s4": Device((-30, -22, -12, 0, 3, 4, 0, -14, -26), drive=10, floor_dbfs=-62),
    "s5": Device((8, 6, 3, 0, -3, -6, -9, -12, -18), drive=10, floor_dbfs=-66),
    "s6": Device((-20, -14, -8, -6, 5, -5, 6, -3, 3), drive=20, floor_dbfs=-62),
}


def _amplitude(db: float) -> float:
    return 10 ** (db / 20)


def render(segment: Segment, seed: int) -> np.ndarray:
    """The segment before any device, as a spectrum [S // 2 + 1]."""
    place = Place.of(segment.scene, segment.location, seed)
    rng = _generator("segment", seed, segment.number)
    hump_hz, textures = SCENES[segment.scene]
    hump = np.exp(-0.5 * ((_octaves() - np.log2(hump_hz * place.pitch / 1000)) / 0.6) ** 2)
    mix = _noise(rng, 10 ** ((place.tilt_db * _octaves() + 8 * hump) / 20))
    for texture, level_db in zip(textures, place.layers_db, strict=True):
        mix += _amplitude(level_db + rng.normal()) * texture(rng, place)
    mix += _amplitude(place.guest_db) * SCENES[place.guest][1][0](rng, place)
    level = _amplitude(rng.normal(-28, 4))
    return np.asarray(fft.rfft((level * _unit(mix)).astype(np.float32))) * place.eq


def record(spectrum: np.ndarray, device: str) -> np.ndarray:
    """The segment as the device hears it, [S], short of the device's own noise."""
    wave = _wave(spectrum * _device_gain(device))
    drive = DEVICES[device].drive
    return np.tanh(wave * drive) / drive if drive else wave


def write_segment(segment: Segment, folder: Path, seed: int) -> int:
    """Writes the segment's files under `folder`; returns how many they are."""
    spectrum = render(segment, seed)
    waves = {name: record(spectrum, name) for name in {take.device for take in segment.takes}}
    for take in segment.takes:
        rng = _generator("floor", seed, segment.number, take.chunk, *take.device.encode())
        clip = waves[take.device][take.chunk * RATE_HZ :][:RATE_HZ]
        clip = clip + _amplitude(DEVICES[take.device].floor_dbfs) * rng.standard_normal(RATE_HZ)
        sf.write(folder / take.filename, np.clip(clip, -0.99, 0.99), RATE_HZ, subtype="PCM_24")
    return len(segment.takes)


# --- Folders: built beside, then renamed ---


def build(
    dest: Path, n_train: int = 2000, n_test: int = 600, seed: int = 0, n_eval: int = 0, progress: bool = True,
    workers: int | None = None,
) -> Path:  # fmt: skip
    """The development set at `dest`, and the evaluation set beside it if n_eval > 0, unless they are there.

    `workers` are processes (default: one a core); the files do not depend on it.
    """
    if min(n_train, n_test, n_eval or len(SCENES)) < len(SCENES) or seed < 0:
        asked = f"train {n_train}, test {n_test}, eval {n_eval}, seed {seed}"
        raise ValueError(f"{asked}: needs {len(SCENES)} clips or more in a part, and a seed >= 0")
    dest = Path(dest).absolute()
    write = partial(_write_audio, seed=seed, progress=progress, workers=workers or os.cpu_count() or 1)

    def development(folder: Path) -> None:
        train, test = plan("train", n_train), plan("test", n_test)
        write(train + test, folder)
        _write_tables(train, test, seed, folder)

    def evaluation(folder: Path) -> None:
        segments = _anonymous(plan("eval", n_eval), seed)
        write(segments, folder)
        names = sorted(t.filename for s in segments for t in s.takes)
        _write_table(folder / "evaluation_setup/fold1_test.csv", ["filename"], ([name] for name in names))

    _build_once(dest, {"train": n_train, "test": n_test, "seed": seed}, development)
    if n_eval:
        _build_once(dest.parent / EVALUATION_FOLDER, {"eval": n_eval, "seed": seed}, evaluation)
    return dest


def _anonymous(segments: list[Segment], seed: int) -> list[Segment]:
    total = sum(len(s.takes) for s in segments)
    names = iter(_generator("names", seed).permutation(total))
    return [replace(s, takes=tuple(replace(t, filename=f"audio/{next(names)}.wav") for t in s.takes)) for s in segments]


def _write_tables(train: list[Segment], test: list[Segment], seed: int, folder: Path) -> None:
    meta = ([t.filename, s.scene, f"{s.city}-{s.location}", t.device] for s in train + test for t in s.takes)
    _write_table(folder / "meta.csv", ["filename", "scene_label", "identifier", "source_label"], meta)
    tables = {f"split{percent}": part for percent, part in nested_splits(train, seed).items()} | {"test": test}
    for name, segments in tables.items():
        rows = ([t.filename, s.scene] for s in segments for t in s.takes)
        _write_table(folder / f"split_setup/{name}.csv", ["filename", "scene_label"], rows)


def _write_table(path: Path, header: list[str], rows: Iterable[list[str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))


def _write_audio(segments: list[Segment], folder: Path, seed: int, progress: bool, workers: int) -> None:
    (folder / "audio").mkdir()
    job = partial(write_segment, folder=folder, seed=seed)
    total = sum(len(s.takes) for s in segments)
    with tqdm(total=total, desc="rendering", unit="clip", mininterval=1, disable=not progress) as bar:
        if workers == 1:
            for segment in segments:
                bar.update(job(segment))
            return
        # spawn: the caller may hold threads (torch), which a fork would leave in an undefined state
        with multiprocessing.get_context("spawn").Pool(workers, initializer=_end_with_parent) as pool:
            for clips in pool.imap_unordered(job, segments):
                bar.update(clips)


def _end_with_parent() -> None:
    """A pool's worker outlives a killed parent, waiting for ever: watch for that."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _build_once(dest: Path, parameters: dict[str, int], write: Callable[[Path], None]) -> None:
    """Fills `dest` by `write`, all or nothing; a finished folder of these parameters is left alone."""
    asked = {"format": FORMAT_VERSION, **parameters}
    dest.parent.mkdir(parents=True, exist_ok=True)
    with _locked(dest.parent):
        if dest.exists() and any(dest.iterdir()):
            manifest = dest / MANIFEST
            found = json.loads(manifest.read_text()) if manifest.exists() else "files of another kind"
            if found != asked:
                raise FileExistsError(f"{dest} holds {found}, asked for {asked}: delete it or name another folder")
            return
        for leftover in dest.parent.glob(f".{dest.name}.building-*"):  # of a killed build: we hold the lock
            shutil.rmtree(leftover)
        scratch = dest.parent / f".{dest.name}.building-{uuid.uuid4().hex[:8]}"
        scratch.mkdir()
        try:
            write(scratch)
            (scratch / MANIFEST).write_text(json.dumps(asked) + "\n")
            scratch.replace(dest)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time; a lock on the folder itself leaves no file behind and dies with us."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, metavar="DEST")
    parser.add_argument("--train", type=int, default=2000, help="clips (default 2000)")
    parser.add_argument("--test", type=int, default=600, help="clips (default 600)")
    parser.add_argument("--eval", type=int, default=0, help="clips of an unlabelled set beside DEST (default 0)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        print(build(args.dest, args.train, args.test, args.seed, args.eval))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
