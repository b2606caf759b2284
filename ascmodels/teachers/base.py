"""Interface of all teachers: log-mels `[B, 1, F, T]` to logits `[B, C]`, with an embedding `[B, D]` before them.

Families: `ast` (ast.py), `vit` and `cnn` (timm.py); `ascmodels/teachers/__init__.py` builds, saves and loads them.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

FAMILIES = ("ast", "vit", "cnn")


@dataclass(frozen=True)
class TeacherModelConfig:
    """Network of a teacher. If `pretrained` or `name` is set, it gives the architecture, and the sizes are not used."""

    family: str = "ast"  # teacher family: ast, vit or cnn
    name: str = ""  # timm's architecture name (vit, cnn); empty: that of pretrained, or (vit) built from the sizes
    pretrained: str | None = None  # Hugging Face repo or folder (ast: transformers; else timm or a file); null: random
    hidden_size: int = 128  # embedding size of a transformer without pretrained weights; a multiple of heads
    layers: int = 4  # number of transformer layers without pretrained weights (at least 1)
    heads: int = 4  # number of attention heads per layer without pretrained weights (at least 1)
    patch_size: int = 8  # side of a square patch in mel bins and frames (at least 1; AST's paper uses 16)
    stride: int = 8  # mel bins and frames between patches, also for a named vit (at least 1; AST's paper: 10)
    dropout: float = 0.0  # dropout probability in training (from 0 to below 1)
    patchout_freq: int = 0  # patch rows (frequency) dropped from each training batch (vit only; 0: none)
    patchout_time: int = 0  # patch columns (time) dropped from each training batch (vit only; 0: none)

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"teacher.model.family={self.family!r}: expected one of {', '.join(FAMILIES)}")
        for name in ("hidden_size", "layers", "heads", "patch_size", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"teacher.model.{name}={getattr(self, name)}: expected an integer >= 1")
        if self.hidden_size % self.heads:
            raise ValueError(
                f"teacher.model.hidden_size={self.hidden_size} is not a multiple of heads={self.heads}: change it"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"teacher.model.dropout={self.dropout}: expected a probability in [0, 1)")
        if self.patchout_freq < 0 or self.patchout_time < 0:
            raise ValueError(
                f"teacher.model.patchout_freq={self.patchout_freq}, patchout_time={self.patchout_time}: "
                "expected integers >= 0"
            )
        if self.family == "ast" and (self.name or self.patchout_freq or self.patchout_time):
            raise ValueError(
                f"teacher.model.name={self.name!r}, patchout_freq={self.patchout_freq}, "
                f"patchout_time={self.patchout_time}: expected their defaults, as teacher.model.family=ast does not "
                "use them; remove them or set the family to vit or cnn"
            )
        if self.family == "cnn" and not (self.name or self.pretrained):
            raise ValueError(
                "teacher.model.name='': family cnn needs an architecture name of timm, e.g. "
                "resnet18, or teacher.model.pretrained"
            )


class Teacher(nn.Module, ABC):
    """Network from log-mel features `[B, 1, F, T]` to logits `[B, n_classes]`."""

    network: Any
    embedding_size: int

    def __init__(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int):
        super().__init__()
        self.config, self.n_classes, self.n_mels, self.frames = config, n_classes, n_mels, frames

    def describe(self) -> dict[str, Any]:
        """Return plain values from which the same network can be built again without its pretrained weights."""
        config = asdict(replace(self.config, pretrained=None))
        return {"config": config, "n_classes": self.n_classes, "n_mels": self.n_mels, "frames": self.frames}

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embedding `[B, embedding_size]` before the classifier."""

    @abstractmethod
    def depths(self) -> dict[str, int]:
        """Return parameter name -> layer number (0: the first layer), which layer-wise learning rates use."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the weights into `folder`."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> "Teacher":
        """Return the teacher whose weights `save` wrote into `folder`; `description` comes from `describe`."""
