"""TF-SepNet: students with one-dimensional kernels, half of them along frequency and half along time.

Cai, Zhang, Li, "TF-SepNet: An Efficient 1D Kernel Design in CNNs for Low-Complexity Acoustic Scene Classification"
(ICASSP 2024, arXiv 2309.08200), implemented from its section 2 and table 1. The C of TF-SepNet-C is
`student.base_channels`, which is rounded to a multiple of 4.

A module (TF-SepConvs in the paper) has two paths: one along frequency, one along time. The paper shuffles channels
between modules, as ShuffleNet does, so that each path of a module receives half of each path of the previous module.
This file does not permute channels. It divides the channels of a stage with M modules into 2^M parts, which are pruned
separately. Bit m of a part's number is the path of the part in module m (0: frequency, 1: time). So if pruning removes
channels from a part, all other channels keep their paths. If all parts have the same size, the result is that of the
shuffle, except for the order of the channels.
"""

import torch
from torch import nn

from ascmodels.students.base import (
    ACTIVATIONS,
    Student,
    StudentConfig,
    Widths,
    activation_layer,
    conv_bn,
    initialise,
    make_divisible,
)

STAGES = ((1.0, 2), (1.5, 2), (2.0, 2), (2.5, 3))  # (width / base_channels, number of modules) of each stage; table 1
POOLED = (0, 1)  # stages that are followed by 2x2 max pooling
STEM_EXPANSION = 4  # output channels per input channel of the stem's second convolution, from C/2 to 2C


