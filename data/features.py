"""Log-mel front-ends convert waveforms `[B, S]` to features `[B, 1, n_mels, T]`, on CPU or GPU.

The default is the front-end of the DCASE 2024 baseline (32 kHz, 4096-point FFT, 3072-sample window, hop of 500 samples,
256 mels), which gives 65 frames for 1 s. The MACs of a student grow with the number of frames: a hop of 512 samples
gives 63 frames and fewer MACs.
"""

from dataclasses import dataclass

import torch
import torchaudio
from torch import nn


@dataclass(frozen=True)
class FrontEndConfig:
    """Configuration of a log-mel front-end."""

    sample_rate: int = 32_000  # sample rate of the waveforms in Hz (above 0)
    n_fft: int = 4096  # FFT length in samples (at least win_length; less than 2 s of samples)
    win_length: int = 3072  # length of the analysis window in samples (above 0)
    hop_length: int = 500  # distance between frames in samples (above 0)
    n_mels: int = 256  # number of mel bins (above 0)
    f_min: float = 0.0  # lowest frequency of the mel filters in Hz (0 or more, below f_max)
    f_max: float | None = None  # highest frequency of the mel filters in Hz; null: half of the sample rate
    mean: float = 0.0  # value subtracted from the log-mels (for AST checkpoints: -4.27)
    std: float = 1.0  # value that divides the log-mels after `mean` is subtracted (for AST checkpoints: 9.14)

    def __post_init__(self):
        for name in ("sample_rate", "n_fft", "win_length", "hop_length", "n_mels", "std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"frontend.{name}={getattr(self, name)}: expected a number above 0; raise it")
        if self.win_length > self.n_fft:
            raise ValueError(
                f"frontend.win_length={self.win_length} is longer than frontend.n_fft={self.n_fft}: expected at "
                "most n_fft samples; lower win_length or raise n_fft"
            )
        if self.n_fft // 2 >= self.sample_rate:  # reflection padding of n_fft // 2 must be shorter than a clip of 1 s
            raise ValueError(
                f"frontend.n_fft={self.n_fft} is too long for a clip of 1 s: expected less than {2 * self.sample_rate} "
                f"samples (2 s at frontend.sample_rate={self.sample_rate}); lower n_fft"
            )
        top = self.sample_rate / 2 if self.f_max is None else self.f_max
        if not 0 <= self.f_min < top:
            raise ValueError(
                f"frontend.f_min={self.f_min}: expected 0 or more, and less than the highest frequency of the mel "
                f"filters ({top} Hz, from frontend.f_max or half of frontend.sample_rate); lower f_min or raise f_max"
            )

    @property
    def frames(self) -> int:
        """Number of frames in the features of a clip of 1 s. The first frame is centred on the first sample."""
        return self.sample_rate // self.hop_length + 1


class LogMel(nn.Module):
    """Module that turns waveforms `[B, S]` into normalised log-mels `[B, 1, n_mels, T]`.

    Formula: (log(mel power + 1e-5) - mean) / std, with `mean` and `std` from the configuration.
    """

    def __init__(self, config: FrontEndConfig):
        super().__init__()
        self.config = config
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate=config.sample_rate,
            n_fft=config.n_fft,
            win_length=config.win_length,
            hop_length=config.hop_length,
            n_mels=config.n_mels,
            f_min=config.f_min,
            f_max=config.f_max,
        )

    @torch.no_grad()
    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        features = (self.mel(waveforms) + 1e-5).log()  # [B, F, T]
        return ((features - self.config.mean) / self.config.std).unsqueeze(1)
