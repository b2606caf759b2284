"""Exported files compute what the network computes, int8 is int8, latencies are measured in turn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from ascmodels import export
from ascmodels.compress import quantize
from ascmodels.export import ExportError, Runner
from ascmodels.students import StudentConfig
from tests.support.trainables.deployed import METADATA, SHAPE, SMALL, clips, convolutions, student
from trainables.single.variants import WARM_UP, eager, latencies


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """Return a small student, its exported program and its ONNX file."""
    path = tmp_path_factory.mktemp("export") / "student_fp32.onnx"
    network = student()
    program = export.export_program(network, SHAPE)
    export.save_onnx(program, path, METADATA)
    return network, program, path


@pytest.fixture(scope="module")
def int8(exported) -> tuple[Path, quantize.Payload]:
    path = exported[2].with_name("int8.onnx")
    return path, quantize.quantize_onnx(exported[2], path, [clips(32)], METADATA)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_exported_forms_equal_the_network_at_any_batch(exported, tmp_path: Path, batch: int) -> None:
    network, program, path = exported
    x = clips(batch, seed=1)
    expected = eager(network)(x)
    assert export.check_equal("onnx", Runner(path)(x), expected) < 1e-5
    assert export.check_equal("pt2", export.save_program(program, tmp_path / "a.pt2")(x), expected) < 1e-5


@pytest.mark.slow
def test_onnx_says_its_classes_front_end_and_opset_and_no_paths(exported) -> None:
    model = onnx.load(exported[2])
    assert export.read_metadata(exported[2]) == METADATA
    assert model.opset_import[0].version == export.OPSET
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert str(Path(export.__file__).parent).encode() not in model.SerializeToString()


@pytest.mark.slow
def test_half_storage_is_the_rounded_network_in_half_the_bytes(exported, tmp_path: Path) -> None:
    network, _, path = exported
    saved_bytes = export.store_half(path, tmp_path / "half.onnx", METADATA)
    folded = sum(c.weight.numel() + c.out_channels for c in convolutions(network))  # BN becomes the biases
    assert saved_bytes == 2 * folded
    assert export.parameter_bytes(path) == 4 * folded
    rounded = onnx.load(path)
    for tensor in rounded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    export.write_onnx(rounded, tmp_path / "rounded.onnx", METADATA)
    x = clips(4)
    np.testing.assert_array_equal(Runner(tmp_path / "half.onnx")(x), Runner(tmp_path / "rounded.onnx")(x))


@pytest.mark.slow
def test_a_form_that_computes_something_else_is_refused(exported) -> None:
    expected = eager(exported[0])(clips(2))
    with pytest.raises(ExportError, match=r"wrong\.onnx differs from the eager network by 0\.01"):
        export.check_equal("wrong.onnx", expected + 0.01, expected)
    with pytest.raises(ExportError, match="not finite"):
        export.check_equal("wrong.onnx", expected * np.nan, expected)


@pytest.mark.slow
def test_payload_in_closed_form(exported, int8) -> None:
    """int8 weights, int32 biases, a float scale for each output channel, scale and zero point for each activation."""
    layers = convolutions(exported[0])
    weights, biases = sum(c.weight.numel() for c in layers), sum(c.out_channels for c in layers)
    found = int8[1]
    assert (found.weights, found.biases, found.others) == (weights, 4 * biases, 0)
    tensors, rest = divmod(found.scales - 4 * biases, 4 + 1)
    assert rest == 0
    assert len(layers) <= tensors <= 2 * len(layers) + 6  # input and output of each layer, tensors of the sums, logits
    assert found.total == weights + 8 * biases + 5 * tensors


@pytest.mark.slow
def test_int8_weights_are_the_rounded_ones(exported, int8) -> None:
    """Compare with round(w / s), s = max|w| / 127 in each output channel, for the folded weights w."""
    folded = {t.name: numpy_helper.to_array(t) for t in onnx.load(exported[2]).graph.initializer}
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(int8[0]).graph.initializer}
    weights = [name for name, value in folded.items() if value.ndim == 4]
    assert len(weights) == len(convolutions(exported[0])) == quantize.check_integer(int8[0])
    for name in weights:
        scale = np.abs(folded[name]).reshape(len(folded[name]), -1).max(axis=1) / 127
        np.testing.assert_allclose(stored[f"{name}_scale"], scale, rtol=1e-6)
        expected = np.rint(folded[name] / scale[:, None, None, None])
        assert stored[f"{name}_quantized"].dtype == np.int8
        assert np.abs(stored[f"{name}_quantized"] - expected).max() <= 1  # ties may be rounded up or down
        assert (stored[f"{name}_quantized"] == expected).mean() > 0.99


@pytest.mark.slow
def test_int8_agrees_with_the_network(exported, int8) -> None:
    x = clips(64, seed=2)
    expected, found = eager(exported[0])(x), Runner(int8[0])(x)
    assert 0 < np.abs(found - expected).max() < 0.1 * expected.std()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9
    assert export.read_metadata(int8[0]) == METADATA


@pytest.mark.slow
def test_a_network_that_was_not_quantised_is_refused_by_layer(exported, int8, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"stem\.0\.weight.* \(Conv\) has no int8 weights"):
        quantize.check_integer(exported[2])
    with pytest.raises(ExportError, match=r"12 calibration clips: .* 16"):
        quantize.quantize_onnx(exported[2], tmp_path / "few.onnx", [clips(12)], METADATA)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, grn=True),
        replace(SMALL, activation="silu", branches=("3x3", "1x1"), rep_stem=True),
        pytest.param(StudentConfig(family="tf_sepnet", base_channels=8), marks=pytest.mark.slow),
    ],
    ids=["relu", "grn", "silu", "tf_sepnet"],
)
def test_fake_quantisation_folds_rounds_and_leaves_again(config: StudentConfig) -> None:
    """Without its rounding of activations, the fake-quantised network equals the network with rounded weights."""
    network, x = student(config), clips(16)
    expected = eager(network)(x)
    fake = quantize.fake_quantized(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fake.modules())
    quantize.observe(fake, [x])
    rounded = eager(fake.eval())(x)
    bare = quantize.plain(fake)
    assert 0 < np.abs(rounded - expected).max() < 0.25 * expected.std()
    assert 0 < np.abs(eager(bare)(x) - expected).max() < 0.25 * expected.std()
    for layer in convolutions(bare):
        scale = layer.weight.flatten(1).abs().amax(1)[:, None] / 127
        steps = layer.weight.flatten(1) / scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_activation_quantiser_rounds_to_256_levels_of_its_range() -> None:
    quantizer = quantize.ActivationQuantizer()
    x = torch.linspace(-1, 3, 1001)
    quantizer(x)
    y = quantizer.eval()(x)
    step = 4 / 255
    assert torch.equal(quantizer.range, torch.tensor([-1.0, 3.0]))
    assert len(y.unique()) == 256
    assert (x - y).abs().max() <= 0.51 * step
    assert 0 in y  # 0 is represented exactly, because padding is 0
    assert quantizer(torch.tensor([9.0])) == pytest.approx(3, abs=step)
    quantizer.train()(torch.full((1,), 7.0))
    assert quantizer.range[1] == pytest.approx(3 + quantizer.momentum * 4)
    assert quantizer.range[0] == pytest.approx(-1 + quantizer.momentum)  # the range always includes 0


def test_latencies_are_taken_in_turn_without_the_first_ones() -> None:
    calls: list[str] = []
    times = latencies({"a": lambda: calls.append("a"), "b": lambda: sum(range(20_000))}, 30)
    assert len(calls) == 30 + WARM_UP
    assert times["a"].shape == times["b"].shape == (30, 2)
    assert (times["b"] > 0).all()
