"""Configuration of a log-mel front-end: `FrontEndConfig`."""

import math
from dataclasses import dataclass, fields

from data.config.dataset import SOURCE_RATE

MAX_RATE = 192_000  # Hz
MAX_KERNEL = 2**23  # values of the filters that resample a clip: 32 MB


@dataclass(frozen=True)
class FrontEndConfig:
    """Configuration of a log-mel front-end."""

    sample_rate: int = 32_000  # sample rate of the waveforms in Hz (above 0)
    n_fft: int = 4096  # FFT length in samples (at least win_length; less than 2 s of samples)
    win_length: int = 3072  # length of the analysis window in samples (above 0)
    hop_length: int = 500  # distance between frames in samples (above 0, at most 1 s)
    n_mels: int = 256  # number of mel bins (above 0)
    f_min: float = 0.0  # lowest frequency of the mel filters in Hz (0 or more, below f_max)
    f_max: float | None = None  # highest frequency of the mel filters in Hz; null: half of the sample rate
    mean: float = 0.0  # value subtracted from the log-mels (for AST checkpoints: -4.27)
    std: float = 1.0  # value that divides the log-mels after `mean` is subtracted (for AST checkpoints: 9.14)

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"frontend.{item.name}={value}: expected a finite number; correct the value")
        for name in ("sample_rate", "n_fft", "win_length", "hop_length", "n_mels", "std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"frontend.{name}={getattr(self, name)}: expected a number above 0; raise it")
        if self.sample_rate > MAX_RATE or resampling_kernel(SOURCE_RATE, self.sample_rate) > MAX_KERNEL:
            raise ValueError(
                f"frontend.sample_rate={self.sample_rate}: expected at most {MAX_RATE} Hz, and a simple ratio to "
                f"{SOURCE_RATE} Hz, the rate of the clips; set a multiple of 100 Hz, such as 32000"
            )
        if self.hop_length > self.sample_rate:
            raise ValueError(
                f"frontend.hop_length={self.hop_length} is longer than a clip: expected at most {self.sample_rate} "
                "samples (1 s at frontend.sample_rate); lower hop_length"
            )
        if self.win_length > self.n_fft:
            raise ValueError(
                f"frontend.win_length={self.win_length} is longer than frontend.n_fft={self.n_fft}: expected at "
                "most n_fft samples; lower win_length or raise n_fft"
            )
        if self.n_fft // 2 >= self.sample_rate:  # reflection padding of n_fft // 2 must be shorter than a clip of 1 s
            raise ValueError(
                f"frontend.n_fft={self.n_fft} is too long, because half of it must be shorter than a clip (1 s): "
                f"expected less than {2 * self.sample_rate} samples (2 s at frontend.sample_rate={self.sample_rate}); "
                "lower n_fft"
            )
        top = self.sample_rate / 2 if self.f_max is None else self.f_max
        if not 0 <= self.f_min < top:
            raise ValueError(
                f"frontend.f_min={self.f_min}: expected 0 or more, and less than the highest frequency of the mel "
                f"filters ({top} Hz, from frontend.f_max or half of frontend.sample_rate); lower f_min or raise f_max"
            )
        n_bins = self.n_fft // 2 + 1
        for what, size, most in (
            ("the spectrum of a clip (frames x FFT bins)", self.frames * n_bins, 2**21),
            ("the mel filters (mel bins x FFT bins)", self.n_mels * n_bins, 2**23),
            ("the features of a clip (frames x mel bins)", self.frames * self.n_mels, 2**20),
        ):
            if size > most:
                raise ValueError(
                    f"frontend.hop_length={self.hop_length}, frontend.n_fft={self.n_fft}, "
                    f"frontend.n_mels={self.n_mels}: {what} would have {size:,} values; expected at most {most:,}: "
                    "raise hop_length, or lower n_fft or n_mels"
                )

    @property
    def frames(self) -> int:
        """Number of frames in the features of a clip of 1 s. The first frame is centred on the first sample."""
        return self.sample_rate // self.hop_length + 1


def resampling_kernel(source: int, target: int) -> int:
    """Return the approximate number of filter values that torchaudio needs to resample from `source` to `target` Hz.

    The smaller the greatest common divisor of the two rates, the more values: 141,120 for 44100 to 32000 Hz, but 1.4e9
    for 44100 to 31999 Hz.
    """
    common = math.gcd(source, target)
    return (source // common) * (target // common)
