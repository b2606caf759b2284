"""Export of a trained student to files that run without this project: `torch.export` programs and ONNX.

    program = export_program(student, (n_mels, frames))      # features [B, 1, F, T] to logits [B, n_classes], any B
    save_onnx(program, path, {"classes": ..., "frontend": ...})
    logits = Runner(path)(features)                          # onnxruntime

Each written file can be loaded again and compared with the eager network; ExportError if the logits differ.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim, ExportedProgram

OPSET = 20
TOLERANCE = 1e-4  # largest allowed difference from the eager network's logits, as a share of their maximum (at least 1)
INPUT, OUTPUT = "features", "logits"
# torch 2.11's ONNX exporter fails on `1 - parameter`; this form gives the same values, bit for bit
_REWRITTEN = {torch.ops.aten.rsub.Scalar: lambda x, other: torch.neg(x) + other}
Network = Callable[[np.ndarray], np.ndarray]  # features [B, 1, F, T] to logits [B, C]


class ExportError(ValueError):
    """The network cannot be exported, or its exported form gives other logits or logits that are not finite."""


def export_program(network: nn.Module, shape: tuple[int, ...]) -> ExportedProgram:
    """Return `network` as a `torch.export` program for inputs `[B, *shape]` of any batch size B."""
    example = torch.zeros(2, *shape, device=next(network.parameters()).device)
    try:
        return torch.export.export(network.eval(), (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # torch raises many error types when tracing fails; all mean the same here
        first = str(error).strip().splitlines()[0]
        raise ExportError(
            f"{type(network).__name__} cannot be exported by torch.export ({first}): change its code"
        ) from error


def save_program(program: ExportedProgram, path: Path) -> Network:
    """Write `program` to `path`, load it again, and return the loaded network as a function of features."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found|The given buffer is not writable")
        torch.export.save(program, path)
        module = torch.export.load(path).module()

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x)).numpy()

    return run


def save_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write `program` to `path` as ONNX, with batch normalisation folded and `metadata` stored as JSON values."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)`", FutureWarning)
        try:
            exported = torch.onnx.export(
                program.run_decompositions(_REWRITTEN),  # type: ignore[arg-type]
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            first = str(error).strip().splitlines()[0]
            raise ExportError(f"the network cannot be expressed in ONNX opset {OPSET}: {first}") from error
    assert exported is not None
    model = exported.model_proto
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # the exporter's notes contain file paths of this machine
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer, model.graph):
        del part.metadata_props[:]
    write_onnx(model, path, metadata)


def write_onnx(model: onnx.ModelProto, path: Path, metadata: Mapping[str, Any]) -> None:
    """Check `model` with onnx's checker and write it to `path` with `metadata` as JSON values."""
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that `write_onnx` stored in the ONNX file `path`: class names, front-end, deployed form."""
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def store_half(source: Path, target: Path, metadata: Mapping[str, Any]) -> int:
    """Write the ONNX model of `source` to `target` with float16 parameters; return their size in bytes.

    The parameters are cast to float32 when the model is loaded, so the arithmetic stays float32. ExportError for a
    parameter outside float16's range.
    """
    model = onnx.load(source)
    casts, size = [], 0
    for tensor in list(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        with np.errstate(over="ignore"):
            half = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(
                f"parameter {tensor.name} of {source.name} is outside float16's range (65504): deploy this network in "
                "fp32 or int8"
            )
        size += half.nbytes
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"cast_{name}", to=TensorProto.FLOAT))
    for i, cast in enumerate(casts):
        model.graph.node.insert(i, cast)
    write_onnx(model, target, metadata)
    return size


def parameter_bytes(path: Path) -> int:
    """Return the size in bytes of the float32 parameters in the ONNX file `path`.

    The file must come from `save_onnx`, which folds batch normalisation; nothing is folded here.
    """
    tensors = onnx.load(path).graph.initializer
    return sum(numpy_helper.to_array(t).nbytes for t in tensors if t.data_type == TensorProto.FLOAT)


class Runner:
    """Runs an ONNX file in onnxruntime on the CPU."""

    def __init__(self, path: Path, threads: int = 1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.session.run([OUTPUT], {INPUT: x})[0]  # type: ignore[return-value]


def largest_difference(what: str, found: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest absolute difference between the logits `found` and `eager`, the logits of the eager network.

    ExportError if a logit is not finite; its message calls the network that computed `found` by the name `what`.
    """
    for name, values in (("the network", eager), (what, found)):
        if not np.isfinite(values).all():
            raise ExportError(
                f"{name} gives logits that are not finite: its weights are damaged or have diverged; use another "
                "checkpoint"
            )
    return float(np.abs(found - eager).max())


def check_equal(what: str, found: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest absolute difference between the logits `found`, of the exported network `what`, and `eager`.

    `eager` holds the logits of the eager network for the same clips. ExportError if the difference is above TOLERANCE
    times the largest absolute value in `eager` (at least 1).
    """
    difference = largest_difference(what, found, eager)
    allowed = TOLERANCE * max(1.0, float(np.abs(eager).max()))
    if difference > allowed:
        raise ExportError(
            f"{what} differs from the eager network by {difference:.2g}; expected at most {allowed:.2g}: "
            "do not deploy it"
        )
    return difference
