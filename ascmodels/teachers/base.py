"""Interface of all teachers: log-mel features `[B, 1, F, T]` -> embedding `[B, D]` -> logits `[B, n_classes]`.

Families: `ast` (ast.py), `vit` and `cnn` (timm.py); `ascmodels/teachers/__init__.py` builds, saves and loads them.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ascmodels.checkpoint import check_weights, stored_shapes
from ascmodels.config.teacher import TeacherModelConfig

WEIGHTS = "model.safetensors"


class Teacher(nn.Module, ABC):
    """Base class of teachers: networks from log-mel features `[B, 1, F, T]` to logits `[B, n_classes]`.

    A subclass sets `network`, a network of `transformers` or timm, and `embedding_size`, the size of its embedding.
    """

    network: Any
    embedding_size: int

    def __init__(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int):
        super().__init__()
        self.config, self.n_classes, self.n_mels, self.frames = config, n_classes, n_mels, frames

    def describe(self) -> dict[str, Any]:
        """Return a dict of JSON values from which `load` builds this network again.

        `load` does not need the pretrained checkpoint from which this network was built.
        """
        config = asdict(replace(self.config, pretrained=None))
        return {"config": config, "n_classes": self.n_classes, "n_mels": self.n_mels, "frames": self.frames}

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embedding `[B, embedding_size]` before the classifier, for log-mel features `x [B, 1, F, T]`."""

    @abstractmethod
    def depths(self) -> dict[str, int]:
        """Return the number of the layer to which each parameter belongs, by parameter name (0: nearest to the input).

        Layer-wise learning-rate decay uses these numbers.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the weights of this network to the existing `folder`, in the files that `load` reads."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> "Teacher":
        """Return the teacher whose weights `save` wrote to `folder`, and whose `describe` returned `description`."""


class RebuiltTeacher(Teacher):
    """Base class of teachers whose constructor builds `network` from its arguments alone; it maps features to logits.

    The weights are saved as one safetensors file.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def save(self, folder: Path) -> None:
        weights = {k: v.contiguous() for k, v in self.network.state_dict().items()}
        safetensors.torch.save_file(weights, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> "RebuiltTeacher":
        # without `pretrained`, which could name another file, or weights on a hub: the folder alone gives the weights
        d, config = description, replace(TeacherModelConfig(**description["config"]), pretrained=None)
        if config.layers > (n_tensors := len(stored_shapes(folder / WEIGHTS))):
            raise ValueError(
                f"teacher.json describes model.config.layers={config.layers}, but {WEIGHTS} has only {n_tensors} "
                "tensors; expected at least one for each layer"
            )
        with torch.device("meta"):  # takes no memory, also if the description declares huge sizes
            check_weights(cls(config, d["n_classes"], d["n_mels"], d["frames"]).network, folder / WEIGHTS)
        with torch.random.fork_rng(devices=[]):  # the new random weights are overwritten below
            teacher = cls(config, d["n_classes"], d["n_mels"], d["frames"])
        teacher.network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        return teacher
