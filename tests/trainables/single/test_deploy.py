"""Deployment: exported files compute what the network computes, int8 is int8, and the command leaves all of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from ascmodels import export
from ascmodels.checkpoint import save_student
from ascmodels.compress import quantize
from ascmodels.export import ExportError, Runner
from ascmodels.students import Student, StudentConfig, build_student
from trainables import deploy
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.engine.deployment import describe_use
from trainables.inputs.clips import load_clips
from trainables.outputs.records import write_info
from trainables.single.variants import WARM_UP, eager, latencies

SMALL = StudentConfig(base_channels=8, n_blocks=(1, 1), strides=("b2:2x1",))
SHAPE = (1, 32, 65)
METADATA = {"classes": ["a", "b"], "frontend": {"n_mels": 32, "f_max": None}}


def student(config: StudentConfig = SMALL, seed: int = 0) -> Student:
    """A deployed student whose batch normalisation has something to fold."""
    torch.manual_seed(seed)
    network = build_student(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.fuse()


def clips(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """A small student, its program and its ONNX file."""
    path = tmp_path_factory.mktemp("export") / "student_fp32.onnx"
    network = student()
    program = export.export_program(network, SHAPE)
    export.save_onnx(program, path, METADATA)
    return network, program, path


@pytest.fixture(scope="module")
def int8(exported) -> tuple[Path, quantize.Payload]:
    path = exported[2].with_name("int8.onnx")
    return path, quantize.quantize_onnx(exported[2], path, [clips(32)], METADATA)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


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
    taken = export.store_half(path, tmp_path / "half.onnx", METADATA)
    folded = sum(c.weight.numel() + c.out_channels for c in convolutions(network))  # BN becomes the biases
    assert taken == 2 * folded
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
    """int8 weights, int32 biases, a float scale an output channel; scale and zero point for each rounded tensor."""
    layers = convolutions(exported[0])
    weights, biases = sum(c.weight.numel() for c in layers), sum(c.out_channels for c in layers)
    found = int8[1]
    assert (found.weights, found.biases, found.others) == (weights, 4 * biases, 0)
    tensors, rest = divmod(found.scales - 4 * biases, 4 + 1)
    assert rest == 0
    assert len(layers) <= tensors <= 2 * len(layers) + 6  # input and output of each, those of the sum, the logits
    assert found.total == weights + 8 * biases + 5 * tensors


@pytest.mark.slow
def test_int8_weights_are_the_rounded_ones(exported, int8) -> None:
    """A second implementation: round(w / s) with s = max|w| / 127 in each output channel, of the folded weights."""
    folded = {t.name: numpy_helper.to_array(t) for t in onnx.load(exported[2]).graph.initializer}
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(int8[0]).graph.initializer}
    weights = [name for name, value in folded.items() if value.ndim == 4]
    assert len(weights) == len(convolutions(exported[0])) == quantize.check_integer(int8[0])
    for name in weights:
        scale = np.abs(folded[name]).reshape(len(folded[name]), -1).max(axis=1) / 127
        np.testing.assert_allclose(stored[f"{name}_scale"], scale, rtol=1e-6)
        expected = np.rint(folded[name] / scale[:, None, None, None])
        assert stored[f"{name}_quantized"].dtype == np.int8
        assert np.abs(stored[f"{name}_quantized"] - expected).max() <= 1  # a tie may fall to either side
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
    """Its roundings taken out, what remains is the network with rounded weights; without training nothing else."""
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
    assert 0 in y  # zero is exact: padding must be
    assert quantizer(torch.tensor([9.0])) == pytest.approx(3, abs=step)
    quantizer.train()(torch.full((1,), 7.0))
    assert quantizer.range[1] == pytest.approx(3 + quantizer.momentum * 4)
    assert quantizer.range[0] == pytest.approx(-1 + quantizer.momentum)  # 0 always lies within


def test_latencies_are_taken_in_turn_without_the_first_ones() -> None:
    calls: list[str] = []
    times = latencies({"a": lambda: calls.append("a"), "b": lambda: sum(range(20_000))}, 30)
    assert len(calls) == 30 + WARM_UP
    assert times["a"].shape == times["b"].shape == (30, 2)
    assert (times["b"] > 0).all()


@pytest.fixture(scope="module")
def config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    cache = tmp_path_factory.mktemp("cache")
    return compose(
        [
            *(f"data.dataset_dir='{tiny_tau}'", f"data.cache_dir='{cache}'", "distill.kd_alpha=1"),
            *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
            *("student=cp_mobile", "student.base_channels=8", "student.n_blocks=[1,1]", "student.strides=[b2:2x1]"),
            *("train.batch_size=16", "train.device=cpu", "train.amp=bf16"),  # which quantisation does without
        ]
    )


@pytest.fixture
def run(config: TrialConfig, tmp_path: Path) -> Callable[..., int]:
    """`run(*words)`: the command on a run `r1` in tmp_path."""
    folder = tmp_path / "experiments" / "r1"
    info = {"id": "r1", "kind": "train", "created": "2026-01-01", "status": "complete", "config": config.flat()}
    write_info(folder, info)
    save_student(folder / "last.ckpt", student(), describe_use(config))
    return lambda *words: deploy.main([f"--storage={tmp_path}", "--latency_runs=10", *words])


@pytest.mark.slow
def test_the_command_leaves_every_form_with_its_figures(run: Callable[..., int], config: TrialConfig, tmp_path: Path):
    assert run("--ckpt_id=r1", "--qat_epochs=1", "--calibration_clips=20", "--qat_lr=0.01") == 0
    folder = tmp_path / "experiments" / "r1" / "deploy" / "last.ckpt"
    info = json.loads((folder / "deploy.json").read_text())
    files = {"student.pt2", "student_waveform.pt2", "student_fp32.onnx", "student_fp16.onnx", "deploy.json"}
    files |= {"student_int8_ptq.onnx", "student_int8_qat.onnx", "deploy.csv"}
    assert {p.name for p in folder.iterdir()} == files
    forms = {f["form"]: f for f in info["forms"]}
    assert list(forms) == ["fp32", "fp16", "fp32 ONNX", "fp16 ONNX", "int8 PTQ", "int8 QAT"]
    assert (forms["fp32"]["parameter_bytes"], forms["fp16"]["parameter_bytes"]) == (
        4 * info["Params"],
        2 * info["Params"],
    )
    assert info["calibration_clips"] == 20
    assert max(info["export_difference"].values()) < 1e-4
    data = load_clips(config, config.frontend.sample_rate)
    front_end = deploy.LogMel(config.frontend)
    x = front_end(data.validation.cache.batch(data.validation.rows)).numpy()
    for form in forms.values():  # measured again from the file
        assert form["latency_ms"] > 0
        if not form["file"]:
            continue
        path = folder / form["file"]
        predicted = Runner(path)(x).argmax(1)
        labels = data.validation.labels
        macro = np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)])
        assert form["val_macro_avg_acc"] == pytest.approx(macro)
        assert export.read_metadata(path)["classes"] == info["classes"]
        assert form["file_bytes"] == path.stat().st_size
    # fine-tuning has changed the integer weights, and both networks compute in integers
    ptq, qat = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / forms[f]["file"]).graph.initializer}
        for f in ("int8 PTQ", "int8 QAT")
    )
    kernels = [[w for w in tensors.values() if w.dtype == np.int8 and w.ndim == 4] for tensors in (ptq, qat)]
    assert (
        len(kernels[0]) == len(kernels[1]) == info["int8"]["int8 QAT"]["layers"] == info["int8"]["int8 PTQ"]["layers"]
    )
    assert any(not np.array_equal(a, b) for a, b in zip(*kernels, strict=True))
    # the waveform program is front-end and network in one
    waveforms = data.validation.cache.batch(data.validation.rows[:3])
    whole = torch.export.load(folder / "student_waveform.pt2").module()
    torch.testing.assert_close(
        whole(waveforms).detach().numpy(), Runner(folder / "student_fp32.onnx")(x[:3]), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "neither --ckpt_id nor --checkpoint"),
        (("--ckpt_id=r1", "--checkpoint=x"), "both --ckpt_id and --checkpoint"),
        (("--ckpt_id=absent",), "no run 'absent'"),
        (("--checkpoint={tmp_path}/absent",), "no student checkpoint in"),
        (("--ckpt_id=r1", "--calibration_clips=3"), "--calibration_clips 3: expected at least 16"),
        (("--ckpt_id=r1", "--qat_lr=0"), "--qat_lr 0.0: "),
        (("--ckpt_id=r1", "--qat_epochs=1", "--kd_alpha=0.5"), "distill.kd_alpha=0.5"),
        (("--ckpt_id=r1", "--nonsense=1"), "unknown flag --nonsense"),
        (("--ckpt_id=r1", "--dataset_dir=/nowhere"), "/nowhere"),
        (("--ckpt_id=r1", "--out={tmp_path}"), "deploy.json"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert run(*(word.format(tmp_path=tmp_path) for word in words)) == 2
    out = capsys.readouterr().out
    assert told in out
    assert "Traceback" not in out
    assert not (tmp_path / "experiments" / "r1" / "deploy").exists()


def test_a_copied_checkpoint_is_deployed_with_the_configuration_that_it_carries(config, tmp_path: Path):
    """Its seed above all: another one would measure it on clips that it has learnt."""
    carried = replace(config, seed=7)
    found = deploy.configuration(tmp_path / "last.ckpt", {"config": carried.flat()}, ["--subset=50"], tmp_path)
    assert (found.seed, found.data.subset, found.train) == (7, 50, config.train)
    (tmp_path / "info.json").write_text(json.dumps({"config": replace(config, seed=8).flat()}))
    assert deploy.configuration(tmp_path / "last.ckpt", {"config": carried.flat()}, [], tmp_path).seed == 8


def test_damaged_networks_are_refused(
    run: Callable[..., int], config: TrialConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "experiments" / "r1" / "last.ckpt"
    network = student()
    with torch.no_grad():
        network.classifier[0].weight.fill_(float("nan"))  # type: ignore[operator, union-attr]
    save_student(folder, network, describe_use(config))
    assert run("--ckpt_id=r1") == 2
    assert "not finite" in capsys.readouterr().out
    save_student(folder, student(), describe_use(config) | {"classes": ["cat", "dog"]})
    assert run("--ckpt_id=r1") == 2
    assert "('cat', 'dog')" in capsys.readouterr().out
    (folder / "weights.safetensors").write_bytes(b"half of one")
    assert run("--ckpt_id=r1") == 2
    assert "damaged" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "experiments" / "r1").glob("**/student*.onnx")] == []
