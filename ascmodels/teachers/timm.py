"""Teachers of families `vit` and `cnn`: timm's vision transformers and convolutional networks on spectrograms.

All networks have one input channel; for pretrained networks, timm sums the first layer's weights over the colour
channels. The patches of a ViT may overlap. Its pretrained positional embedding is interpolated to the grid of patches.
It has one entry per patch, as in DeiT; that of PaSST's published weights is converted (passt.py). Patchout drops
random rows and columns of patches in training, as in PaSST.
"""

import difflib
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from ascmodels.checkpoint import CheckpointError, load_tensors
from ascmodels.teachers.base import WEIGHTS, RebuiltTeacher, TeacherModelConfig
from ascmodels.teachers.passt import for_deit, is_passt

# timm is imported inside functions: its import takes seconds, and most trials do not need it


class _TimmTeacher(RebuiltTeacher):
    def __init__(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int):
        network, name = self._build(config, n_classes, n_mels, frames)
        super().__init__(replace(config, name=name), n_classes, n_mels, frames)
        self.network = network
        self.eval()
        try:
            with torch.no_grad():
                self.embedding_size = self.features(torch.zeros(1, 1, n_mels, frames)).shape[1]
        except (RuntimeError, AssertionError) as error:
            raise CheckpointError(
                f"teacher.model.name={name!r} (family {config.family}) cannot process features of {n_mels} mel bins x "
                f"{frames} frames ({str(error).splitlines()[0]}): change teacher.model.name or teacher.frontend"
            ) from error
        self.train()
        if config.pretrained:
            self._check_rebuildable()

    def _build(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> tuple[Any, str]:
        raise NotImplementedError

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True)

    def depths(self) -> dict[str, int]:
        from timm.models import group_parameters

        found = group_parameters(self.network, self.network.group_matcher(coarse=False), reverse=True)
        return {f"network.{name}": int(depth) for name, depth in found.items()}  # type: ignore[union-attr]

    def _check_rebuildable(self) -> None:
        """Raise CheckpointError if `load` could not build this pretrained network again from the result of `describe`.

        The config.json of a pretrained checkpoint can change arguments of the architecture that `describe` does not
        return. The check is made before the fine-tuning, so that no training is lost.
        """
        plain = replace(self.config, pretrained=None)
        rebuilt, _ = self._build(plain, self.n_classes, self.n_mels, self.frames)
        if _shapes(rebuilt) != _shapes(self.network):
            raise CheckpointError(
                f"teacher.model.pretrained={self.config.pretrained!r} has a config.json that changes the "
                f"architecture; expected {self.config.name} as timm defines it: use another checkpoint"
            )


