"""Log-mel front-ends convert waveforms `[B, S]` to features `[B, 1, n_mels, T]`, on CPU or GPU.

The default is the front-end of the DCASE 2024 baseline (32 kHz, 4096-point FFT, 3072-sample window, hop of 500 samples,
256 mels), which gives 65 frames for 1 s. The MACs of a student grow with the number of frames: a hop of 512 samples
gives 63 frames and fewer MACs.
"""

import math
import warnings

import torch
import torchaudio
from torch import nn

from data.config.frontend import FrontEndConfig

FLOOR = 1e-5  # is added to the mel power before the logarithm
CHUNK_VALUES = 2**18  # values of the frames that are transformed together on a CPU: 1 MB


class LogMel(nn.Module):
    """Module that turns waveforms `[B, S]` into normalised log-mels `[B, 1, n_mels, T]`.

    Formula: (log(mel power + 1e-5) - mean) / std, with `mean` and `std` from the configuration. The spectrum is that of
    `torchaudio.transforms.MelSpectrogram`: periodic Hann window, centred frames, reflected ends, HTK mel filters.

    A mel filter covers few of the FFT's bins, so on a CPU the filters are a sparse matrix. There, the clips are also
    computed in chunks whose spectra fit in the processor's cache. Both together halve the time.
    """

    window: torch.Tensor  # [n_fft] analysis window, zero outside its win_length samples
    filters: torch.Tensor  # [n_mels, n_fft // 2 + 1]

    def __init__(self, config: FrontEndConfig):
        super().__init__()
        self.config, n_bins = config, config.n_fft // 2 + 1
        left = (config.n_fft - config.win_length) // 2
        window = nn.functional.pad(
            torch.hann_window(config.win_length), (left, config.n_fft - config.win_length - left)
        )
        top = config.sample_rate // 2 if config.f_max is None else config.f_max
        filters = torchaudio.functional.melscale_fbanks(n_bins, config.f_min, top, config.n_mels, config.sample_rate).T
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters.contiguous(), persistent=False)
        with warnings.catch_warnings():  # PyTorch warns once in a process that its CSR tensors are new and not checked
            warnings.simplefilter("ignore")
            sparse = self.filters.to_sparse_csr()
            # no buffers: they stay on the CPU; and no CSR tensor: it could not be copied with this module
            self._csr = (sparse.crow_indices(), sparse.col_indices(), sparse.values())
            self._sparse_filters()
        self._chunk = max(1, CHUNK_VALUES // (config.frames * config.n_fft))  # number of clips
        self.silence = (math.log(FLOOR) - config.mean) / config.std  # the feature of a bin without power

    @torch.no_grad()
    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        if waveforms.device.type != "cpu" or torch.compiler.is_compiling():  # torch.export has no sparse tensors
            features = self._mel_power(waveforms, self.filters)  # [B, F, T]
        else:
            filters = self._sparse_filters()
            features = torch.cat([self._mel_power(chunk, filters) for chunk in waveforms.split(self._chunk)])
        features = features.add_(FLOOR).log_()
        if (self.config.mean, self.config.std) != (0.0, 1.0):
            features = features.sub_(self.config.mean).div_(self.config.std)
        return features.unsqueeze(1)

    def _sparse_filters(self) -> torch.Tensor:
        return torch.sparse_csr_tensor(*self._csr, self.filters.shape, check_invariants=False)

    def _mel_power(self, waveforms: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        """Return the power `[B, n_mels, T]` of the waveforms `[B, S]` in each of the mel `filters` and each frame."""
        n_fft, hop = self.config.n_fft, self.config.hop_length
        padded = nn.functional.pad(waveforms[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
        spectrum = torch.fft.rfft(padded.unfold(1, n_fft, hop) * self.window)  # [B, T, n_fft // 2 + 1]
        squares = torch.view_as_real(spectrum).square_()
        power = squares[..., 0] + squares[..., 1]
        mel = filters @ power.flatten(0, 1).T  # [F, B T]
        return mel.view(len(filters), waveforms.shape[0], -1).transpose(0, 1)  # len() would fix B in torch.export
