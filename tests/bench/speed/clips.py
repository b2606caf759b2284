"""The clips of the benchmark: WAV files of noise, their labels, devices and teacher logits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

RATE_HZ = 44_100
DEVICES = ("a", "b", "c", "s1", "s2", "s3")
N_CLASSES = 10


@dataclass(frozen=True)
class Files:
    """Clips in the folder `root`: their names, labels and recording devices."""

    root: Path
    names: list[str]
    labels: np.ndarray  # [N]
    devices: np.ndarray  # [N]

    @property
    def teacher(self) -> torch.Tensor:
        """Random logits [N, C], the same in each process."""
        return torch.randn(len(self.names), N_CLASSES, generator=torch.Generator().manual_seed(0))


def files(root: Path, part: str, n: int) -> Files:
    """Return the `n` clips of the given part (train or validation), without opening them."""
    numbers = np.arange(n)
    devices = np.array(DEVICES)[numbers % len(DEVICES)]
    return Files(root, [f"{part}-{i}.wav" for i in numbers], numbers % N_CLASSES, devices)


def write(clips: Files) -> None:
    """Write the clips as 24-bit WAV files of 1 s with noise."""
    rng = np.random.default_rng(0)
    for name in clips.names:
        soundfile.write(clips.root / name, 0.1 * rng.standard_normal(RATE_HZ), RATE_HZ, "PCM_24")
