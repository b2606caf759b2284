"""RepConv, a re-parameterised convolution: parallel branches in training, one convolution when deployed.

Each branch is a convolution without bias (or the identity), followed by batch normalisation. The block's output is the
sum of the branches. In evaluation mode every branch is linear, so the sum is equal to one convolution with bias:

    W = sum_b pad(gamma_b / sigma_b * W_b),    bias = sum_b (beta_b - gamma_b * mu_b / sigma_b).

gamma, beta, mu and sigma are scale, shift, mean and standard deviation of branch b's batch normalisation; pad() extends
the kernel W_b with zeros to the size of W.

Source: Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", section 3.3; the 3x1 and 1x3 branches
come from Rep-Mobile, arXiv 2410.20775.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ascmodels.config.student import KERNELS, check_branches
from ascmodels.students.branch_moments import n_positions, sum_of_branches


def fused_kernel(branches: Sequence[str]) -> tuple[int, int]:
    """Return (height, width) of the deployed kernel: the smallest one that contains the kernels of all `branches`."""
    sizes = [KERNELS.get(b, (1, 1)) for b in branches]
    return max(h for h, _ in sizes), max(w for _, w in sizes)


class _StridedPointwise(nn.Conv2d):
    """1x1 convolution with a stride, computed as a convolution with stride 1 on every stride-th input position.

    This avoids a fault of oneDNN (PyTorch 2.11, CPU): the weight gradient of a strided 1x1 convolution with one input
    channel writes outside its memory.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows, columns = self.stride
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight)


class RepConv2d(nn.Module):
    """RepConv block in training form: the sum of parallel branches, each with its own batch normalisation.

    It maps `x [B, in_channels, F, T]` to `[B, out_channels, F', T']`. The branch `identity` is left out if input and
    output have different shapes (stride above 1, or another number of channels). ValueError if no branch remains.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        branches: Sequence[str],
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
    ):
        super().__init__()
        same_shape = in_channels == out_channels and tuple(stride) == (1, 1)
        names = [b for b in check_branches(branches) if b != "identity" or same_shape]
        if not names:
            raise ValueError(
                f"RepConv branches {list(branches)}: none remains for {in_channels} to {out_channels} channels with "
                f"stride {tuple(stride)}, because identity needs stride 1 and equal channels; add a convolution "
                "branch, e.g. 3x3"
            )
        self.stride, self.groups = tuple(stride), groups
        self.branches = nn.ModuleDict()
        for name in names:
            layers: list[nn.Module] = []
            if name in KERNELS:
                kernel = KERNELS[name]
                padding = (kernel[0] // 2, kernel[1] // 2)
                pointwise = kernel == (1, 1) and tuple(stride) != (1, 1) and groups == 1
                convolution = _StridedPointwise if pointwise else nn.Conv2d
                layers.append(
                    convolution(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
                )
            self.branches[name] = nn.Sequential(*layers, nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._is_one_convolution(x):
            scale = torch.ones(x.shape[1], 1, 1, 1, dtype=x.dtype)  # the identity as a 1x1 kernel
            branches = [(scale if len(b) == 1 else b[0].weight, b[-1]) for b in self.branches.values()]  # type: ignore
            return sum_of_branches(x, branches, fused_kernel(list(self.branches)), self.stride)  # type: ignore
        first, *others = self.branches.values()
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return total

    def _is_one_convolution(self, x: torch.Tensor) -> bool:
        """Return whether the branches are trained as one convolution (branch_moments.py): depthwise, float, on a CPU.

        The separate branches are needed in evaluation mode, in which torch-pruning traces them, for mixed precision,
        and for PyTorch's error if a channel has a single value.
        """
        if not self.training or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        out_channels = next(iter(self.branches.values()))[-1].num_features  # type: ignore[index]
        return self.groups == x.shape[1] == out_channels and n_positions(x, self.stride) > 1  # type: ignore[arg-type]

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the convolution with bias that computes the same as this block in evaluation mode.

        The weights are computed in float64 and then cast to the dtype of this block's parameters.
        """
        norms = [branch[-1] for branch in self.branches.values()]  # type: ignore[index]
        channels = norms[0].num_features
        height, width = fused_kernel(list(self.branches))
        per_group = self._in_channels(channels) // self.groups
        weight = torch.zeros(channels, per_group, height, width, dtype=torch.float64)
        bias = torch.zeros(channels, dtype=torch.float64)
        for name, branch in self.branches.items():
            norm = branch[-1]  # type: ignore[index]
            gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
            bias += (norm.bias.double() - gain * norm.running_mean.double()).cpu()
            kernel_h, kernel_w = KERNELS.get(name, (1, 1))
            if name == "identity":
                kernel = torch.zeros(channels, per_group, 1, 1, dtype=torch.float64)
                rows = torch.arange(channels)
                kernel[rows, rows % per_group] = 1.0
            else:
                kernel = branch[0].weight.double().cpu()  # type: ignore[index]
            top, left = (height - kernel_h) // 2, (width - kernel_w) // 2
            weight[:, :, top : top + kernel_h, left : left + kernel_w] += gain.cpu()[:, None, None, None] * kernel
        like = norms[0].weight
        fused = nn.Conv2d(
            per_group * self.groups,
            channels,
            (height, width),
            self.stride,  # type: ignore[arg-type]
            (height // 2, width // 2),
            groups=self.groups,
        )
        fused = fused.to(device=like.device, dtype=like.dtype)
        fused.weight.copy_(weight)
        fused.bias.copy_(bias)  # type: ignore[union-attr]
        return fused

    def _in_channels(self, out_channels: int) -> int:
        """Return the number of input channels of this block; `out_channels` is its number of output channels.

        The number is read from a convolution branch, because pruning changes layers in place. If the identity is the
        only branch, input and output have equally many channels.
        """
        for name, branch in self.branches.items():
            if name != "identity":
                return branch[0].in_channels  # type: ignore[index]
        return out_channels
