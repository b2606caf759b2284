"""Common parts of all student families: configuration, channel widths and the interface of the network.

A student is a small network that is trained for deployment, with or without distillation from a teacher.

    log-mel features `[B, 1, F, T]` -> feature map `[B, C, F', T']` -> logits `[B, n_classes]`

`StudentConfig` (topology) and `Widths` (channels of each layer) define a network. Pruning changes only the widths, so
these two also define a pruned network. `ascmodels/students/__init__.py` lists the families.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from ascmodels.config.student import StudentConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def activation_layer(name: str) -> nn.Module:
    """Return a new layer for the activation function `name`.

    ReLU overwrites its input, which saves memory and time. Its gradient needs the output only, so it is bit for bit the
    same. The gradients of the other functions need the input.
    """
    return nn.ReLU(inplace=True) if name == "relu" else ACTIVATIONS[name]()


@dataclass(frozen=True)
class Widths:
    """Number of channels of each layer, which pruning reduces.

    `stem` has the output channels of the stem's two convolutions. In family mobile, `expand` and `out` have one number
    per block: after its first 1x1 convolution and at its output. In family tf_sepnet, `expand` is empty, and `out` has
    one number for each part of each stage (a part is a set of channels that is pruned separately, see tf_sepnet.py).
    """

    stem: tuple[int, int]
    expand: tuple[int, ...]
    out: tuple[int, ...]

    def __post_init__(self):
        for name in ("stem", "expand", "out"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))


class Student(nn.Module):
    """Base class of students: networks from log-mel features `[B, 1, F, T]` to logits `[B, n_classes]`.

    A subclass sets `stem`, `blocks` and `classifier`, and defines the property `widths`: the present numbers of
    channels (see `Widths`), which it reads from the layers. The first layer of the classifier must be a convolution.
    """

    stem: nn.Sequential
    blocks: nn.Sequential
    classifier: nn.Sequential
    widths: Widths  # read from the layers, because pruning changes layers in place
    fusible: tuple[type[nn.Module], ...] = ()  # layer types that have a deployed form, which their `fuse` returns

    def __init__(self, config: StudentConfig, n_classes: int, fused: bool):
        super().__init__()
        self.config, self.n_classes, self.fused = config, n_classes, fused

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map `[B, C, F', T']` before the classifier, for log-mel features `x [B, 1, F, T]`."""
        return self.blocks(self.stem(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x)).mean(dim=(2, 3))

    def unprunable(self) -> list[nn.Module]:
        """Return the layers whose output channels pruning must not remove."""
        return [self.classifier[0]]

    def fuse(self) -> "Student":
        """Return a copy of this network in deployed form and evaluation mode.

        The parallel branches of the copy are fused: each layer whose type is in `fusible` is replaced by the result of
        the layer's own method `fuse`.
        """
        deployed = copy.deepcopy(self).eval()
        for name, module in self.named_modules():
            if isinstance(module, self.fusible):
                deployed.set_submodule(name, module.fuse())  # type: ignore[operator]
        deployed.fused = True
        return deployed

    def rebuilt(self) -> "Student":
        """Return a newly built network with the configuration, widths and weights of this one.

        Its tensors have the memory layout of new tensors, as after loading a checkpoint. So a run that was restored
        from a checkpoint computes bit for bit the same as an uninterrupted run.
        """
        with torch.random.fork_rng(devices=[]):  # keep the caller's random state; load_state_dict sets all weights
            fresh = type(self)(self.config, self.n_classes, self.widths, self.fused)  # type: ignore[call-arg]
        fresh.load_state_dict(self.state_dict())
        return fresh.train(self.training)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Return a multiple of `divisor` near `channels`, never more than 10 % below `channels` (the MobileNet rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def conv_bn(inputs: int, outputs: int, kernel: tuple[int, int], stride=(1, 1), groups: int = 1) -> list[nn.Module]:
    """Return [convolution without bias, batch normalisation].

    The convolution is padded so that, with stride 1, an odd `kernel` (frequency, time) keeps the size of its input.
    """
    padding = (kernel[0] // 2, kernel[1] // 2)
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


def initialise(module: nn.Module) -> None:
    """Initialise `module` if it is a convolution (He-normal weights, fan out; zero bias), else leave it unchanged."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
