"""A tiny data set in the layout of TAU Urban Acoustic Scenes 2022 Mobile."""

import itertools
from pathlib import Path

import numpy as np
import soundfile

from data.config.dataset import SUBSETS
from data.tau import EVALUATION_DIR, SCENES

RATE_HZ = 44_100
TRAIN_DEVICES = ("a", "b", "c", "s1", "s2", "s3")
TEST_DEVICES = ("a", "s1", "s4", "b", "s5", "s2", "s6")


def coloured_noise(scene: int, location: int, device: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise of 1 s at RATE_HZ with a spectrum from which the scene can be recognised.

    The spectrum falls with frequency and has a hump. The scene and, less, the location set the frequency of the hump;
    the device sets the slope.
    """
    spectrum = np.fft.rfft(rng.standard_normal(RATE_HZ))
    octave = np.log2(np.arange(len(spectrum)) + 1)  # bins are 1 Hz wide
    hump = 5 * np.exp(-(((octave - 6 - 0.75 * scene - 0.1 * location) / 0.6) ** 2))
    gain = 2.0 ** (-(0.2 + 0.05 * device) * octave) * (1 + hump)
    wave = np.fft.irfft(spectrum * gain, RATE_HZ)
    return 0.05 * 2.0 ** rng.uniform(-3, 3) * wave / wave.std() / 8


def write_tsv(path: Path, rows: list[tuple[str, ...]], columns: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]))


def make_tau(root: Path, seed: int = 0) -> Path:
    """Write 70 clips in TAU's layout into `root`, and an evaluation set of 3 clips next to it; return `root`.

    In the training split, each scene has two or three locations with two 10 s segments each, and one clip of 1 s per
    segment. The subsets of 5 to 50 % contain the first segment of every location. In the test split, each scene has one
    other location with two clips.
    """
    rng = np.random.default_rng(seed)
    (root / "audio").mkdir(parents=True)
    meta: list[tuple[str, ...]] = []
    splits: dict[str, list[tuple[str, ...]]] = {name: [] for name in ("test", *(f"split{s}" for s in SUBSETS))}
    devices, test_devices = itertools.cycle(TRAIN_DEVICES), itertools.cycle(TEST_DEVICES)
    for s, scene in enumerate(SCENES):
        places = [(loc, seg) for loc in range(2 + s % 2) for seg in range(2)] + [(9, 0), (9, 1)]
        for location, segment in places:
            device = next(test_devices if location == 9 else devices)
            city = ("lyon", "oslo")[location % 2]
            place = f"{100 * s + location}"
            name = f"audio/{scene}-{city}-{place}-{1000 * s + 10 * location + segment}-{segment}-{device}.wav"
            tone = int(device[-1]) if device[-1].isdigit() else 0
            soundfile.write(root / name, coloured_noise(s, location, tone, rng), RATE_HZ, "PCM_24")
            meta.append((name, scene, f"{city}-{place}", device))
            if location == 9:
                splits["test"].append((name, scene))
                continue
            for subset in SUBSETS:
                if segment == 0 or subset == 100:
                    splits[f"split{subset}"].append((name, scene))
    write_tsv(root / "meta.csv", meta, ("filename", "scene_label", "identifier", "source_label"))
    for name, rows in splits.items():
        write_tsv(root / "split_setup" / f"{name}.csv", rows, ("filename", "scene_label"))
    evaluation = root.parent / EVALUATION_DIR
    (evaluation / "audio").mkdir(parents=True)
    for i in range(3):
        soundfile.write(evaluation / "audio" / f"{i}.wav", coloured_noise(i, 0, 0, rng), RATE_HZ, "PCM_24")
    write_tsv(
        evaluation / "evaluation_setup" / "fold1_test.csv", [(f"audio/{i}.wav",) for i in range(3)], ("filename",)
    )
    return root
