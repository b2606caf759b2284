"""Impulse responses for device impulse response (DIR) augmentation: read WAV files, or write a synthetic set.

    python -m data.impulse impulses --count 16 --seed 0     # writes 16 short WAV files.
    impulses = load_impulses(Path("impulses"), 32000)       # float32 [K responses, L samples] at 32 kHz.

Public sets, such as MicIRP in CPJKU's DCASE 2023 code, are measurements of real microphones. The synthetic responses
imitate small microphones with random parameters: limits at both ends of the band, a few resonances, a spectral tilt
and a short decay.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    from data.signals import end_at_once

    end_at_once()  # SIGINT and SIGTERM during the imports below

import numpy as np
import soundfile
import torch
import torchaudio

from data.config.augment import AugmentConfig
from data.config.frontend import MAX_KERNEL, MAX_RATE, resampling_kernel
from data.signals import INTERRUPTED, interruptible
from data.tau import DatasetError

RATE = 44_100  # sample rate of the synthetic responses in Hz
TAPS = 1024  # length of a synthetic response in samples (23 ms)
LONGEST_S = 1.0  # seconds of a response that are used: the rest cannot affect a clip of 1 s


def impulses_for(config: AugmentConfig, sample_rate: int, device: torch.device | str = "cpu") -> torch.Tensor | None:
    """Return the impulse responses in the folder `config.dir_dir`, or None if DIR augmentation is off.

    The tensor [K responses, L samples] is at `sample_rate` Hz and on the torch device `device`.
    """
    if not config.dir_p:
        return None
    assert config.dir_dir is not None  # AugmentConfig requires it if dir_p > 0
    return load_impulses(Path(config.dir_dir), sample_rate).to(device)


def load_impulses(folder: Path, sample_rate: int) -> torch.Tensor:
    """Return the impulse responses in the WAV files below `folder` as float32 [K responses, L samples].

    The responses are sorted by path. Each one is resampled to `sample_rate` Hz, scaled to energy 1, so that white noise
    keeps its loudness when it is convolved, and padded with zeros to the length of the longest. A folder without WAV
    files, and a file that is not mono, is silent or cannot be read, raise DatasetError.
    """
    folder = Path(folder).expanduser()
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() == ".wav")
    if not paths:
        raise DatasetError(
            f"augment.dir_dir={str(folder)!r} holds no WAV file; `python -m data.impulse FOLDER` writes a synthetic set"
        )
    impulses = [torch.from_numpy(_resampled(path, sample_rate)) for path in paths]
    return torch.nn.utils.rnn.pad_sequence(impulses, batch_first=True)


def _resampled(path: Path, sample_rate: int) -> np.ndarray:
    try:
        with soundfile.SoundFile(path) as file:  # the header is checked before memory is allocated
            rate, n_channels = file.samplerate, file.channels
            if n_channels != 1:
                raise DatasetError(f"impulse response {path} has {n_channels} channels; expected mono: convert it")
            if rate > MAX_RATE or resampling_kernel(rate, sample_rate) > MAX_KERNEL:
                raise DatasetError(
                    f"impulse response {path} has {rate} Hz; expected at most {MAX_RATE} Hz, and a simple ratio to "
                    f"{sample_rate} Hz: resample it, for example to {RATE} Hz"
                )
            samples = file.read(round(LONGEST_S * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DatasetError(f"impulse response {path} cannot be read as WAV ({error}): remove or replace it") from error
    if not np.isfinite(samples).all() or not samples.any():
        raise DatasetError(f"impulse response {path} is empty, silent or not finite: remove or replace it")
    wave = torchaudio.functional.resample(torch.from_numpy(samples[:, 0]), rate, sample_rate)
    energy = float(wave.square().sum())
    if not energy > 0:
        raise DatasetError(
            f"impulse response {path} is silent after resampling to {sample_rate} Hz: remove or replace it"
        )
    return (wave / energy**0.5).numpy()


def synthetic_impulses(count: int, seed: int) -> np.ndarray:
    """Return `count` random microphone-like impulse responses `[count, TAPS]` of minimum phase at `RATE` Hz."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.rfftfreq(TAPS, 1 / RATE)  # Hz
    octave = np.log2(np.maximum(frequency, 20) / 1000)  # octaves above 1 kHz
    responses = []
    for _ in range(count):
        low, high = rng.uniform(60, 400), rng.uniform(5_000, 16_000)  # Hz, edges of the band
        decibels = -rng.uniform(6, 18) * np.log2(1 + (low / np.maximum(frequency, 20)) ** 2)
        decibels -= rng.uniform(12, 36) * np.log2(1 + (frequency / high) ** 4)
        decibels += rng.uniform(-2, 2) * octave  # tilt
        for _ in range(rng.integers(2, 6)):  # resonances of the case and the membrane
            centre, width = np.log2(rng.uniform(150, 10_000) / 1000), rng.uniform(0.1, 0.6)  # octaves
            decibels += rng.uniform(-8, 12) * np.exp(-(((octave - centre) / width) ** 2))
        responses.append(_minimum_phase(10 ** (np.maximum(decibels, -80) / 20)))
    return np.stack(responses)


def _minimum_phase(magnitude: np.ndarray) -> np.ndarray:
    """Return the minimum-phase impulse response `[TAPS]` whose FFT has the magnitude `magnitude [TAPS / 2 + 1]`.

    Method: fold the real cepstrum (Oppenheim and Schafer, Discrete-Time Signal Processing).
    """
    cepstrum = np.fft.irfft(np.log(magnitude), TAPS)
    cepstrum[1 : TAPS // 2] *= 2
    cepstrum[TAPS // 2 + 1 :] = 0
    return np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), TAPS)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.impulse", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dest", type=Path, help="folder to which the WAV files are written")
    parser.add_argument("--count", type=int, default=16, help="number of impulse responses (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the impulse responses (default: 0)")
    chosen = parser.parse_args(argv)
    if chosen.count < 1 or chosen.seed < 0:
        parser.error(
            f"--count {chosen.count} --seed {chosen.seed}: expected at least one file and a seed of 0 or more"
            "; correct the option"
        )
    try:
        with interruptible():
            chosen.dest.mkdir(parents=True, exist_ok=True)
            for i, response in enumerate(synthetic_impulses(chosen.count, chosen.seed)):
                wave = 0.9 * response / np.abs(response).max()
                soundfile.write(chosen.dest / f"synthetic-{i:02d}.wav", wave, RATE, "PCM_24")
    except KeyboardInterrupt:
        print("interrupted; to continue, repeat the command")
        return INTERRUPTED
    except OSError as error:
        print(f"error: WAV files cannot be written to {chosen.dest} ({error}): name another folder", file=sys.stderr)
        return 2
    print(f"wrote {chosen.count} impulse responses into the folder {chosen.dest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
