"""CP-Mobile and Rep-Mobile: inverted-bottleneck students, log-mel features `[B, 1, F, T]` -> logits `[B, n_classes]`.

CP-Mobile: Schmid et al. 2023, "Efficient acoustic scene classification with CP-Mobile" (DCASE challenge), in the form
of the DCASE 2024 Task 1 baseline. Rep-Mobile (arXiv 2410.20775) has the same topology, but its depthwise (and,
optionally, stem) convolutions are RepConv blocks: parallel branches, which are fused to one convolution for deployment.
`MobileStudent` implements both: without branches it is CP-Mobile.
"""

from functools import partial

import torch
from torch import nn

from ascmodels.students.base import (
    Student,
    StudentConfig,
    Widths,
    activation_layer,
    conv_bn,
    initialise,
    make_divisible,
)
from ascmodels.students.repconv import RepConv2d, fused_kernel


def dense_widths(config: StudentConfig) -> Widths:
    """Return the numbers of channels of the CP-Mobile or Rep-Mobile that `config` describes, before any pruning."""
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
    """Global response normalisation over channels (Woo et al. 2023, ConvNeXt V2), as in CP-Mobile.

    The layer has one scale and one shift for all channels together, not one per channel.
    """

    def __init__(self):
        super().__init__()
        # with these names torchinfo, and so NeSsi, counts them, as in the published sizes of CP-Mobile with GRN
        self.weight = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        energy = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)  # [B, C, 1, 1]
        response = energy / (energy.mean(dim=1, keepdim=True) + 1e-6)
        return self.weight * (x * response) + self.bias + x


class Block(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise, project 1x1, each with BN; then shortcut, GRN and activation.

    `channels` are those of the input, of the depthwise convolution, and of the output. The depthwise convolution has
    the given `stride`. It is a RepConv with parallel `branches`, or a plain convolution if `branches` is empty or the
    block is built in its deployed form (`fused`). The shortcut from input to output exists only if `shortcut` is true;
    it is average-pooled if `stride` is not (1, 1).
    """

    def __init__(
        self,
        config: StudentConfig,
        branches: tuple[str, ...],
        channels: tuple[int, int, int],
        stride: tuple[int, int],
        shortcut: bool,
        fused: bool,
    ):
        super().__init__()
        inputs, inner, outputs = channels
        activation = partial(activation_layer, config.activation)
        self.expand = nn.Sequential(*conv_bn(inputs, inner, (1, 1)), activation())
        self.depthwise = nn.Sequential(*_spatial(branches, inner, inner, stride, inner, fused), activation())
        self.project = nn.Sequential(*conv_bn(inner, outputs, (1, 1)))
        self.shortcut: nn.Module | None = None
        if shortcut:
            self.shortcut = nn.Identity() if stride == (1, 1) else nn.AvgPool2d(3, stride, padding=1)
        self.norm = GRN() if config.grn else nn.Identity()
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        if self.shortcut is not None:
            # in training in place, to save memory; torch.fx and torch.export trace the sum in evaluation mode
            y = y.add_(self.shortcut(x)) if self.training else y + self.shortcut(x)
        return self.activation(self.norm(y))


class MobileStudent(Student):
    """CP-Mobile, or Rep-Mobile if `config` has RepConv branches.

    `widths` are the numbers of channels (None: those before any pruning). With `fused`, the network is built in
    deployed form: one convolution instead of each RepConv block.
    """

    fusible = (RepConv2d,)

    def __init__(self, config: StudentConfig, n_classes: int = 10, widths: Widths | None = None, fused: bool = False):
        super().__init__(config, n_classes, fused)
        dense = dense_widths(config)
        widths = widths or dense
        if len(widths.out) != len(dense.out) or len(widths.expand) != len(dense.expand):
            raise ValueError(
                f"widths for {len(widths.out)} blocks given to a network of {len(dense.out)} blocks: expected one "
                f"number in `expand` and in `out` for each block, found {widths}; use widths of a network with the "
                "same student.n_blocks"
            )
        activation = partial(activation_layer, config.activation)
        stem_branches = config.branches if config.rep_stem else ()
        self.stem = nn.Sequential(
            *_spatial(stem_branches, 1, widths.stem[0], (2, 2), 1, fused),
            activation(),
            *_spatial(stem_branches, widths.stem[0], widths.stem[1], (2, 2), 1, fused),
            activation(),
        )
        self.blocks = nn.Sequential()
        # shortcuts depend on the dense widths, so that pruning never adds or removes one
        ins, dense_ins = (widths.stem[1], *widths.out), (dense.stem[1], *dense.out)
        stages = [stage for stage, n in enumerate(config.n_blocks) for _ in range(n)]  # stage of each block
        for i, inner in enumerate(widths.expand):
            stride = config.block_strides.get(f"b{i + 1}", (1, 1))
            channels = (ins[i], inner, widths.out[i])
            shortcut = dense_ins[i] == dense.out[i]
            block = Block(config, config.branches_of(stages[i]), channels, stride, shortcut, fused)
            self.blocks.add_module(f"b{i + 1}", block)
        self.classifier = nn.Sequential(nn.Conv2d(widths.out[-1], n_classes, 1, bias=False), nn.BatchNorm2d(n_classes))
        self.apply(initialise)

    @property
    def widths(self) -> Widths:
        convs = [m for m in self.stem if isinstance(m, nn.Conv2d | RepConv2d)]
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        return Widths(
            tuple(_out_channels(c) for c in convs),  # type: ignore[arg-type]
            tuple(_out_channels(b.expand[0]) for b in blocks),
            tuple(_out_channels(b.project[0]) for b in blocks),
        )


def _spatial(branches: tuple[str, ...], inputs: int, outputs: int, stride, groups: int, fused: bool) -> list[nn.Module]:
    """Return the layers of a spatial convolution.

    Without RepConv `branches`: a 3x3 convolution with BN. With branches: a RepConv2d in training form or, if `fused`,
    the one convolution of the deployed form.
    """
    if not branches:
        return conv_bn(inputs, outputs, (3, 3), stride, groups)
    if not fused:
        return [RepConv2d(inputs, outputs, branches, stride, groups)]
    height, width = fused_kernel(branches)
    return [nn.Conv2d(inputs, outputs, (height, width), stride, (height // 2, width // 2), groups=groups)]


def _out_channels(layer: nn.Module) -> int:
    if isinstance(layer, RepConv2d):
        return next(iter(layer.branches.values()))[-1].num_features  # type: ignore[index]
    return layer.out_channels  # type: ignore[return-value]