def part_sizes(width: int, n_modules: int) -> tuple[int, ...]:
    """Return the number of channels of each part of a stage with `width` channels and M = `n_modules` modules.

    Each module sends one half of the channels through its frequency path and the other half through its time path.
    Channels with the same sequence of M paths are a part, so there are 2^M parts. Their sizes are as equal as possible.
    """
    kinds = 2 ** (n_modules - 1)  # a part and its complement (always on the other path) have the same size
    half = [width // 2 // kinds + (i < width // 2 % kinds) for i in range(kinds)]
    return (*half, *reversed(half))


def dense_widths(config: StudentConfig) -> Widths:
    """Return the numbers of channels of the TF-SepNet that `config` describes, before any pruning.

    `out` of the result lists the sizes of the parts (separately pruned sets of channels) of all stages, one after
    another.
    """
    base = make_divisible(config.base_channels, 4)
    parts = [size for scale, n_modules in STAGES for size in part_sizes(int(base * scale), n_modules)]
    return Widths((base // 2, STEM_EXPANSION * base // 2), (), tuple(parts))


class AdaResNorm(nn.Module):
    """Adaptive residual normalisation: gamma (rho x + (1 - rho) n(x)) + beta, for `x [B, C, F, T]`.

    n standardises each frequency of a clip over channels and time, which removes the frequency response of the
    recording device (Kim et al. 2021, arXiv 2111.06531). rho, gamma and beta are learnt per channel; rho controls how
    much of the input is kept.
    """

    def __init__(self, channels: int):
        super().__init__()
        # these names of gamma and beta make NeSsi (torchinfo) count 2 MACs per channel, as for batch normalisation
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.rho = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(1, 3), keepdim=True)  # [B, 1, F, 1]
        inverse = torch.rsqrt(x.var(dim=(1, 3), correction=0, keepdim=True) + 1e-5)
        # the formula above, rearranged to one product and one sum of the size of x
        kept = self.weight * self.rho
        normalised = (self.weight - kept) * inverse  # [B, C, F, 1]
        return x * (kept + normalised) + (self.bias - normalised * mean)


class PartedConv(nn.Module):
    """1x1 convolution + BN + activation from `[B, inputs, F, T]` to a list of parts: part i is `[B, sizes[i], F, T]`.

    In the training form each part has its own convolution, so that each part can be pruned separately. In the deployed
    form (`fused`), one convolution computes all parts, and its output is split.
    """

    def __init__(self, inputs: int, sizes: tuple[int, ...], activation: str, fused: bool):
        super().__init__()
        self.split_sizes = tuple(sizes) if fused else None
        self.convs = nn.ModuleList(
            nn.Sequential(*conv_bn(inputs, n, (1, 1)), activation_layer(activation))
            for n in ((sum(sizes),) if fused else sizes)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        if self.split_sizes is None:
            return [conv(x) for conv in self.convs]
        parts = self.convs[0](x).split(self.split_sizes, dim=1)
        return [parts[i] for i in range(len(self.split_sizes))]  # torch.fx can trace indexing, but not iteration

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.split_sizes or tuple(conv[0].out_channels for conv in self.convs)  # type: ignore[index]

    @torch.no_grad()
    def fuse(self) -> "PartedConv":
        """Return the deployed form of this layer: the weights and BN statistics of all parts in one convolution."""
        parts: list[nn.Sequential] = list(self.convs)  # type: ignore[arg-type]
        activation = next(name for name, kind in ACTIVATIONS.items() if type(parts[0][2]) is kind)
        first: nn.Conv2d = parts[0][0]  # type: ignore[assignment]
        fused = PartedConv(first.in_channels, self.sizes, activation, fused=True).eval()
        fused.to(device=first.weight.device, dtype=first.weight.dtype)
        for layer in (0, 1):
            states = [part[layer].state_dict() for part in parts]
            merged = {k: v if v.ndim == 0 else torch.cat([s[k] for s in states]) for k, v in states[0].items()}
            fused.convs[0][layer].load_state_dict(merged)  # type: ignore[index]
        return fused


class SepConvs(nn.Module):
    """TF-SepConvs: a module with a frequency path and a time path; it maps a list of parts to a list of parts.

    `index` is the number of the module in its stage (0, 1, ...). Part i, with `sizes[i]` channels, takes the frequency
    path if bit `index` of i is 0, else the time path. The frequency path is a 3x1 depthwise convolution, the mean over
    frequency, and a pointwise convolution. The time path has a 1x3 kernel and the mean over time. The result of a path
    is added to its input by broadcasting.
    """

    def __init__(self, index: int, sizes: tuple[int, ...], activation: str, fused: bool):
        super().__init__()
        self.members = [[i for i in range(len(sizes)) if i >> index & 1 == path] for path in (0, 1)]
        self.depthwise, self.pointwise = nn.ModuleList(), nn.ModuleList()
        for members, kernel in zip(self.members, ((3, 1), (1, 3)), strict=True):
            chosen = tuple(sizes[i] for i in members)
            layers = conv_bn(sum(chosen), sum(chosen), kernel, groups=sum(chosen))
            self.depthwise.append(nn.Sequential(*layers, activation_layer(activation)))
            self.pointwise.append(PartedConv(sum(chosen), chosen, activation, fused))

    def forward(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs = list(parts)
        paths = zip(self.members, (2, 3), self.depthwise, self.pointwise, strict=True)
        for members, averaged, depthwise, pointwise in paths:
            y = depthwise(torch.cat([parts[i] for i in members], dim=1)).mean(dim=averaged, keepdim=True)
            for i, part in zip(members, pointwise(y), strict=True):
                outputs[i] = parts[i] + part
        return outputs


class Stage(nn.Module):
    """One stage of TF-SepNet: 1x1 convolution, TF-SepConvs modules, AdaResNorm, and 2x2 max pooling if `pooled`.

    The stage has sum(`sizes`) channels in parts that are pruned separately: part i has `sizes[i]` channels.
    """

    def __init__(self, inputs: int, sizes: tuple[int, ...], n_modules: int, pooled: bool, activation: str, fused: bool):
        super().__init__()
        self.transition = PartedConv(inputs, sizes, activation, fused)
        self.sepconvs = nn.Sequential(*(SepConvs(m, sizes, activation, fused) for m in range(n_modules)))
        self.norm = AdaResNorm(sum(sizes))
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.norm(torch.cat(self.sepconvs(self.transition(x)), dim=1)))


class DepthMultiplier(nn.Module):
    """The stem's grouped 3x3 convolution (table 1 of the paper), as STEM_EXPANSION depthwise convolutions of stride 2.

    The convolutions are parallel, each with its own BN and activation, and their outputs are concatenated. In this
    form, pruning can remove an input channel together with its STEM_EXPANSION output channels.
    """

    def __init__(self, channels: int, activation: str):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(*conv_bn(channels, channels, (3, 3), (2, 2), groups=channels), activation_layer(activation))
            for _ in range(STEM_EXPANSION)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([conv(x) for conv in self.convs], dim=1)


class TFSepNet(Student):
    """TF-SepNet; `widths` are the numbers of channels (None: those before any pruning).

    In the training form, each 1x1 convolution of a stage is divided into one convolution for each part (a set of
    channels that is pruned separately). With `fused`, the network is built in deployed form, without this division.
    """

    fusible = (PartedConv,)

    def __init__(self, config: StudentConfig, n_classes: int = 10, widths: Widths | None = None, fused: bool = False):
        super().__init__(config, n_classes, fused)
        dense = dense_widths(config)
        widths = widths or dense
        first, second = widths.stem
        if len(widths.out) != len(dense.out) or widths.expand or second != STEM_EXPANSION * first:
            raise ValueError(
                f"widths {widths} do not fit a tf_sepnet: expected that `out` has {len(dense.out)} numbers, that "
                f"`expand` is empty, and that the second number of `stem` is {STEM_EXPANSION} times the first; use the "
                "widths of another tf_sepnet"
            )
        self.stem = nn.Sequential(
            *conv_bn(1, first, (3, 3), (2, 2)),
            activation_layer(config.activation),
            DepthMultiplier(first, config.activation),
            AdaResNorm(second),
        )
        self.blocks = nn.Sequential()
        inputs, parts = second, list(widths.out)
        for i, (_, n_modules) in enumerate(STAGES):
            sizes, parts = tuple(parts[: 2**n_modules]), parts[2**n_modules :]
            self.blocks.append(Stage(inputs, sizes, n_modules, i in POOLED, config.activation, fused))
            inputs = sum(sizes)
        self.stem.apply(initialise)
        self.blocks.apply(initialise)
        # no BN follows, so PyTorch's default (smaller) initial weights are used: they keep the first logits near 0
        self.classifier = nn.Sequential(nn.Conv2d(inputs, n_classes, 1))

    @property
    def widths(self) -> Widths:
        first: nn.Conv2d = self.stem[0]  # type: ignore[assignment]
        stages: list[Stage] = list(self.blocks)  # type: ignore[arg-type]
        out = tuple(size for stage in stages for size in stage.transition.sizes)
        return Widths((first.out_channels, STEM_EXPANSION * first.out_channels), (), out)
