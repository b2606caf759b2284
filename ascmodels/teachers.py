"""Transformer teachers: the Audio Spectrogram Transformer (AST, Gong et al. 2021) through `transformers`.

Built small from its config, or loaded with `from_pretrained` from a hub name or a local folder; a pretrained network's
positional embedding is then fitted to our number of frames, as its paper does.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from ascmodels.checkpoint import CheckpointError, replace_folder

if TYPE_CHECKING:
    from transformers import ASTForAudioClassification


@dataclass(frozen=True)
class TeacherModelConfig:
    """Shape of an AST; with `pretrained`, the checkpoint's own shape is used instead."""

    pretrained: str | None = None  # hub name (MIT/ast-finetuned-audioset-10-10-0.4593) or local folder
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    patch_size: int = 8  # bins and frames; AST's own is 16
    stride: int = 8  # bins and frames between patches; AST's own is 10
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("hidden_size", "layers", "heads", "patch_size", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"teacher.model.{name}={getattr(self, name)}: expected a whole number >= 1")
        if self.hidden_size % self.heads:
            raise ValueError(f"teacher.model.hidden_size={self.hidden_size} is not a multiple of heads={self.heads}")


class Teacher(nn.Module):
    """Log-mel features `[B, 1, F, T]` to logits `[B, n_classes]`."""

    def __init__(self, network: "ASTForAudioClassification"):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.squeeze(1).transpose(1, 2)).logits  # AST takes [B, T, F]


def build_teacher(config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> Teacher:
    """A teacher for features [B, 1, n_mels, frames]: pretrained where one is named, else freshly initialised."""
    from transformers import ASTConfig, ASTForAudioClassification  # here: seconds that a trial need not spend

    if not config.pretrained:
        shape = ASTConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.hidden_size,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            patch_size=config.patch_size,
            frequency_stride=config.stride,
            time_stride=config.stride,
            num_mel_bins=n_mels,
            max_length=frames,
        )
        shape.num_labels = n_classes
        return Teacher(ASTForAudioClassification(shape))
    try:
        network = ASTForAudioClassification.from_pretrained(
            config.pretrained, num_labels=n_classes, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"teacher.model.pretrained={config.pretrained!r} is neither a local folder with an AST checkpoint "
            f"nor a hub name that can be reached: {error}"
        ) from error
    if network.config.num_mel_bins != n_mels:
        raise CheckpointError(
            f"{config.pretrained} wants {network.config.num_mel_bins} mel bins, "
            f"teacher.frontend.n_mels is {n_mels}: set it to the checkpoint's"
        )
    return Teacher(fit_frames(network, frames))


def fit_frames(network: "ASTForAudioClassification", frames: int) -> "ASTForAudioClassification":
    """`network` with its positional embedding interpolated in time to `frames` input frames."""
    config = network.config
    if config.max_length == frames:
        return network

    def patches(size: int, stride: int) -> int:
        assert isinstance(config.patch_size, int)
        return (size - config.patch_size) // stride + 1

    rows = patches(config.num_mel_bins, config.frequency_stride)
    old, new = patches(config.max_length, config.time_stride), patches(frames, config.time_stride)
    embeddings = network.audio_spectrogram_transformer.embeddings
    tokens, grid = embeddings.position_embeddings.data.split([2, rows * old], dim=1)  # 2: class and distillation
    grid = grid.reshape(1, rows, old, -1).permute(0, 3, 1, 2)  # [1, hidden, rows, time]
    grid = nn.functional.interpolate(grid, size=(rows, new), mode="bilinear", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(1, rows * new, -1)
    embeddings.position_embeddings = nn.Parameter(torch.cat([tokens, grid], dim=1))
    config.max_length = frames
    return network


def save_teacher(folder: Path, teacher: Teacher, extra: dict[str, Any]) -> None:
    """Weights and config in `transformers`' format, `teacher.json` with class names, front-end and figures."""

    def write(beside: Path) -> None:
        teacher.network.save_pretrained(beside)
        (beside / "teacher.json").write_text(json.dumps(extra, indent=1))

    replace_folder(folder, write)


def load_teacher(folder: Path, classes: tuple[str, ...]) -> tuple[Teacher, dict[str, Any]]:
    """The teacher of `folder` and its `extra`; CheckpointError when missing, damaged or for other classes."""
    from transformers import ASTForAudioClassification

    try:
        extra = json.loads((folder / "teacher.json").read_text())
        found = tuple(extra["classes"])
        if found != classes:
            raise CheckpointError(f"teacher {folder} knows the classes {found}; expected {classes}")
        network = ASTForAudioClassification.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"no teacher checkpoint in {folder}: {error}") from error
    return Teacher(network).eval(), extra
