"""int8 networks: static post-training quantisation, and quantisation-aware fine-tuning (QAT) before it.

    # batches: features [B, 1, F, T] of training clips, to measure the ranges of activations; metadata: any JSON values
    quantize_onnx(source, target, batches, metadata)     # converts the fp32 ONNX file `source` to an int8 file `target`

    tuned = fake_quantized(student)      # QAT: a copy that rounds weights and activations
    observe(tuned, batches)              # set the ranges of its activations; then train `tuned`
    network = plain(tuned)               # fp32 network without the rounding, to export and quantise

Weights are int8, symmetric, with one scale per output channel. Activations are uint8, affine, with one scale per
tensor. Biases are int32 (Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference"). onnxruntime quantises the network (QDQ format) and computes the convolutions in
integers. `fake_quantized` rounds with the same scheme.
"""

import copy
import operator
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize

from ascmodels.export import INPUT, ExportError, write_onnx
from ascmodels.students import Student

LEAST_CLIPS = 16  # minimum number of calibration clips: fewer do not represent the ranges of activations
MULTIPLYING = {"Conv": "QLinearConv", "MatMul": "QLinearMatMul", "Gemm": "QGemm"}  # ONNX operator -> its integer form


@dataclass(frozen=True)
class Payload:
    """Size in bytes of the parameters of an int8 network, by kind of parameter.

    Zero points of weights (always 0) and scales of biases (input scale times weight scale) need not be stored, so they
    are not counted.
    """

    weights: int  # 1 byte for each weight, and for each scalar of GRN that onnxruntime quantised
    biases: int  # 4 bytes (int32) for each bias
    scales: int  # scales of weights and activations (float32), and zero points of activations (uint8)
    others: int  # 4 bytes for each parameter that remains float32

    @property
    def total(self) -> int:
        return self.weights + self.biases + self.scales + self.others


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Iterable[np.ndarray]):
        self._remaining = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        x = next(self._remaining, None)
        return None if x is None else {INPUT: x}


def quantize_onnx(source: Path, target: Path, batches: list[np.ndarray], metadata: Mapping[str, Any]) -> Payload:
    """Write the int8 form of the fp32 ONNX file `source` to `target`; return the sizes of its parameters.

    The ranges of activations are measured on `batches` of features `[B, 1, F, T]`. The file also stores each value of
    `metadata` as JSON. ExportError if `batches` have fewer than LEAST_CLIPS clips, or if onnxruntime would compute a
    layer in floating point.
    """
    clips = sum(len(x) for x in batches)
    if clips < LEAST_CLIPS:
        raise ExportError(
            f"{clips} calibration clips: expected at least {LEAST_CLIPS}; use a larger training split or data set"
        )
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            target,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibration_providers=["CPUExecutionProvider"],
        )
    write_onnx(onnx.load(target), target, metadata)
    check_integer(target)
    return payload(target)


def check_integer(path: Path) -> int:
    """Check that onnxruntime computes all layers of the int8 ONNX file `path` in integers; return their number.

    Layers are the ONNX operators in MULTIPLYING (convolutions and matrix products). ExportError if there are none, if
    one has no int8 weights, or if onnxruntime's optimised graph computes one in floating point.
    """
    graph = onnx.load(path).graph
    made_by = {node.output[0]: node for node in graph.node}
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in MULTIPLYING]
    for node in layers:
        source = made_by.get(node.input[1])
        if source is None or source.op_type != "DequantizeLinear" or kinds.get(source.input[0]) != TensorProto.INT8:
            raise ExportError(
                f"layer {node.input[1]} ({node.op_type}) has no int8 weights: expected int8 weights in all layers; "
                "deploy this network in fp32 or fp16"
            )
    if not layers:
        raise ExportError(
            f"{path.name} has no layer to quantise: expected at least one layer of type {', '.join(MULTIPLYING)}; "
            "deploy this network in fp32 or fp16"
        )
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        ran = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    integer = sum(ran.count(kind) for kind in MULTIPLYING.values())
    if integer != len(layers):
        raise ExportError(
            f"onnxruntime computes {len(layers) - integer} of {len(layers)} layers of {path.name} in floating point: "
            "expected none; deploy this network in fp32 or fp16"
        )
    return integer


def payload(path: Path) -> Payload:
    """Return the sizes in bytes of the weights, biases, scales and other parameters of the int8 ONNX file `path`."""
    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    size = {name: int(np.prod(tensor.dims)) for name, tensor in tensors.items()}
    weights = biases = scales = 0
    counted: set[str] = set()  # names of tensors, scales and zero points, which several nodes can share
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        value, scale, zero = node.input
        kind = tensors[value].data_type if value in tensors else None
        if scale not in counted and kind != TensorProto.INT32:
            scales += 4 * size[scale] + (kind != TensorProto.INT8)  # 1 byte: the zero point
        if value not in counted:
            weights += size[value] if kind in (TensorProto.INT8, TensorProto.UINT8) else 0
            biases += 4 * size[value] if kind == TensorProto.INT32 else 0
        counted |= {scale, zero} | ({value} if kind is not None else set())
    others = sum(4 * size[n] for n, t in tensors.items() if n not in counted and t.data_type == TensorProto.FLOAT)
    return Payload(weights, biases, scales, others)


