"""What every teacher is: log-mels `[B, 1, F, T]` to logits `[B, C]`, with an embedding `[B, D]` before the classifier.

The families: `ast` (teacher_ast.py), `vit` and `cnn` (teacher_timm.py); teachers.py builds, saves and loads them.
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
    """A teacher's network; with `pretrained` or `name`, their shape is used instead of the sizes."""

    family: str = "ast"
    name: str = ""  # timm's name of the architecture (vit, cnn); a vit without one has the sizes below
    pretrained: str | None = None  # hub name (timm/resnet18.a1_in1k), folder, or weights file of `name`
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    patch_size: int = 8  # bins and frames; AST's own is 16
    stride: int = 8  # bins and frames between patches, also of a named vit; AST's own is 10
    dropout: float = 0.0
    patchout_freq: int = 0  # rows of patches left out of each training batch (vit)
    patchout_time: int = 0  # columns

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"teacher.model.family={self.family!r}: expected one of {', '.join(FAMILIES)}")
        for name in ("hidden_size", "layers", "heads", "patch_size", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"teacher.model.{name}={getattr(self, name)}: expected a whole number >= 1")
        if self.hidden_size % self.heads:
            raise ValueError(f"teacher.model.hidden_size={self.hidden_size} is not a multiple of heads={self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"teacher.model.dropout={self.dropout}: expected a share in [0, 1)")
        if self.patchout_freq < 0 or self.patchout_time < 0:
            raise ValueError(
                f"teacher.model.patchout_freq={self.patchout_freq}, patchout_time={self.patchout_time}: "
                "expected whole numbers >= 0"
            )
        if self.family == "ast" and (self.name or self.patchout_freq or self.patchout_time):
            raise ValueError(
                f"teacher.model.name={self.name!r} and patchout are of the families vit and cnn; family is ast"
            )
        if self.family == "cnn" and not (self.name or self.pretrained):
            raise ValueError("teacher.model.name is empty: a cnn needs timm's name of its architecture")


class Teacher(nn.Module, ABC):
    """Log-mel features `[B, 1, F, T]` to logits `[B, n_classes]`."""

    network: Any
    embedding_size: int

    def __init__(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int):
        super().__init__()
        self.config, self.n_classes, self.n_mels, self.frames = config, n_classes, n_mels, frames

    def describe(self) -> dict[str, Any]:
        """Plain values from which the untrained network can be built again, without what it was pretrained from."""
        config = asdict(replace(self.config, pretrained=None))
        return {"config": config, "n_classes": self.n_classes, "n_mels": self.n_mels, "frames": self.frames}

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The embedding `[B, embedding_size]` that the classifier sees."""

    @abstractmethod
    def depths(self) -> dict[str, int]:
        """Parameter name -> layer, 0 the first; what layer-wise learning rates follow."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the weights into `folder`."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> "Teacher":
        """What `save` wrote; `description` is `describe`'s."""
