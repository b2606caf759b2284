"""The training loop of the DCASE 2024 Task 1 baseline, written again from its description, as the reference.

Every epoch decodes each clip with soundfile. Resampling, log-mels and augmentation are computed for a batch. The loop
runs with PyTorch's default memory settings and memory format. The validation adds up losses and correct predictions
clip by clip, for each recording device and each class. The original uses PyTorch Lightning, a logger and checkpoints,
and decodes with torchaudio; all of this costs time, so this loop is faster than the original.

With knowledge distillation, the logits of the teachers are looked up by filename. The network is CP-Mobile in plain
PyTorch layers, or Rep-Mobile with one convolution and one batch normalisation for each branch.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

SOURCE_HZ, RATE_HZ = 44_100, 32_000
N_CLASSES = 10
KERNELS = {"3x3": (3, 3), "3x1": (3, 1), "1x3": (1, 3), "1x1": (1, 1)}
STRIDES = [(1, 1), (1, 1), (1, 2), (2, 1), (1, 1), (1, 1)]  # of the blocks b1 to b6
CHANNELS = [(32, 64, 32), (32, 64, 32), (32, 64, 32), (32, 64, 56), (56, 120, 56), (56, 120, 104)]  # in, inner, out


def convolution(inputs: int, outputs: int, kernel: tuple[int, int], stride=(1, 1), groups: int = 1) -> list[nn.Module]:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class Branches(nn.Module):
    """Sum of parallel depthwise branches: 3x3, 3x1, 1x3, 1x1, and identity if the stride is 1."""

    def __init__(self, channels: int, stride: tuple[int, int]):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*convolution(channels, channels, kernel, stride, channels)) for kernel in KERNELS.values()
        )
        if stride == (1, 1):
            self.branches.append(nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class Block(nn.Module):
    def __init__(self, channels: tuple[int, int, int], stride: tuple[int, int], rep: bool):
        super().__init__()
        inputs, inner, outputs = channels
        depthwise = [Branches(inner, stride)] if rep else convolution(inner, inner, (3, 3), stride, inner)
        self.layers = nn.Sequential(
            *convolution(inputs, inner, (1, 1)),
            nn.ReLU(),
            *depthwise,
            nn.ReLU(),
            *convolution(inner, outputs, (1, 1)),
        )
        self.shortcut = nn.AvgPool2d(3, stride, 1) if stride != (1, 1) else nn.Identity()
        self.adds = inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        return F.relu(y + self.shortcut(x) if self.adds else y)


def network(student: str) -> nn.Sequential:
    """Return the baseline's network; with `student` rep_mobile, its depthwise convolutions have parallel branches."""
    blocks = [Block(c, stride, student == "rep_mobile") for c, stride in zip(CHANNELS, STRIDES, strict=True)]
    return nn.Sequential(
        *convolution(1, 8, (3, 3), (2, 2)),
        nn.ReLU(),
        *convolution(8, 32, (3, 3), (2, 2)),
        nn.ReLU(),
        *blocks,
        *convolution(CHANNELS[-1][2], N_CLASSES, (1, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class WavFiles(Dataset):
    """Clips of 1 s: (waveform [S] at 44.1 kHz, filename, label, device), in training with a random circular shift."""

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[int], devices: Sequence[str], roll: bool):
        self.root, self.names, self.labels, self.devices, self.roll = root, names, labels, devices, roll

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, str, int, str]:
        samples, _ = soundfile.read(self.root / self.names[i], dtype="float32")
        x = torch.from_numpy(samples)
        if self.roll:
            limit = SOURCE_HZ // 10
            x = x.roll(int(np.random.randint(-limit, limit + 1)))
        return x, self.names[i], self.labels[i], self.devices[i]


class BaselineLoop:
    """Trains and validates the baseline's network; `teacher` maps filenames to logits `[C]` (None: labels alone)."""

    def __init__(
        self, student: str, train: WavFiles, validation: WavFiles, batch: int, workers: int, teacher: Mapping | None
    ):
        self.model, self.teacher = network(student), teacher
        kept = workers > 0  # the workers' start is left out: it would take much of the short epochs of a benchmark
        self.train_loader = DataLoader(train, batch, shuffle=True, num_workers=workers, persistent_workers=kept)
        self.validation_loader = DataLoader(validation, batch, num_workers=workers, persistent_workers=kept)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-3, weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / 2000) * 0.5 * (1 + math.cos(math.pi * step / 60_000))
        )
        self.mel = nn.Sequential(
            torchaudio.transforms.Resample(SOURCE_HZ, RATE_HZ),
            torchaudio.transforms.MelSpectrogram(RATE_HZ, 4096, 3072, 500, n_mels=256),
        )
        self.mask = torchaudio.transforms.FrequencyMasking(48, iid_masks=True)

    def features(self, waveforms: torch.Tensor, training: bool) -> torch.Tensor:
        """Return log-mels [B, 1, F, T]; in training with a masked band, and mixed statistics with probability 0.4."""
        power = self.mel(waveforms[:, None])
        x = ((self.mask(power) if training else power) + 1e-5).log()
        if training and np.random.rand() < 0.4:
            mean, std = x.mean(dim=(1, 3), keepdim=True), (x.var(dim=(1, 3), keepdim=True) + 1e-6).sqrt()
            weight = torch.distributions.Beta(0.3, 0.3).sample(torch.Size([len(x), 1, 1, 1]))
            other = torch.randperm(len(x))
            std_mixed = weight * std + (1 - weight) * std[other]
            x = (x - mean) / std * std_mixed + weight * mean + (1 - weight) * mean[other]
        return x

    def train_epoch(self) -> float:
        """Train one epoch and return the loss of its last batch."""
        self.model.train()
        last = math.nan
        for waveforms, names, labels, _ in self.train_loader:
            logits = self.model(self.features(waveforms, training=True))
            loss = F.cross_entropy(logits, labels, reduction="none").mean()
            if self.teacher is not None:
                theirs = torch.stack([self.teacher[name] for name in names])
                soft = F.kl_div(F.log_softmax(logits / 4, dim=1), F.softmax(theirs / 4, dim=1), reduction="batchmean")
                loss = 0.5 * loss + 0.5 * 16 * soft
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            last = loss.item()
        return last

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the mean loss and accuracy of each device and each class."""
        self.model.eval()
        batches = []
        for waveforms, _, labels, devices in self.validation_loader:
            logits = self.model(self.features(waveforms, training=False))
            losses = F.cross_entropy(logits, labels, reduction="none")
            correct = logits.argmax(dim=1) == labels
            sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
            for i, (label, device) in enumerate(zip(labels, devices, strict=True)):
                for group in (f"device {device}", f"class {label.item()}"):
                    sums[f"loss of {group}"] = sums[f"loss of {group}"] + losses[i]
                    sums[f"correct of {group}"] = sums[f"correct of {group}"] + correct[i]
                    sums[f"clips of {group}"] = sums[f"clips of {group}"] + 1
            batches.append(dict(sums))
        names = sorted({name for sums in batches for name in sums})
        totals = {name: torch.stack([s.get(name, torch.zeros(())) for s in batches]).sum().item() for name in names}
        groups = [name.removeprefix("clips of ") for name in totals if name.startswith("clips of ")]
        return {
            f"{what} of {group}": totals[f"{what} of {group}"] / totals[f"clips of {group}"]
            for group in groups
            for what in ("loss", "correct")
        }
