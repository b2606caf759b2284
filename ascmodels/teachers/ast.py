"""Teachers of family `ast`: the Audio Spectrogram Transformer (Gong et al. 2021) through `transformers`.

The network is built from the sizes in `TeacherModelConfig`, or loaded with `from_pretrained` from the Hugging Face hub
or a local folder. The positional embedding of a pretrained network is interpolated to the number of input frames, as in
the paper.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from ascmodels.checkpoint import CheckpointError, stored_shapes
from ascmodels.teachers.base import Teacher, TeacherModelConfig

if TYPE_CHECKING:
    from transformers import ASTForAudioClassification


class AST(Teacher):
    """Audio Spectrogram Transformer over square patches of a spectrogram, with a class and a distillation token.

    The patches overlap if `config.stride` is below `config.patch_size`. `network` is a network of `transformers` that
    is used as it is; with None, a network is built from `config`.
    """

    def __init__(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int, network: Any = None):
        super().__init__(config, n_classes, n_mels, frames)
        self.network = network or _network(config, n_classes, n_mels, frames)
        self.embedding_size = self.network.config.hidden_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(_spectra(x)).logits

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.audio_spectrogram_transformer(_spectra(x)).pooler_output  # mean of the two tokens

    def depths(self) -> dict[str, int]:
        n_layers = self.network.config.num_hidden_layers

        def depth(name: str) -> int:
            if ".embeddings." in name:
                return 0
            layer = re.search(r"\.layers?\.(\d+)\.", name)
            if layer:
                return 1 + int(layer[1])
            return n_layers + (".classifier." in name)  # the final norm counts as part of the last layer, as in timm

        return {name: depth(name) for name, _ in self.named_parameters()}

    def save(self, folder: Path) -> None:
        self.network.save_pretrained(folder)  # config.json and model.safetensors, which `transformers` can read

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> "AST":
        from transformers import ASTConfig, ASTForAudioClassification

        # `local_files_only`: a teacher's folder decides on no download (bandit B615)
        config: Any = ASTConfig.from_pretrained(folder, local_files_only=True)
        stored = stored_shapes(folder / "model.safetensors")
        if config.num_hidden_layers > len(stored):
            raise ValueError(
                f"config.json describes num_hidden_layers={config.num_hidden_layers}, but model.safetensors has only "
                f"{len(stored)} tensors; expected at least one for each layer"
            )
        with torch.device("meta"):  # takes no memory, whatever sizes the file declares
            needed = sum(x.numel() for x in ASTForAudioClassification(config).state_dict().values())
        if needed > (there := sum(map(math.prod, stored.values()))):
            raise ValueError(
                f"config.json describes a network of {needed:,} weights, but model.safetensors has only {there:,}"
            )
        network = ASTForAudioClassification.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True
        )
        described = TeacherModelConfig(**description["config"])
        return cls(described, config.num_labels, config.num_mel_bins, config.max_length, network)


def _spectra(x: torch.Tensor) -> torch.Tensor:
    return x.squeeze(1).transpose(1, 2)  # [B, 1, F, T] -> [B, T, F], the input of AST


def _network(config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> "ASTForAudioClassification":
    from transformers import ASTConfig, ASTForAudioClassification  # imported here: it takes seconds

    if not config.pretrained:
        if config.patch_size > min(n_mels, frames):
            raise CheckpointError(
                f"teacher.model.patch_size={config.patch_size} does not fit {n_mels} mel bins x {frames} frames: "
                "expected at most the smaller one of these two numbers; reduce teacher.model.patch_size, raise "
                "teacher.frontend.n_mels, or reduce teacher.frontend.hop_length (more frames)"
            )
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
        return ASTForAudioClassification(shape)
    try:
        # the user names the network, of which only weights are loaded, no code and no pickle (bandit B615: no revision)
        network = ASTForAudioClassification.from_pretrained(
            config.pretrained, num_labels=n_classes, ignore_mismatched_sizes=True, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"teacher.model.pretrained={config.pretrained!r} is neither a local folder with an AST checkpoint "
            f"nor a hub name (Hugging Face) of an AST network that can be reached ({error}): correct the key, or set "
            "it to null for random weights"
        ) from error
    if network.config.num_mel_bins != n_mels:
        raise CheckpointError(
            f"teacher.frontend.n_mels={n_mels}, but teacher.model.pretrained={config.pretrained!r} expects "
            f"{network.config.num_mel_bins} mel bins: set teacher.frontend.n_mels={network.config.num_mel_bins}"
        )
    return fit_frames(network, frames)


def fit_frames(network: "ASTForAudioClassification", frames: int) -> "ASTForAudioClassification":
    """Change `network` to take inputs of `frames` frames, and return it.

    Its positional embedding is interpolated along time, in place.
    """
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