class WeightQuantizer(nn.Module):
    """Module that rounds a float weight `[C, ...]` to the values that int8 can represent, for training.

    Each output channel has its own scale. Gradients pass through the rounding unchanged.
    """

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.detach().flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127  # [C]
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


class ActivationQuantizer(nn.Module):
    """Module that rounds a float tensor to the 256 values that uint8 can represent between the ends of `range`.

    In training mode, each call updates `range`, the moving average of the minimum and maximum of the inputs.
    """

    range: torch.Tensor  # [2]: lower end (<= 0) and upper end (>= 0)

    def __init__(self, momentum: float = 0.05):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("range", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            low, high = torch.aminmax(x.detach())
            extremes = torch.stack([low.clamp(max=0), high.clamp(min=0)])
            self.range.lerp_(extremes, self.momentum if self.range.any() else 1.0)
        scale = ((self.range[1] - self.range[0]) / 255).clamp(min=1e-12)
        zero = (-self.range[0] / scale).round().int()
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


# modules and functions whose outputs are rounded
_ROUNDED = (
    *(nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.Sigmoid),
)
_ROUNDED_FUNCTIONS = (operator.add, operator.mul, torch.add, torch.mul)


def fake_quantized(student: Student) -> fx.GraphModule:
    """Return a copy of `student`, traced by torch.fx, that rounds weights and activations like the int8 network.

    It has the deployed form: RepConv branches and batch normalisation are folded into convolutions. Call `observe`
    before the copy is trained, to set the ranges of activations. ExportError if torch.fx cannot trace `student`.
    """
    network = _folded(student)
    graph, modules = network.graph, dict(network.named_modules())
    for i, node in enumerate(list(graph.nodes)):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        users = [modules.get(str(user.target)) for user in node.users]
        rounded = isinstance(module, _ROUNDED) or node.target in _ROUNDED_FUNCTIONS
        rounded = rounded or any(isinstance(user, nn.Conv2d | nn.Linear) for user in users)
        if rounded and not all(isinstance(user, nn.ReLU) for user in users):  # onnxruntime fuses ReLU into its input
            network.add_submodule(f"round{i}", ActivationQuantizer())
            with graph.inserting_after(node):
                after = graph.call_module(f"round{i}", (node,))
            node.replace_all_uses_with(after, lambda user, after=after: user is not after)
        if isinstance(module, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(module, "weight", WeightQuantizer())
    network.recompile()
    return network


class _Split(fx.Proxy):
    """torch.fx proxy of the result of `Tensor.split`, with a length: one part per size.

    A normal proxy has no length, so code that iterates over the parts could not be traced.
    """

    def __len__(self) -> int:
        return len(self.node.args[1])  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[fx.Proxy]:
        return iter([self[i] for i in range(len(self))])  # type: ignore[index]


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Split(node, self) if node.target == "split" else super().proxy(node)


def _folded(student: Student) -> fx.GraphModule:
    """Return the deployed form of `student`, traced by torch.fx, with BN folded and without `nn.Identity` modules.

    ExportError if torch.fx cannot trace the network.
    """
    try:
        deployed = student.fuse()
        network = fuse(fx.GraphModule(deployed, _Tracer().trace(deployed)), no_trace=True)  # type: ignore[arg-type]
    except Exception as error:  # the network's code can raise any error when torch.fx traces it
        raise ExportError(
            f"{type(student).__name__} cannot be traced for quantisation-aware fine-tuning ({error}): expected a "
            "network that torch.fx can trace; set --qat_epochs 0 to quantise it without fine-tuning"
        ) from error
    assert isinstance(network, fx.GraphModule)
    _remove(network, nn.Identity)
    return network


def _remove(network: fx.GraphModule, kind: type[nn.Module]) -> None:
    """Remove all modules of type `kind` from `network`: wherever the output of one was used, its input is used."""
    for node in list(network.graph.nodes):
        if node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), kind):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()


@torch.no_grad()
def observe(network: fx.GraphModule, batches: Iterable[np.ndarray]) -> None:
    """Run `batches` of features `[B, 1, F, T]` through `network` to set the ranges of its activations.

    `network`, the result of `fake_quantized`, is put into training mode.
    """
    network.train()
    device = next(network.parameters()).device
    for x in batches:
        network(torch.from_numpy(x).to(device))


def plain(network: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a fine-tuned `network`, in evaluation mode and without the rounding of activations.

    `network` is the result of `fake_quantized` after training. The weights of the copy are rounded already, to values
    that int8 can represent, so `quantize_onnx` does not change them.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    _remove(network, ActivationQuantizer)
    return network
