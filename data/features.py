"""Log-mel front-ends: waveforms `[B, S]` to features `[B, 1, n_mels, T]`, on the waveforms' device.

The default is the DCASE 2024 baseline's (32 kHz, 4096-point FFT, 3072-sample window, hop 500, 256 mels): 65 frames for
1 s. Mind the frame count: MACs grow with it, and hop 512 gives 63.
"""

from dataclasses import dataclass

import torch
import torchaudio
from torch import nn


@dataclass(frozen=True)
class FrontEndConfig:
    """One log-mel front-end."""

    sample_rate: int = 32_000  # Hz
    n_fft: int = 4096
    win_length: int = 3072  # samples
    hop_length: int = 500  # samples
    n_mels: int = 256
    f_min: float = 0.0  # Hz
    f_max: float | None = None  # Hz; None: half the sample rate
    mean: float = 0.0  # subtracted from the log-mels
    std: float = 1.0  # and divided by (AST checkpoints: -4.27, 2 * 4.57)

    def __post_init__(self):
        for name in ("sample_rate", "n_fft", "win_length", "hop_length", "n_mels", "std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"frontend.{name}={getattr(self, name)}: expected a number above 0")
        if self.win_length > self.n_fft:
            raise ValueError(f"frontend.win_length={self.win_length} is longer than frontend.n_fft={self.n_fft}")
        if self.n_fft // 2 >= self.sample_rate:  # frames are centred, half a window reaches beyond the clip
            raise ValueError(f"frontend.n_fft={self.n_fft}: too long for 1 s at {self.sample_rate} Hz")
        top = self.sample_rate / 2 if self.f_max is None else self.f_max
        if not 0 <= self.f_min < top:
            raise ValueError(f"frontend.f_min={self.f_min}: expected 0 or more, and below the highest, {top} Hz")

    @property
    def frames(self) -> int:
        """Frames of 1 s of audio (centred frames)."""
        return self.sample_rate // self.hop_length + 1


class LogMel(nn.Module):
    """log(mel power + 1e-5), normalised; `[B, S] -> [B, 1, n_mels, T]`."""

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
