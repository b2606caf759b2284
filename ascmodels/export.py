"""Export of a trained network to files that run without this project: `torch.export` programs and ONNX files.

    program = export_program(student, (1, n_mels, frames))   # features [B, 1, F, T] to logits [B, n_classes], any B
    save_onnx(program, path, {"classes": ..., "frontend": ...})      # ONNX file with metadata (any JSON values)
    logits = Runner(path)(features)                          # run the file in onnxruntime

`check_equal` compares the logits of an exported network with those of the eager network.
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
TOLERANCE = 1e-4  # allowed difference of logits, divided by max(1, largest absolute logit of the eager network)
INPUT, OUTPUT = "features", "logits"
# torch 2.11's ONNX exporter fails on `1 - parameter`; this form gives the same values, bit for bit
_REWRITTEN = {torch.ops.aten.rsub.Scalar: lambda x, other: torch.neg(x) + other}
Network = Callable[[np.ndarray], np.ndarray]  # features [B, 1, F, T] to logits [B, C]


class ExportError(ValueError):
    """A network cannot be exported in the requested form, or the exported form computes wrong or non-finite logits."""


def export_program(network: nn.Module, shape: tuple[int, ...]) -> ExportedProgram:
    """Return `network` as a `torch.export` program for inputs `[B, *shape]` of any batch size B.

    This puts `network` into evaluation mode. ExportError if `torch.export` cannot trace the network's code.
    """
    example = torch.zeros(2, *shape, device=next(network.parameters()).device)
    try:
        return torch.export.export(network.eval(), (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # torch raises many error types when tracing fails; all mean that it failed
        first = str(error).strip().splitlines()[0]
        raise ExportError(
            f"torch.export cannot export the network {type(network).__name__} ({first}): expected code that it can "
            "trace; change the forward method of this class"
        ) from error


def save_program(program: ExportedProgram, path: Path) -> Network:
    """Write `program` to the file `path`; return a function on numpy arrays that runs the network loaded from it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found|The given buffer is not writable")
        torch.export.save(program, path)
        module = torch.export.load(path).module()

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x)).numpy()

    return run


def save_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write `program` to the ONNX file `path`, which also stores each value of `metadata` as JSON.

    Batch normalisation is folded into the convolutions. ExportError if ONNX cannot express the network.
    """
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
            raise ExportError(
                f"the network cannot be expressed in ONNX opset {OPSET} ({first}): expected operators of this opset; "
                "change the network's code"
            ) from error
    assert exported is not None
    model = exported.model_proto
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # remove the exporter's metadata, which contains file paths of this machine
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer, model.graph):
        del part.metadata_props[:]
    write_onnx(model, path, metadata)


def write_onnx(model: onnx.ModelProto, path: Path, metadata: Mapping[str, Any]) -> None:
    """Check `model` with onnx's checker and write it to `path`, together with each value of `metadata` as JSON."""
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that `write_onnx` stored in the ONNX file `path`, e.g. class names and front-end."""
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def store_half(source: Path, target: Path, metadata: Mapping[str, Any]) -> int:
    """Write the fp32 ONNX file `source` to `target` with float16 parameters; return the size of these in bytes.

    `Cast` nodes convert the parameters back to float32, so the arithmetic stays float32. The file `target` also stores
    each value of `metadata` as JSON. ExportError if a parameter is outside the range of float16.
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
                f"parameter {tensor.name} of {source.name} has a value outside the range of float16: expected absolute "
                "values of at most 65504; deploy this network in fp32 or int8"
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

    In a file from `save_onnx`, batch normalisation is folded into the convolutions, so it adds no bytes.
    """
    tensors = onnx.load(path).graph.initializer
    return sum(numpy_helper.to_array(t).nbytes for t in tensors if t.data_type == TensorProto.FLOAT)


class Runner:
    """Function from features `[B, 1, F, T]` to logits `[B, C]` that runs an ONNX file in onnxruntime on the CPU."""

    def __init__(self, path: Path, threads: int = 1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.session.run([OUTPUT], {INPUT: x})[0]  # type: ignore[return-value]


def largest_difference(what: str, found: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest absolute difference between the logits `found` of an exported network and `eager`.

    `eager` holds the logits of the eager network for the same clips. ExportError if a logit is not finite; `what` is
    the name of the exported network in the message.
    """
    for name, values in (("the network", eager), (what, found)):
        if not np.isfinite(values).all():
            raise ExportError(
                f"{name} computes logits that are not finite: expected finite logits; its weights are damaged, or its "
                "training diverged: use another checkpoint"
            )
    return float(np.abs(found - eager).max())


def check_equal(what: str, found: np.ndarray, eager: np.ndarray) -> float:
    """Raise ExportError if the logits `found` of an exported network differ too much from those of the eager network.

    Return the largest absolute difference; up to TOLERANCE * max(1, max |eager|) is allowed. `eager` holds the logits
    of the eager network for the same clips, and `what` is the name of the exported network in the message.
    """
    difference = largest_difference(what, found, eager)
    allowed = TOLERANCE * max(1.0, float(np.abs(eager).max()))
    if difference > allowed:
        raise ExportError(
            f"{what} differs from the eager network by {difference:.2g} in a logit; expected at most {allowed:.2g}: "
            "do not deploy this file"
        )
    return difference
