"""Teachers of families `vit` and `cnn`: timm's vision transformers and convolutional networks on spectrograms.

Networks have one input channel (timm sums pretrained weights over the colour channels). The patches of a ViT may
overlap. A ViT's positional embedding is interpolated to the F x T grid of patches, one embedding per patch as in DeiT
(PaSST has one for frequency and one for time). Patchout drops rows and columns of patches in training (PaSST, Koutini
et al. 2022).
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
from ascmodels.teachers.base import Teacher, TeacherModelConfig

WEIGHTS = "model.safetensors"
# timm is imported inside functions because its import takes seconds, which trials without such a teacher save


class _TimmTeacher(Teacher):
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
                f"{frames} frames ({str(error).splitlines()[0]}): use another architecture or front-end"
            ) from error
        self.train()
        if config.pretrained:
            self._check_rebuildable()

    def _build(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> tuple[Any, str]:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True)

    def depths(self) -> dict[str, int]:
        from timm.models import group_parameters

        found = group_parameters(self.network, self.network.group_matcher(coarse=False), reverse=True)
        return {f"network.{name}": int(depth) for name, depth in found.items()}  # type: ignore[union-attr]

    def save(self, folder: Path) -> None:
        weights = {k: v.contiguous() for k, v in self.network.state_dict().items()}
        safetensors.torch.save_file(weights, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> "_TimmTeacher":
        d = description
        with torch.random.fork_rng(devices=[]):  # the new random weights are overwritten below
            teacher = cls(TeacherModelConfig(**d["config"]), d["n_classes"], d["n_mels"], d["frames"])
        teacher.network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        return teacher

    def _check_rebuildable(self) -> None:
        """Raise CheckpointError if the network cannot be built again from its configuration.

        The pretrained checkpoint may set arguments of its own; the error is raised here, before any fine-tuning.
        """
        plain = replace(self.config, pretrained=None)
        rebuilt, _ = self._build(plain, self.n_classes, self.n_mels, self.frames)
        if _shapes(rebuilt) != _shapes(self.network):
            raise CheckpointError(
                f"teacher.model.pretrained={self.config.pretrained!r} is not a plain {self.config.name}: its "
                "config.json changes the architecture, which is not supported; use a checkpoint that does not"
            )


class SpectrogramViT(_TimmTeacher):
    """A timm VisionTransformer or DeiT over the patches of a spectrogram."""

    def _build(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> tuple[Any, str]:
        from timm.layers.pos_embed import resample_abs_pos_embed
        from timm.models.vision_transformer import VisionTransformer

        if config.name or config.pretrained:
            rates = {"proj_drop_rate": config.dropout, "attn_drop_rate": config.dropout}
            dropouts = rates if config.dropout else {}  # other architectures do not have these arguments
            network, name = _timm_network(config, n_classes, dropouts)
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
                "family vit expects; for a convolutional network set teacher.model.family=cnn"
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
    """Structured patchout: in training, `freq` rows and `time` columns of patches are dropped from each batch.

    They are drawn from torch's random generator, as for dropout.
    """

    def __init__(self, grid: tuple[int, int], freq: int, time: int, n_prefix: int):
        super().__init__()
        if freq >= grid[0] or time >= grid[1]:
            raise CheckpointError(
                f"teacher.model.patchout_freq={freq}, patchout_time={time}: expected fewer than the "
                f"{grid[0]} x {grid[1]} patches of a clip (frequency x time)"
            )
        self.grid, self.freq, self.time, self.n_prefix = grid, freq, time, n_prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop tokens: `[B, n_prefix + rows * columns, D]` to `[B, n_prefix + (rows - freq) * (columns - time), D]`."""
        if not self.training or not (self.freq or self.time):
            return x
        (rows, columns) = self.grid
        kept_rows = torch.randperm(rows)[self.freq :].sort().values
        kept_columns = torch.randperm(columns)[self.time :].sort().values
        patches = self.n_prefix + (columns * kept_rows[:, None] + kept_columns).flatten()
        return x[:, torch.cat([torch.arange(self.n_prefix), patches]).to(x.device)]


class CNN(_TimmTeacher):
    """A convolutional network of timm; its embedding is the pooled feature map before the classifier."""

    def _build(self, config: TeacherModelConfig, n_classes: int, n_mels: int, frames: int) -> tuple[Any, str]:
        return _timm_network(config, n_classes, {"drop_rate": config.dropout})


def patch_grid(n_mels: int, frames: int, patch: int, stride: int) -> tuple[int, int]:
    """Return the number of rows and columns of square patches of side `patch`, `stride` bins or frames apart."""
    if patch > min(n_mels, frames) or stride > patch:
        raise CheckpointError(
            f"patches of {patch} bins x {patch} frames with teacher.model.stride={stride} do not cover features of "
            f"{n_mels} mel bins x {frames} frames: expected stride <= patch <= bins and frames"
        )
    return (n_mels - patch) // stride + 1, (frames - patch) // stride + 1


def _timm_network(config: TeacherModelConfig, n_classes: int, extra: dict[str, Any]) -> tuple[Any, str]:
    """Return timm's network with `n_classes` outputs, and its name.

    Pretrained weights are loaded strictly, including the classifier, which is then replaced. Otherwise timm silently
    ignores weights of another architecture if the number of classes differs.
    """
    import timm

    name, source = config.name, config.pretrained
    network: Any
    if name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
        raise CheckpointError(f"teacher.model.name={name!r} is not an architecture of timm; {hint}")
    if not source:
        return timm.create_model(name, in_chans=1, num_classes=n_classes, **extra), name
    try:
        if Path(source).is_file():
            network = _from_file(Path(source), name, extra)
        else:
            scheme = "local-dir" if Path(source).is_dir() else "hf-hub"
            network = timm.create_model(f"{scheme}:{source}", pretrained=True, in_chans=1, **extra)
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, SafetensorError, pickle.PickleError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"teacher.model.pretrained={source!r} cannot be used: expected a folder with timm's config.json and "
            f"{WEIGHTS}, a weights file of teacher.model.name={name!r}, or a hub name that can be reached "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    found = network.pretrained_cfg["architecture"]
    if name and name != found:
        raise CheckpointError(
            f"teacher.model.pretrained={source!r} has the architecture {found}; expected teacher.model.name={name}: "
            "change one of them"
        )
    network.reset_classifier(n_classes)
    return network, found


def _from_file(path: Path, name: str, extra: dict[str, Any]) -> Any:
    """Return timm's network `name` with the weights in `path` (safetensors, or a `torch.save` file of tensors)."""
    import timm

    if not name:
        raise CheckpointError(
            f"teacher.model.pretrained={path} is a weights file, but teacher.model.name is empty: set it to timm's "
            "name of the architecture"
        )
    weights = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    classifier = timm.get_pretrained_cfg_value(name, "classifier")
    first = classifier if isinstance(classifier, str) else (classifier or [""])[0]
    n_classes = len(weights[f"{first}.bias"]) if f"{first}.bias" in weights else 0
    overlay = {"state_dict": weights, "num_classes": n_classes, "custom_load": False}
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=n_classes, **extra
    )


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
