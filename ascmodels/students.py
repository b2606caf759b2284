"""CP-Mobile and Rep-Mobile: inverted-bottleneck students for 1 s log-mel spectrograms, `[B, 1, F, T] -> [B, 10]`.

CP-Mobile: Schmid et al. 2023, "Efficient acoustic scene classification with CP-Mobile" (DCASE challenge), in the form
of the DCASE 2024 Task 1 baseline. Rep-Mobile (arXiv 2410.20775): the same topology whose depthwise (and, optionally,
stem) convolutions are `RepConv2d`, fused for deployment. One class serves both: an empty branch set is CP-Mobile.

A network is its `StudentConfig` (topology) plus its `Widths` (channels per layer). Pruning only changes widths, so a
pruned network is built from its description like any other.
"""

import copy
import re
from dataclasses import dataclass

import torch
from torch import nn

from ascmodels.repconv import RepConv2d, check_branches, fused_kernel


@dataclass(frozen=True)
class StudentConfig:
    """Topology of one student."""

    base_channels: int = 32  # channels after the stem
    channels_multiplier: float = 1.8  # growth from stage to stage
    expansion_rate: float = 2.1  # inner over input channels of a block
    n_blocks: tuple[int, ...] = (3, 2, 1)  # blocks per stage
    # block:frequencyxtime; blocks are counted b1, b2, ... over all stages; one that is absent has stride 1x1
    strides: tuple[str, ...] = ("b3:1x2", "b4:2x1")
    grn: bool = False  # global response normalisation after each block
    branches: tuple[str, ...] = ()  # RepConv branches of the depthwise convolutions; none: CP-Mobile
    rep_stem: bool = False  # the stem's two convolutions take the branches too

    def __post_init__(self):
        object.__setattr__(self, "n_blocks", tuple(int(n) for n in self.n_blocks))
        object.__setattr__(self, "strides", tuple(sorted(self.strides)))
        object.__setattr__(self, "branches", check_branches(self.branches))
        for name in ("base_channels", "channels_multiplier", "expansion_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"student.{name}={getattr(self, name)}: expected a number above 0")
        if not self.n_blocks or min(self.n_blocks) < 1:
            raise ValueError(f"student.n_blocks={self.n_blocks}: expected at least one block in each stage")
        names = [f"b{i + 1}" for i in range(sum(self.n_blocks))]
        unknown = sorted(set(self.block_strides) - set(names))
        if unknown:
            raise ValueError(f"student.strides names {unknown[0]!r}; this network has the blocks {', '.join(names)}")
        if self.branches == ("identity",):
            raise ValueError("student.branches=('identity',) alone cannot learn: add a convolution branch")
        if self.rep_stem and not self.branches:
            raise ValueError("student.rep_stem=True needs student.branches, e.g. [3x3, 1x1]")

    @property
    def family(self) -> str:
        return "rep_mobile" if self.branches else "cp_mobile"

    @property
    def block_strides(self) -> dict[str, tuple[int, int]]:
        """(frequency, time) stride by block name, for the blocks that have one."""
        strides = {}
        for entry in self.strides:
            match = re.fullmatch(r"(b\d+):([1-9])x([1-9])", entry)
            if not match or match[1] in strides:
                raise ValueError(f"student.strides: {entry!r} is not block:FxT (e.g. b3:1x2), or names a block again")
            strides[match[1]] = (int(match[2]), int(match[3]))
        return strides


@dataclass(frozen=True)
class Widths:
    """Channels of every layer: what pruning changes. `expand` and `out` hold one number for each block."""

    stem: tuple[int, int]
    expand: tuple[int, ...]
    out: tuple[int, ...]

    def __post_init__(self):
        for name in ("stem", "expand", "out"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, never more than 10 % below it (the MobileNet rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def dense_widths(config: StudentConfig) -> Widths:
    """Channels of the network before any pruning."""
    base = make_divisible(config.base_channels)
    stages = [make_divisible(base * config.channels_multiplier**i) for i in range(len(config.n_blocks))]
    expand, out, current = [], [], base
    for channels, n_blocks in zip(stages, config.n_blocks, strict=True):
        for _ in range(n_blocks):
            expand.append(make_divisible(current * config.expansion_rate))
            out.append(channels)
            current = channels
    return Widths((base // 4, base), tuple(expand), tuple(out))


class GRN(nn.Module):
    """Global response normalisation over channels with one scale and one shift (Woo et al. 2023, ConvNeXt V2)."""

    def __init__(self):
        super().__init__()
        # named as torchinfo expects, so that NeSsi counts them: the published figures of CP-Mobile with GRN do
        self.weight = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        energy = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)  # [B, C, 1, 1]
        response = energy / (energy.mean(dim=1, keepdim=True) + 1e-6)
        return self.weight * (x * response) + self.bias + x


class Block(nn.Module):
    """Expand 1x1, depthwise, project 1x1, each with BN; shortcut (average-pooled where strided); activation."""

    def __init__(self, config: StudentConfig, channels: tuple[int, int, int], stride, shortcut: bool, fused: bool):
        super().__init__()
        inputs, inner, outputs = channels
        self.expand = nn.Sequential(*_conv_bn(inputs, inner, 1), nn.ReLU())
        self.depthwise = nn.Sequential(*_spatial(config.branches, inner, inner, stride, inner, fused), nn.ReLU())
        self.project = nn.Sequential(*_conv_bn(inner, outputs, 1))
        self.shortcut: nn.Module | None = None
        if shortcut:
            self.shortcut = nn.Identity() if stride == (1, 1) else nn.AvgPool2d(3, stride, padding=1)
        self.norm = GRN() if config.grn else nn.Identity()
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return self.activation(self.norm(y))


class Student(nn.Module):
    """Log-mel features `[B, 1, F, T]` to logits `[B, n_classes]`; `fused` builds the deployed form of Rep-Mobile."""

    def __init__(self, config: StudentConfig, n_classes: int = 10, widths: Widths | None = None, fused: bool = False):
        super().__init__()
        dense = dense_widths(config)
        widths = widths or dense
        if len(widths.out) != len(dense.out) or len(widths.expand) != len(dense.expand):
            raise ValueError(f"widths for {len(widths.out)} blocks given to a network of {len(dense.out)} blocks")
        self.config, self.n_classes, self.fused = config, n_classes, fused
        stem_branches = config.branches if config.rep_stem else ()
        self.stem = nn.Sequential(
            *_spatial(stem_branches, 1, widths.stem[0], (2, 2), 1, fused),
            nn.ReLU(),
            *_spatial(stem_branches, widths.stem[0], widths.stem[1], (2, 2), 1, fused),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential()
        # a shortcut belongs to the topology: it follows the dense widths, so that pruning never adds or removes one
        ins, dense_ins = (widths.stem[1], *widths.out), (dense.stem[1], *dense.out)
        for i, inner in enumerate(widths.expand):
            stride = config.block_strides.get(f"b{i + 1}", (1, 1))
            channels = (ins[i], inner, widths.out[i])
            block = Block(config, channels, stride, dense_ins[i] == dense.out[i], fused)
            self.blocks.add_module(f"b{i + 1}", block)
        self.classifier = nn.Sequential(nn.Conv2d(widths.out[-1], n_classes, 1, bias=False), nn.BatchNorm2d(n_classes))
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.blocks(self.stem(x))).mean(dim=(2, 3))

    @property
    def widths(self) -> Widths:
        """Channels as they are now, read from the layers (pruning changes them in place)."""
        convs = [m for m in self.stem if isinstance(m, nn.Conv2d | RepConv2d)]
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        return Widths(
            tuple(_out_channels(c) for c in convs),  # type: ignore[arg-type]
            tuple(_out_channels(b.expand[0]) for b in blocks),
            tuple(_out_channels(b.project[0]) for b in blocks),
        )

    def fuse(self) -> "Student":
        """A copy in its deployed form: every RepConv one convolution with bias, in evaluation mode."""
        deployed = copy.deepcopy(self).eval()
        for name, module in self.named_modules():
            if isinstance(module, RepConv2d):
                deployed.set_submodule(name, module.fuse())
        deployed.fused = True
        return deployed

    def rebuilt(self) -> "Student":
        """The same network built afresh from its description: pruned tensors get the layout of new ones, so that
        a run that was restored from a checkpoint computes bit for bit what an uninterrupted one does."""
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
            fresh = Student(self.config, self.n_classes, self.widths, self.fused)
        fresh.load_state_dict(self.state_dict())
        return fresh.train(self.training)


def _conv_bn(inputs: int, outputs: int, kernel: int, stride=(1, 1), groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _spatial(branches: tuple[str, ...], inputs: int, outputs: int, stride, groups: int, fused: bool) -> list[nn.Module]:
    """A 3x3 convolution + BN, or RepConv branches, or what they fuse into."""
    if not branches:
        return _conv_bn(inputs, outputs, 3, stride, groups)
    if not fused:
        return [RepConv2d(inputs, outputs, branches, stride, groups)]
    height, width = fused_kernel(branches)
    return [nn.Conv2d(inputs, outputs, (height, width), stride, (height // 2, width // 2), groups=groups)]


def _out_channels(layer: nn.Module) -> int:
    if isinstance(layer, RepConv2d):
        return next(iter(layer.branches.values()))[-1].num_features  # type: ignore[index]
    return layer.out_channels  # type: ignore[return-value]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
