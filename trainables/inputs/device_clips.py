"""The waveforms of a training on a GPU: all of them in its memory, or each batch copied ahead of its step.

resident = upload(cache, device)            # a `ResidentWaveforms`; None if they do not fit
resident.batch(rows)                        # float32 [B, S], without a copy from the CPU

with closing(Ahead(cache, batches_of_rows, device)) as source:
    source.batch(rows)                      # the batches in their order; the next one is being read meanwhile
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from data.cache import WaveformCache

FREE_SHARE = 0.5  # largest share of a GPU's free memory that the waveforms may take
_ROWS = 1024  # number of clips that are uploaded together


class ResidentWaveforms:
    """All waveforms of a cache in the memory of `device`: int16 samples `[N, S]` and their scale factors `[N]`."""

    def __init__(self, cache: WaveformCache, device: torch.device):
        n, n_samples = cache.shape
        self.samples = torch.empty((n, n_samples), dtype=torch.int16, device=device)
        self.scales = torch.empty(n, device=device)
        for start in range(0, n, _ROWS):
            rows = np.arange(start, min(start + _ROWS, n))
            samples, scales = cache.stored(rows)
            self.samples[start : start + len(rows)].copy_(samples)
            self.scales[start : start + len(rows)].copy_(scales)

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the waveforms with the row numbers `rows [B]`, a tensor on the device, as float32 `[B, S]`."""
        return self.samples[rows].float() * self.scales[rows][:, None]


def upload(cache: WaveformCache, device: torch.device) -> ResidentWaveforms | None:
    """Copy all waveforms of `cache` to `device`; None if it is no GPU, or if they need too much of its free memory."""
    if device.type != "cuda":
        return None
    n, n_samples = cache.shape
    free, _ = torch.cuda.mem_get_info(device)
    return ResidentWaveforms(cache, device) if 2 * n * n_samples <= FREE_SHARE * free else None


class Ahead:
    """The batches of an epoch in their order, as float32 waveforms on `device`.

    While one batch is used, a thread reads the next one into memory from which a GPU copies without the CPU.
    """

    def __init__(self, cache: WaveformCache, batches: Sequence[np.ndarray], device: torch.device):
        self._cache, self._remaining, self._device = cache, list(batches), device
        self._thread = ThreadPoolExecutor(1)
        self._next: Future[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._read_next()

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """Return the waveforms `[B, S]` of the next batch; ValueError if `rows` are not the row numbers of it."""
        if self._next is None or not np.array_equal(rows, self._rows):
            raise ValueError(f"rows={rows}: expected the row numbers of the epoch's next batch")
        samples, scales = self._next.result()
        self._read_next()
        samples, scales = (x.to(self._device, non_blocking=True) for x in (samples, scales))
        return samples.float() * scales[:, None]

    def _read_next(self) -> None:
        self._next = None
        if self._remaining:
            self._rows = self._remaining.pop(0)
            self._next = self._thread.submit(self._read, self._rows)

    def _read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        samples, scales = self._cache.stored(rows)
        return (samples.pin_memory(), scales.pin_memory()) if self._device.type == "cuda" else (samples, scales)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