class SpectrogramViT(_TimmTeacher):
    """Teacher of family vit: a `VisionTransformer` of timm (also DeiT) over the patches of a spectrogram."""

    def _build(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> tuple[Any, str]:
        from timm.layers.pos_embed import resample_abs_pos_embed
        from timm.models.vision_transformer import VisionTransformer

        if config.name or config.pretrained:
            rates = {"proj_drop_rate": config.dropout, "attn_drop_rate": config.dropout}
            dropouts = rates if config.dropout else {}  # not all architectures accept these arguments
            network, name = _timm_network(config, n_classes, dropouts, (n_mels, frames))
        else:
            network, name = (
                VisionTransformer(
                    img_size=(max(n_mels, config.patch_size), max(frames, config.patch_size)),
                    patch_size=config.patch_size,
                    in_chans=1,
                    num_classes=n_classes,
                    embed_dim=config.hidden_size,
                    depth=config.layers,
                    num_heads=config.heads,
                    proj_drop_rate=config.dropout,
                    attn_drop_rate=config.dropout,
                ),
                "",
            )
        if not isinstance(network, VisionTransformer) or network.pos_embed is None:
            raise CheckpointError(
                f"teacher.model.name={name!r} is not a VisionTransformer of timm with a positional embedding, which "
                "family vit needs; for a convolutional network set teacher.model.family=cnn"
            )
        vit: Any = network
        embed = vit.patch_embed
        grid = patch_grid(n_mels, frames, int(embed.patch_size[0]), config.stride)
        n_prefix = vit.num_prefix_tokens
        n_placed = 0 if vit.no_embed_class else n_prefix  # prefix tokens with a positional embedding
        if config.pretrained:
            old = list(embed.grid_size)
            positions = resample_abs_pos_embed(vit.pos_embed.data, list(grid), old, n_placed)  # type: ignore[operator]
        else:
            positions = nn.init.trunc_normal_(torch.empty(1, n_placed + math.prod(grid), vit.embed_dim), std=0.02)
        vit.pos_embed = nn.Parameter(positions)
        vit.dynamic_img_size, embed.strict_img_size, embed.flatten = False, True, True  # all clips have the same size
        embed.proj.stride = (config.stride, config.stride)
        embed.img_size, embed.grid_size, embed.num_patches = (n_mels, frames), grid, math.prod(grid)
        vit.patch_drop = Patchout(grid, config.patchout_freq, config.patchout_time, n_prefix)
        return vit, name


class Patchout(nn.Module):
    """Structured patchout: in training, each batch loses `freq` random rows and `time` random columns of patches.

    All clips of a batch lose the same rows and columns, which are drawn with torch's global random generator. `grid` is
    the number of rows (frequency) and columns (time) of patches; the first `n_prefix` tokens belong to no patch.
    """

    def __init__(self, grid: tuple[int, int], freq: int, time: int, n_prefix: int):
        super().__init__()
        if freq >= grid[0] or time >= grid[1]:
            raise CheckpointError(
                f"teacher.model.patchout_freq={freq}, teacher.model.patchout_time={time}: expected patchout_freq below "
                f"{grid[0]}, the rows of patches, and patchout_time below {grid[1]}, the columns; reduce them"
            )
        self.grid, self.freq, self.time, self.n_prefix = grid, freq, time, n_prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the prefix tokens (e.g. the class token) and the tokens of the patches that are not dropped.

        `x` holds all tokens `[B, n_prefix + rows * columns, D]`. In training, `freq` random rows and `time` random
        columns of patches are dropped: the result is `[B, n_prefix + (rows - freq) * (columns - time), D]`. In
        evaluation mode, the result is `x`.
        """
        if not self.training or not (self.freq or self.time):
            return x
        (rows, columns) = self.grid
        kept_rows = torch.randperm(rows)[self.freq :].sort().values
        kept_columns = torch.randperm(columns)[self.time :].sort().values
        patches = self.n_prefix + (columns * kept_rows[:, None] + kept_columns).flatten()
        return x[:, torch.cat([torch.arange(self.n_prefix), patches]).to(x.device)]


class CNN(_TimmTeacher):
    """Teacher of family cnn: a convolutional network of timm. Its embedding is the pooled feature map."""

    def _build(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> tuple[Any, str]:
        return _timm_network(config, n_classes, {"drop_rate": config.dropout})


def patch_grid(n_mels: int, frames: int, patch: int, stride: int) -> tuple[int, int]:
    """Return the numbers of (rows, columns) of patches in features of `n_mels` mel bins and `frames` frames.

    A patch is a square with side `patch`; neighbouring patches are `stride` bins or frames apart. CheckpointError if a
    patch is larger than the features, or if `stride` leaves gaps between patches.
    """
    if patch > min(n_mels, frames) or stride > patch:
        raise CheckpointError(
            f"patches of {patch} bins x {patch} frames with teacher.model.stride={stride} do not cover features of "
            f"{n_mels} mel bins x {frames} frames: expected stride <= patch size, and patches not larger than the "
            "features; change teacher.model.stride, teacher.model.patch_size or teacher.frontend.n_mels"
        )
    return (n_mels - patch) // stride + 1, (frames - patch) // stride + 1


def _timm_network(
    config: TeacherModelConfig, n_classes: int, extra: dict[str, Any], size: tuple[int, int] | None = None
) -> tuple[Any, str]:
    """Return a timm network with one input channel and `n_classes` outputs, and the name of its architecture.

    `extra` holds further arguments of `timm.create_model`. `size` is (mel bins, frames) of a ViT's features. A
    pretrained network is created with the classifier of its checkpoint, which is replaced afterwards. If the network
    were created with `n_classes` outputs, timm would silently ignore weights that do not fit the architecture.
    """
    import timm

    name, source = config.name, config.pretrained
    network: Any
    if name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "set it to one of timm.list_models()"
        raise CheckpointError(f"teacher.model.name={name!r} is not an architecture of timm; {hint}")
    if not source:
        return timm.create_model(name, in_chans=1, num_classes=n_classes, **extra), name
    if Path(source).suffix in (".pt", ".pth", ".safetensors") and not Path(source).exists():
        raise CheckpointError(
            f"teacher.model.pretrained={source!r} does not exist; expected the path of a weights file: download it "
            "from its authors (teacher=passt: https://github.com/kkoutini/PaSST/releases), and give its path"
        )
    try:
        if Path(source).is_file():
            network = _from_file(Path(source), config, extra, size)
        else:
            scheme = "local-dir" if Path(source).is_dir() else "hf-hub"
            network = timm.create_model(f"{scheme}:{source}", pretrained=True, in_chans=1, **extra)
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, SafetensorError, pickle.PickleError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"teacher.model.pretrained={source!r} cannot be used ({' '.join(str(error).split())[:300]}): expected a "
            f"folder with timm's config.json and {WEIGHTS}, a weights file of teacher.model.name={name!r}, or the name "
            "of a network on the Hugging Face hub that can be reached; correct it, or set it to null for random weights"
        ) from error
    found = network.pretrained_cfg["architecture"]
    if name and name != found:
        raise CheckpointError(
            f"teacher.model.pretrained={source!r} has the architecture {found}; expected teacher.model.name={name}: "
            f"set teacher.model.name={found}, or use another checkpoint"
        )
    network.reset_classifier(n_classes)
    return network, found


def _from_file(path: Path, config: TeacherModelConfig, extra: dict[str, Any], size: tuple[int, int] | None) -> Any:
    """Return the timm network `config.name` with one input channel, and all weights (also the classifier's) of `path`.

    `path` is a safetensors file, or a file of tensors that `torch.save` wrote. `extra` holds further arguments of
    `timm.create_model`. From the weights of PaSST, a ViT for features of `size` (mel bins, frames) is made, without a
    classifier.
    """
    import timm

    name, overlay = config.name, dict[str, Any]()
    if not name:
        raise CheckpointError(
            f"teacher.model.pretrained={path} is a weights file, but teacher.model.name is empty: expected timm's name "
            "of the architecture; set teacher.model.name"
        )
    weights = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    if size and is_passt(weights):
        patch = weights["patch_embed.proj.weight"].shape[-1]
        grid = patch_grid(*size, patch, config.stride)
        pixels = (patch * grid[0], patch * grid[1])
        weights, extra, overlay = for_deit(weights, grid), extra | {"img_size": pixels}, {"input_size": (1, *pixels)}
    classifier = timm.get_pretrained_cfg_value(name, "classifier")
    first = classifier if isinstance(classifier, str) else (classifier or [""])[0]
    n_classes = len(weights[f"{first}.bias"]) if f"{first}.bias" in weights else 0
    overlay |= {"state_dict": weights, "num_classes": n_classes, "custom_load": False}
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=n_classes, **extra
    )


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
