"""The command `trainables/deploy.py`: every form with its figures, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from ascmodels import export
from ascmodels.checkpoint import save_student
from ascmodels.export import Runner
from tests.support.trainables.deployed import student
from trainables import deploy
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.engine.deployment import describe_use
from trainables.inputs.clips import load_clips
from trainables.outputs.records import write_info
from trainables.single import exporting
from trainables.single.run_folder import RunError


@pytest.fixture(scope="module")
def config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    cache = tmp_path_factory.mktemp("cache")
    return compose(
        [
            *(f"data.dataset_dir='{tiny_tau}'", f"data.cache_dir='{cache}'", "distill.kd_alpha=1"),
            *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
            *("student=cp_mobile", "student.base_channels=8", "student.n_blocks=[1,1]", "student.strides=[b2:2x1]"),
            *("train.batch_size=16", "train.device=cpu", "train.amp=bf16"),  # quantisation turns bf16 off
        ]
    )


@pytest.fixture
def run(config: TrialConfig, tmp_path: Path) -> Callable[..., int]:
    """Return a function that calls the command with `words`, for a finished run `r1` in tmp_path."""
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
    front_end = exporting.LogMel(config.frontend)
    x = front_end(data.validation.cache.batch(data.validation.rows)).numpy()
    for form in forms.values():  # measured again, from the file
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
    waveform_program = torch.export.load(folder / "student_waveform.pt2").module()
    torch.testing.assert_close(
        waveform_program(waveforms).detach().numpy(), Runner(folder / "student_fp32.onnx")(x[:3]), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "neither --ckpt_id nor --checkpoint"),
        (("--ckpt_id=r1", "--checkpoint=x"), "both --ckpt_id and --checkpoint"),
        (("--ckpt_id=absent",), "no run 'absent'"),
        (("--checkpoint={tmp_path}/absent",), "no student checkpoint in"),
        (("--ckpt_id=r1", "--calibration_clips=3"), "--calibration_clips 3: expected at least 16"),
        (("--ckpt_id=r1", "--qat_lr=0"), "--qat_lr 0.0: "),
        (("--ckpt_id=r1", "--qat_epochs=1", "--kd_alpha=0.5"), "distill.kd_alpha=0.5"),
        (("--ckpt_id=r1", "--nonsense=1"), "unknown flag --nonsense"),
        (("--ckpt_id=r1", "profile=full"), "profile=full is a group of keys"),
        (("--ckpt_id=r1", "--repconv=true"), "student=rep_mobile is a group of keys"),
        (("--ckpt_id=r1", "train.batch_siz=8"), "unknown configuration key train.batch_siz"),
        (("--ckpt_id=r1", "--dataset_dir=/nowhere"), "/nowhere"),
        (("--ckpt_id=r1", "--out={tmp_path}"), "deploy.json"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(*(word.format(tmp_path=tmp_path) for word in words)) == 2
    out = capsys.readouterr().out
    assert message in out
    assert "Traceback" not in out
    assert not (tmp_path / "experiments" / "r1" / "deploy").exists()


def test_a_copied_checkpoint_is_deployed_with_the_configuration_that_it_carries(config, tmp_path: Path):
    """Another seed would divide the clips otherwise and measure the network on clips of its training."""
    carried = replace(config, seed=7)
    found = exporting.configuration(tmp_path / "last.ckpt", {"config": carried.flat()}, ["--subset=50"], tmp_path)
    assert (found.seed, found.data.subset, found.train) == (7, 50, config.train)
    (tmp_path / "info.json").write_text(json.dumps({"config": replace(config, seed=8).flat()}))
    assert exporting.configuration(tmp_path / "last.ckpt", {"config": carried.flat()}, [], tmp_path).seed == 8


@pytest.mark.parametrize("text", ['{"config": "text"}', '{"config": [1]}', "[]", "42", "[" * 100_000, "{"])
def test_a_damaged_info_json_is_named(config: TrialConfig, tmp_path: Path, text: str) -> None:
    (tmp_path / "info.json").write_text(text)
    with pytest.raises(RunError, match=rf"{tmp_path}/info\.json is damaged"):
        exporting.configuration(tmp_path / "last.ckpt", {}, [], tmp_path)


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
