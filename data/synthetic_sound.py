"""Sound of the synthetic data set: locations, textures, the ten scenes and the nine recording devices.

The sound of a scene is background noise plus two textures (tones, knocks, noise bands or hums). A location changes
pitch and tempo of its scene and adds some sound of another scene. A device filters the result. `data/synthetic.py` cuts
the sound into clips and writes them. In shapes, S is the number of samples of a segment (10 s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import lfilter

RATE_HZ = 44_100
CHUNKS = 10  # number of 1 s chunks in a segment
SAMPLES = CHUNKS * RATE_HZ  # number of samples of a segment (S)
KNOT_SAMPLES = 441  # distance between the points of slow envelopes; samples between them are interpolated
EQ_HZ = (60, 120, 240, 480, 1000, 2000, 4000, 8000, 16_000)  # frequencies at which filters are defined


def generator(purpose: str, *ids: int) -> Generator:
    """Return a random generator seeded by `purpose` (e.g. "segment") and `ids` (e.g. the seed and a number) only.

    The sound therefore does not depend on the order in which processes render the segments.
    """
    return default_rng([*purpose.encode(), 0, *(i + 1 for i in ids)])


@cache
def _octaves() -> np.ndarray:
    """Return the frequencies [S // 2 + 1] of the FFT bins of a segment of S samples, in octaves above 1 kHz.

    Frequencies below 20 Hz are replaced by 20 Hz.
    """
    return np.log2(np.maximum(np.arange(SAMPLES // 2 + 1) / CHUNKS, 20) / 1000).astype(np.float32)


def _gain(points_hz: Iterable[float], points_db: Iterable[float]) -> np.ndarray:
    """Return a magnitude response [S // 2 + 1 FFT bins] that has the gains `points_db` at the frequencies `points_hz`.

    Between these points, the gain in dB is linear in octaves.
    """
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
    """Return the random start times of events in a segment (10 s), in samples.

    There are `rate_hz` events per second on average. `jitter` 0 gives equal distances, 1 a Poisson process.
    """
    gaps = (1 - jitter) + jitter * rng.exponential(size=int(2 * CHUNKS * rate_hz) + 20)
    starts = (np.cumsum(gaps) - gaps[0] * rng.random()) / rate_hz * RATE_HZ
    return starts[starts < SAMPLES].astype(int)


def _swell(rng: Generator, rate_hz: float, depth: float) -> np.ndarray:
    """Return an envelope [S samples] that oscillates between 1 - `depth` and 1, about `rate_hz` times per second."""
    knots = np.arange(0, SAMPLES + KNOT_SAMPLES, KNOT_SAMPLES)
    cycle = rng.random() + np.cumsum(rate_hz * rng.normal(1, 0.1, len(knots))) * KNOT_SAMPLES / RATE_HZ
    return np.interp(np.arange(SAMPLES), knots, 1 - depth * (0.5 + 0.5 * np.cos(2 * np.pi * cycle)))


@dataclass(frozen=True)
class Place:
    """Changes that one recording location makes to the sound of its scene."""

    pace: float  # factor of all event rates
    pitch: float  # factor of all frequencies
    tilt_db: float  # tilt of the background noise in dB per octave
    layers_db: tuple[float, float]  # levels of the scene's two textures relative to the background noise
    guest: str  # another scene, whose first texture is added
    guest_db: float  # level of the added texture relative to the background noise
    eq: np.ndarray  # [S // 2 + 1] magnitude response of the location

    @staticmethod
    def of(scene: str, location: int, seed: int) -> Place:
        rng = generator("place", seed, location)
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


# A texture returns a waveform [S] with RMS 1. Its rates are multiplied by `Place.pace`, its frequencies by
# `Place.pitch`.
Texture = Callable[[Generator, Place], np.ndarray]


def tones(
    rng: Generator, place: Place, *, rate_hz: float, jitter: float, seconds: float, octaves: float,
    low_hz: float, high_hz: float,
) -> np.ndarray:  # fmt: skip
    """Return a waveform [S samples] of short tones whose frequency rises by `octaves` (falls, if negative).

    Each tone is `seconds` long and centred on a random frequency from `low_hz` to `high_hz`. `rate_hz` tones start per
    second, at equal distances (`jitter` 0) to fully random times (`jitter` 1). `place` changes pitch and tempo.
    """
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
    """Return a waveform [S samples] of decaying noise bursts, like footsteps.

    `decay_s` is the time constant of the decay. With `pair_s` > 0, each burst is repeated after `pair_s` seconds, like
    wheels on a rail joint. `rate_hz` bursts start per second, at equal distances (`jitter` 0) to fully random times
    (`jitter` 1). `place` changes pitch and tempo.
    """
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
    """Return a waveform [S samples] of noise in bands, whose level rises and falls `rate_hz` times per second.

    Two neighbours in `edges_hz` are the edges of one band. The levels of the bands change independently (voices,
    wind), or in phase if `together` is set (an engine). `place` changes pitch and tempo.
    """
    shared = _swell(rng, rate_hz * place.pace, 0.95)
    out = np.zeros(SAMPLES)
    for low_hz, high_hz in pairwise(edges_hz):
        swell = shared if together else _swell(rng, rate_hz * place.pace, 0.95)
        out += _band_noise(rng, low_hz * place.pitch, high_hz * place.pitch) * swell
    return _unit(out)


def hum(rng: Generator, place: Place, *, f0_hz: float, partials: int, octaves: float, rate_hz: float) -> np.ndarray:
    """Return a waveform [S samples] of a harmonic sound, like an engine.

    It has the fundamental frequency `f0_hz` and `partials` partials. Its pitch varies over a range of `octaves`,
    `rate_hz` times per second. `place` changes pitch and tempo.
    """
    sway = octaves * (_swell(rng, rate_hz * place.pace, 1.0) - 0.5)
    cycle = np.cumsum(f0_hz * place.pitch * 2**sway) / RATE_HZ
    k = np.arange(1, partials + 1)[:, None]
    angle = 2 * np.pi * (k * np.arange(4096) / 4096 + rng.random((partials, 1)))  # [partials, one period]
    period = np.sum(rng.uniform(0.5, 1, (partials, 1)) * np.sin(angle) / np.sqrt(k), axis=0)
    return _unit(period[(cycle * 4096).astype(np.int64) % 4096])


_voices = partial(murmur, rate_hz=4, edges_hz=(250, 500, 1000, 2000, 4000))
_wind = partial(murmur, rate_hz=2, edges_hz=(100, 400, 1600))
_calls = partial(tones, rate_hz=4, jitter=0.5, seconds=0.22, low_hz=1500, high_hz=4500)

# Scene -> (frequency of the background noise's peak in Hz, the two textures). Many scenes have the same frequency bands
# and differ only in the timing of their events.
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
    """A recording device: frequency response, distortion and noise."""

    response_db: tuple[float, ...]  # gain at each frequency of EQ_HZ
    drive: float = 0.0  # gain before the tanh clipper (0: no clipper)
    floor_dbfs: float = -75.0  # level of the device's white noise


DEVICES = {
    "a": Device((0, 0, 0, 0, 0, 0, 0, 0, 0)),
    "b": Device((-10, -6, -2, 0, 0, 1, 3, 2, -6), floor_dbfs=-68),
    "c": Device((-6, -2, 0, 1, 0, -2, 0, 3, -2), floor_dbfs=-66),
    "s1": Device((-14, -9, -3, 2, 3, 0, -2, -6, -14), floor_dbfs=-64),
    "s2": Device((-4, 2, 5, 1, -4, -3, 3, 4, -8), drive=10, floor_dbfs=-64),
    "s3": Device((-16, -8, -6, -2, 2, 6, 1, -5, -10), drive=5, floor_dbfs=-62),
    # Not in the training part, and less similar to device a than the others:
    # a phone without bass and treble, a phone in a pocket, an overdriven phone.
    "s4": Device((-30, -22, -12, 0, 3, 4, 0, -14, -26), drive=10, floor_dbfs=-62),
    "s5": Device((8, 6, 3, 0, -3, -6, -9, -12, -18), drive=10, floor_dbfs=-66),
    "s6": Device((-20, -14, -8, -6, 5, -5, 6, -3, 3), drive=20, floor_dbfs=-62),
}


def amplitude(db: float) -> float:
    return 10 ** (db / 20)


def render(scene: str, location: int, number: int, seed: int) -> np.ndarray:
    """Return the complex spectrum [S // 2 + 1 FFT bins] of a segment (10 s), before a recording device filters it.

    `scene` is a key of SCENES. The random numbers follow from `location` (number of the location), `number` (of the
    segment) and the `seed` of the data set.
    """
    place = Place.of(scene, location, seed)
    rng = generator("segment", seed, number)
    hump_hz, textures = SCENES[scene]
    hump = np.exp(-0.5 * ((_octaves() - np.log2(hump_hz * place.pitch / 1000)) / 0.6) ** 2)
    mix = _noise(rng, 10 ** ((place.tilt_db * _octaves() + 8 * hump) / 20))
    for texture, level_db in zip(textures, place.layers_db, strict=True):
        mix += amplitude(level_db + rng.normal()) * texture(rng, place)
    mix += amplitude(place.guest_db) * SCENES[place.guest][1][0](rng, place)
    level = amplitude(rng.normal(-28, 4))
    return np.asarray(fft.rfft((level * _unit(mix)).astype(np.float32))) * place.eq


def record(spectrum: np.ndarray, device: str) -> np.ndarray:
    """Return the waveform [S samples] that `device` (a key of DEVICES) records of a segment with `spectrum`.

    The noise of the device is not included.
    """
    wave = _wave(spectrum * _device_gain(device))
    drive = DEVICES[device].drive
    return np.tanh(wave * drive) / drive if drive else wave
