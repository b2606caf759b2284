"""NeSsi: count the multiply-accumulate operations (MACs), parameters and bytes of a network as DCASE does.

    macs, params = nessi.get_torch_size(model, (1, 1, 256, 65))      # input: 1 clip, 1 channel, 256 mel bins, 65 frames

The convention is that of torchinfo. The MACs of a convolution are its weights and biases, times the number of output
positions. Batch normalisation and adaptive residual normalisation have 2 MACs per channel. Activations, pooling, means
and sums have none. The network must be in deployed form (parallel branches fused) and float32; the input is the
features of 1 s of audio, batch size 1.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
import torchinfo
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ascmodels.students.base import Student
from ascmodels.students.cp_mobile import GRN
from ascmodels.students.repconv import RepConv2d
from ascmodels.students.tf_sepnet import AdaResNorm

_MULTIPLYING = (nn.Conv1d, nn.Conv2d, nn.Linear)
_COUNTED = (*_MULTIPLYING, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, GRN, AdaResNorm)
_FREE = (
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Identity, nn.Dropout, nn.Flatten),
    *(nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
)


class UncountableError(ValueError):
    """A network cannot be measured, because the count of its MACs or parameters would be wrong."""


def get_torch_size(model: nn.Module, input_size: tuple[int, ...]) -> tuple[int, int]:
    """Return (MACs, parameters) of `model` for one input of shape `input_size`, e.g. (1, 1, 256, 65).

    UncountableError in these cases: a layer type that is neither in _COUNTED nor in _FREE, unfused RepConv branches,
    parameters that are not float32 (torchinfo miscounts half precision), or matrix products outside of layers, e.g.
    attention. The last case is found with PyTorch's FLOP formulas, whose count must be equal to that of the layers.
    """
    _check_layers(model)
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UncountableError(
            f"{type(model).__name__} has no parameters: expected a network with convolution or linear layers; measure "
            "such a network"
        )
    training = model.training
    x = torch.zeros(input_size, device=parameter.device)
    try:
        with torch.no_grad():
            model.eval()
            # MATH: attention is computed as matrix products, which are counted
            with _FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
                model(x)
            summary = torchinfo.summary(model, input_data=x, verbose=0)
    finally:
        model.train(training)
    hidden = counter.flops // 2 - _product_macs(summary)
    if hidden:
        raise UncountableError(
            f"{type(model).__name__} runs {hidden:,} MACs outside its layers, which NeSsi cannot count: expected 0; "
            "replace matrix products in its forward method by convolution or linear layers"
        )
    return int(summary.total_mult_adds), int(summary.total_params)


class _FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of all operators that run in its context, in `flops`, with PyTorch's formulas (flop_registry).

    PyTorch's own context manager, FlopCounterMode, imports torch._dynamo: a second of CPU time in each driver.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # with True, the first operator imports torch._dynamo

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # count the parts of an operator without a formula
                out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def get_deployed_size(model: Student, n_mels: int, frames: int) -> tuple[int, int]:
    """Return (MACs, parameters) of the deployed form of student `model` for one input [1, 1, n_mels, frames].

    UncountableError if `get_torch_size` raises it, or if the input is too small for the network's strides.
    """
    try:
        return get_torch_size(model.fuse(), (1, 1, n_mels, frames))
    except RuntimeError as error:  # such as "Calculated output size: (40x0x8). Output size is too small"
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise
        raise UncountableError(
            f"{model.config.name} cannot process features of {n_mels} mel bins x {frames} frames "
            f"({str(error).splitlines()[0]}); expected more: raise frontend.n_mels, or lower frontend.hop_length"
        ) from error


def layer_rates(model: nn.Module, input_size: tuple[int, ...]) -> dict[str, Fraction]:
    """Return the MACs per parameter of each layer of `model`, by layer name, for one input of shape `input_size`.

    For a convolution this is the number of output positions. It depends on kernels, strides and the input size, but not
    on the number of channels. UncountableError if `get_torch_size` raises it, or if its count differs from the sum over
    the layers.
    """
    expected = get_torch_size(model, input_size)
    names = {module: name for name, module in model.named_modules()}
    with torch.no_grad():
        summary = torchinfo.summary(model, input_data=torch.zeros(input_size), verbose=0)
    layers = [(info.macs, info.module) for info in summary.summary_list if _own_parameters(info.module)]
    rates = {names[module]: Fraction(macs, _own_parameters(module)) for macs, module in layers}
    found = size_at(model, rates)
    if found != expected:
        raise UncountableError(
            f"{type(model).__name__}: the (MACs, parameters) of its layers add up to {found}; expected {expected}, "
            "the count of the complete network: this network cannot be counted layer by layer, so measure it with "
            "`get_torch_size` instead of `layer_rates` and `size_at`"
        )
    return rates


def size_at(model: nn.Module, rates: Mapping[str, Fraction]) -> tuple[int, int]:
    """Return (MACs, parameters) of `model`, as `get_torch_size` does, but without running the network.

    `rates` holds the MACs per parameter of each layer. It is the result of `layer_rates` for a network with the same
    layers, kernels and strides as `model`, but possibly other numbers of channels.
    """
    own = {name: n for name, module in model.named_modules() if (n := _own_parameters(module))}
    return int(sum(n * rates[name] for name, n in own.items())), sum(own.values())


def _own_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _check_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"layer {name or '(root)'} ({type(module).__name__})"
        if isinstance(module, RepConv2d):
            raise UncountableError(
                f"{where} still has its branches: expected one convolution, the deployed form; measure the result of "
                "`Student.fuse`"
            )
        own = list(module.parameters(recurse=False))
        if any(p.dtype != torch.float32 for p in own):
            raise UncountableError(
                f"{where} is not float32: expected float32 parameters; measure the network before it is cast"
            )
        leaf = next(module.children(), None) is None
        if isinstance(module, _COUNTED) or (leaf and isinstance(module, _FREE)):
            continue
        if own or (leaf and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)):
            known = ", ".join(sorted(t.__name__ for t in (*_COUNTED, *_FREE)))
            raise UncountableError(
                f"{where} is not in NeSsi's convention: expected one of {known}; replace it by layers of these types"
            )


def _product_macs(summary: torchinfo.ModelStatistics) -> int:
    """Return the MACs of all convolutions and linear layers in torchinfo's `summary`, without those of their biases.

    PyTorch's FLOP counter does not count biases either, so the two counts can be compared.
    """
    total = 0
    for layer in summary.summary_list:
        module = layer.module
        if isinstance(module, _MULTIPLYING):
            positions = 1
            for size in layer.output_size[2:] if not isinstance(module, nn.Linear) else layer.output_size[1:-1]:
                positions *= size
            total += layer.output_size[0] * positions * module.weight.numel()
    return total
