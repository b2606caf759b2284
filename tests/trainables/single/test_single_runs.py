"""Single runs that are killed at any moment, mistyped, or refer to what is not a run: no data is lost."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from ascmodels.checkpoint import CheckpointError, save_student
from ascmodels.students import StudentConfig, build_student
from ascmodels.teachers import TeacherModelConfig, build_teacher, save_teacher
from data.config.frontend import FrontEndConfig
from data.impulse import main as write_impulses
from data.signals import INTERRUPTED
from data.tau import SCENES
from trainables import finetune_teacher
from trainables.config.distill import DistillConfig
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.deployment import describe_use
from trainables.engine.evaluation import Deployed
from trainables.inputs.clips import load_clips
from trainables.run_training import main
from trainables.single import fine_tuning, training
from trainables.single.run_folder import Run, RunError, newest_runs
from trainables.teachers.cached_logits import logits_file
from trainables.teachers.fine_tuning import teacher_key
from trainables.teachers.logits import save_logits

SMALL = ("frontend.n_fft=1024", "frontend.win_length=1024", "--n_mels=32", "--base_channels=8", "augment.freq_mask=4")


@pytest.fixture
def words(tiny_tau: Path, tmp_path: Path) -> list[str]:
    return [f"--storage={tmp_path / 'runs'}", f"--dataset_dir={tiny_tau}", *SMALL, "--n_epochs=1", "--batch_size=16"]


@pytest.fixture
def default_config(tiny_tau: Path, tmp_path: Path) -> TrialConfig:
    return TrialConfig.from_flat({"data.dataset_dir": str(tiny_tau), "data.cache_dir": str(tmp_path / "cache")})


def killed(*_, **__) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_before_the_first_epoch_it_goes_on_and_the_test_split_stays_closed(
    words, tmp_path, monkeypatch, capsys
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "prepare", killed)
        assert main([*words, "--no_test"]) == INTERRUPTED
    (run,) = newest_runs(tmp_path / "runs")
    assert main([words[0], "--evaluate", f"--ckpt_id={run.id}"]) == 2
    assert f"--ckpt_id={run.id}" in capsys.readouterr().out
    run.update(failure="of an earlier try")
    assert main([words[0], f"--ckpt_id={run.id}"]) == 0
    info = Run.find(tmp_path / "runs", run.id).info
    assert info["status"] == "complete"
    assert "validation" in info
    assert "test" not in info
    assert "failure" not in info


@pytest.mark.slow
def test_killed_while_it_is_measured_it_is_evaluated_and_ended_with_the_same_figures(
    words, tmp_path, monkeypatch, capsys
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "open_test_clips", killed)
        assert main(words) == INTERRUPTED
    (run,) = newest_runs(tmp_path / "runs")
    assert (run.info["status"], "MACs" in run.info) == ("running", False)
    assert main([words[0], "--evaluate", f"--ckpt_id={run.id}"]) == 0
    assert "MACs" in capsys.readouterr().out
    evaluated = Run.find(tmp_path / "runs", run.id).info
    assert main([words[0], f"--ckpt_id={run.id}"]) == 0
    ended = Run.find(tmp_path / "runs", run.id).info
    assert ended["status"] == "complete"
    for part in ("MACs", "Params", "validation", "test"):
        assert evaluated[part] == ended[part]


@pytest.mark.slow
def test_a_teacher_of_another_division_is_told(words, tiny_tau, tmp_path, capsys) -> None:
    values = {"data.dataset_dir": str(tiny_tau), "data.cache_dir": str(tmp_path / "runs" / "cache")}
    names = load_clips(TrialConfig.from_flat(values), 32_000).train.cache.filenames
    noise = torch.randn(len(names), 10, generator=torch.Generator().manual_seed(0))
    for validation, expected in (("another", True), (None, False)):
        manifest = {"classes": SCENES, **({"validation": validation} if validation else {})}
        save_logits(tmp_path / "t.safetensors", names, noise, manifest)
        assert main([*words, f"--teacher_ckpts={tmp_path / 't.safetensors'}", "--no_test"]) == 0
        assert ("fine-tuned on another division" in capsys.readouterr().out) == expected


def test_what_is_mistyped_or_no_single_run_is_refused(words, tmp_path, capsys) -> None:
    def refusal(*typed: str) -> str:
        assert main([words[0], *typed]) == 2
        return " ".join(capsys.readouterr().out.split())

    assert "--ckpt_id is empty" in refusal("--ckpt_id=")
    assert "--no_test" in refusal("--evaluate", "--ckpt_id=a", "--no_test")
    pruned = Run.new(tmp_path / "runs", "prune", TrialConfig(), ["python"], "prune-1")
    pruned.update()
    assert "progressive_prune.py --resume prune-1" in refusal("--ckpt_id=prune-1")
    trial = tmp_path / "runs" / "study" / "experiments" / "t0000"
    trial.mkdir(parents=True)
    (trial / "info.json").write_text(
        json.dumps({"trial_id": "t0000", "status": "complete", "points": [], "config": {}})
    )
    assert f"{trial} is a trial" in refusal("--evaluate", f"--ckpt_id={trial}")
    with pytest.raises(RunError, match=r"no run 'x' in .* none yet"):
        Run.find(tmp_path / "runs" / "study", "x")


def test_a_folder_that_cannot_be_made_is_told_in_one_line(words, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main([f"--storage={tmp_path / 'file'}", *words[1:]]) == 2
    assert "error:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--kd_alpha=0.6"], True),
        (["--teacher_ckpts", "t1.ckpt"], True),
        (["distill.teacher_ckpts=[a]"], True),
        (["--distill.teacher_ckpts=a"], True),
        (["++distill.kd_alpha=0.5"], True),
        (["--kd_temp=3", "--mixup_alpha=0.3"], False),
    ],
)
def test_naming_teachers_in_any_way_means_distillation(typed: list[str], expected: bool) -> None:
    assert training.distils(typed) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_networks_of_a_gpu_run_without_a_gpu(default_config, tmp_path) -> None:
    save_student(tmp_path / "step0", build_student(StudentConfig(base_channels=8)).fuse(), describe_use(TrialConfig()))
    with pytest.raises(ConfigError, match=r"train\.device='cuda', but PyTorch sees no CUDA device"):
        Deployed(tmp_path / "step0", "cuda")
    c = default_config.teacher
    extra = {"classes": SCENES, "frontend": asdict(c.frontend), "validation": "", "val_macro_avg_acc": 0.1}
    teacher = build_teacher(c.model, len(SCENES), c.frontend.n_mels, c.frontend.frames)
    save_teacher(tmp_path / "teacher", teacher, extra)
    config = replace(default_config, teacher=replace(c, train=replace(c.train, device="cuda")))
    with pytest.raises(ConfigError, match=r"teacher\.train\.device='cuda', but PyTorch sees no CUDA device"):
        logits_file(config, tmp_path / "teacher")


def test_a_flag_that_changes_no_teacher_is_told(words, monkeypatch, capsys) -> None:
    monkeypatch.setattr(fine_tuning, "fine_tuned_teacher", killed)
    assert finetune_teacher.main([*words, "--lr=1e-4", "teacher.train.epochs=2"]) == INTERRUPTED
    output = capsys.readouterr().out
    assert "note: train.lr " in output and "teacher.train.lr" in output
    assert "note: train.batch_size" in output
    assert "teacher.teacher" not in output


def test_a_teacher_is_another_when_its_impulse_responses_are(default_config, tmp_path) -> None:
    clips = load_clips(default_config, default_config.teacher.frontend.sample_rate)
    augment = replace(default_config.teacher.augment, dir_p=0.5, dir_dir=str(tmp_path / "impulses"))
    with_impulses = replace(default_config, teacher=replace(default_config.teacher, augment=augment))
    keys = [teacher_key(default_config, clips)]
    for seed in ("0", "0", "1"):
        assert write_impulses([str(tmp_path / "impulses"), "--count=2", f"--seed={seed}"]) == 0
        keys.append(teacher_key(with_impulses, clips))
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_values_that_would_fail_later_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"distill\.teacher_ckpts names no teacher to weigh"):
        DistillConfig(teacher_weights=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"frontend\.f_min=20000: .*16000\.0 Hz"):
        FrontEndConfig(f_min=20_000)
    with pytest.raises(ValueError, match=r"frontend\.n_fft=4096 .*2000"):
        FrontEndConfig(sample_rate=2000)
    with pytest.raises(CheckpointError, match=r"patch_size=100 does not fit 64 mel bins x 51 frames"):
        build_teacher(TeacherModelConfig(patch_size=100), 10, 64, 51)
