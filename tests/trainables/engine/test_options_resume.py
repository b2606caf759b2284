"""Trials with every training option resume bit for bit, and refuse impossible options before they train."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ascmodels.checkpoint import CheckpointError, load_student
from data.impulse import main as write_impulses
from tests.support.trainables.epochs import with_
from trainables.config.distill import DistillConfig
from trainables.config.schema import ConfigError, TrialConfig
from trainables.config.train import TrainConfig
from trainables.engine.deployment import deploy
from trainables.engine.loop import (
    TrainingDiverged,
)
from trainables.engine.metrics import measure
from trainables.teachers.online import load_online
from trainables.trial.data import TrialData, load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial


@pytest.fixture(scope="module")
def everything(with_teachers: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    folder = tmp_path_factory.mktemp("impulses")
    write_impulses([str(folder), "--count", "4"])
    return with_(
        with_teachers,
        *('train.schedule="jku"', "train.ema_decay=0.9", "train.accumulate=2", "train.label_smoothing=0.1"),
        *('train.amp="bf16"', "augment.mixup_alpha=0.3", "augment.dir_p=0.6", "augment.roll_s=0.1"),
        *(f"augment.dir_dir={json.dumps(str(folder))}", "augment.mixstyle_p=0.5"),
    )


def finished(config: TrialConfig, data: TrialData, folder: Path) -> tuple[Trial, list[Any]]:
    trial = Trial(config, data, folder)
    return trial, [replace(r, seconds=0) for r in run_trial(trial)]


@pytest.mark.slow
def test_a_trial_with_everything_on_resumes_bit_for_bit(everything, tmp_path):
    data = load_trial_data(everything)
    whole, records = finished(everything, data, tmp_path / "whole")
    assert len(records) == 4
    for stop_after in (1, 2, 3):
        first = Trial(everything, data, tmp_path / "points")
        driver = run_trial(first)
        for _ in range(stop_after):
            next(driver)
        (tmp_path / f"{stop_after}").mkdir()
        first.save(tmp_path / f"{stop_after}")
        second = Trial(everything, data, tmp_path / "points")
        second.load(tmp_path / f"{stop_after}")
        assert (second.average is None) == (stop_after == 2)  # between two stages there is no average
        assert [replace(r, seconds=0) for r in run_trial(second)] == records[stop_after:]
        for key, value in whole.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[key]), key


def test_the_average_is_what_counts(config, tmp_path):
    """The averaged weights, not the trained ones, are validated, saved as the point and pruned next."""
    averaged = with_(config, "distill.kd_alpha=1", "train.ema_decay=0.9")
    data = load_trial_data(averaged)
    trial = Trial(averaged, data, tmp_path)
    driver = run_trial(trial)
    next(driver)
    average, trained = trial.network.state_dict(), trial.model.state_dict()
    assert not torch.equal(average["classifier.0.weight"], trained["classifier.0.weight"])
    record = next(driver)
    assert record.point is not None
    assert trial.average is None
    saved, _ = load_student(tmp_path / "step0")
    for key, value in deploy(trial.model, averaged.limits.precision).state_dict().items():
        assert torch.equal(value, saved.state_dict()[key])
    x = trial.front_end(data.validation.cache.batch(data.validation.rows))
    with torch.no_grad():
        metrics = measure(saved(x).numpy(), data.validation.labels, data.validation.devices)
    assert record.point.val_macro_avg_acc == pytest.approx(metrics.macro_avg_acc)
    assert record.point.val_ece == pytest.approx(metrics.ece, abs=1e-5)
    assert record.point.confusion == metrics.confusion
    assert record.point.train_macro_avg_acc == record.train_macro_avg_acc
    assert not torch.equal(trained["classifier.0.weight"], trial.model.state_dict()["classifier.0.weight"])


@pytest.mark.parametrize("validated", [True, False])
def test_a_soup_is_the_mean_of_the_best_epochs(config, tmp_path, validated):
    """Without validation clips, of the last ones. A restored trial ends with the same network."""
    words = ("distill.kd_alpha=1", "train.soup=2", "train.epochs=4", "prune.epochs=3")
    souped = with_(config, *words, *(() if validated else ("data.validation_share=0",)))
    data = load_trial_data(souped)
    trial = Trial(souped, data, tmp_path / "whole")
    driver, weights, accuracies = run_trial(trial), [], []
    for _ in range(3):
        accuracies.append(next(driver).val_macro_avg_acc)
        weights.append({k: v.clone() for k, v in trial.network.state_dict().items()})
    (tmp_path / "saved").mkdir()
    trial.save(tmp_path / "saved")
    point = next(driver).point
    assert point is not None
    plain = Trial(with_(souped, "train.soup=0"), data, tmp_path / "plain")
    last = [r for _, r in zip(range(4), run_trial(plain), strict=False)][-1]
    weights.append(plain.network.state_dict())
    accuracies.append(last.val_macro_avg_acc)
    best = sorted(range(4), key=lambda i: (accuracies[i] or 0, i))[-2:]
    found = trial.network.state_dict()
    for key, value in found.items():
        if value.is_floating_point():
            assert torch.allclose(value, (weights[best[0]][key] + weights[best[1]][key]) / 2, atol=1e-6), key
    assert not torch.equal(found["classifier.0.weight"], weights[3]["classifier.0.weight"])
    restored = Trial(souped, data, tmp_path / "restored")
    restored.load(tmp_path / "saved")
    ends = [[r.point.val_loss for r in run_trial(t) if r.point] for t in (restored, trial)]
    assert ends[0] == [point.val_loss, *ends[1]]
    pairs = zip(restored.model.parameters(), trial.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_checkpoints_of_older_versions_go_on(config, tmp_path):
    """Their missing keys count as defaults; the error names a key whose value differs from its default."""
    plain = with_(config, "distill.kd_alpha=1")
    data = load_trial_data(plain)
    trial = Trial(plain, data, tmp_path)
    trial.save(tmp_path)
    state = torch.load(tmp_path / "trial.pt", weights_only=True)
    known = {k: v for k, v in json.loads(state["config"]).items() if k not in ("train.amp", "augment.dir_p")}
    torch.save(
        {k: v for k, v in state.items() if k != "averaged"} | {"config": json.dumps(known)}, tmp_path / "trial.pt"
    )
    Trial(plain, data, tmp_path).load(tmp_path)
    rounded = with_(plain, 'train.amp="bf16"')
    with pytest.raises(CheckpointError, match=r"train\.amp: off in the checkpoint, bf16 expected"):
        Trial(rounded, data, tmp_path).load(tmp_path)


def test_a_validation_loss_that_is_not_finite_is_a_divergence(config, tmp_path):
    plain = with_(config, "distill.kd_alpha=1", "train.lr=1e30")
    trial = Trial(plain, load_trial_data(plain), tmp_path)
    with pytest.raises(TrainingDiverged, match=r"stage 0, epoch 1: the .* is (nan|inf)"):
        list(run_trial(trial))
    assert trial.points == []


# --- what is refused ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": math.inf}, r"train\.lr=inf"),
        ({"weight_decay": math.nan}, r"train\.weight_decay=nan"),
        ({"schedule": "step"}, r"train\.schedule='step': expected one of cosine, jku"),
        ({"amp": "fp8"}, r"train\.amp='fp8': expected one of auto, off, bf16, fp16"),
        ({"accumulate": 0}, r"train\.accumulate=0"),
        ({"warmup_steps": -1}, r"train\.warmup_steps=-1"),
        ({"label_smoothing": 1.0}, r"train\.label_smoothing=1\.0: expected a number in \[0, 1\)"),
        ({"ema_decay": math.nan}, r"train\.ema_decay=nan"),
        ({"rampdown": 1.1}, r"train\.rampdown=1\.1: expected a share"),
        ({"rampdown_start": -0.1}, r"train\.rampdown_start=-0\.1"),
        ({"last_lr": math.nan}, r"train\.last_lr=nan"),
    ],
)
def test_train_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kd_alpha": math.nan}, r"distill\.kd_alpha=nan: expected a weight in \[0, 1\]"),
        ({"kd_temp": math.inf}, r"distill\.kd_temp=inf: expected a finite temperature"),
        ({"mode": "live"}, r"distill\.mode='live': expected one of offline, online"),
        ({"feature_weight": -1.0, "mode": "online"}, r"distill\.feature_weight=-1\.0: expected a finite"),
        ({"feature_weight": math.inf, "mode": "online"}, r"distill\.feature_weight=inf"),
        ({"feature_weight": 1.0}, r"feature_weight=1\.0 needs distill\.mode=online .* found distill\.mode=offline"),
        ({"feature_weight": 1.0, "mode": "online", "teacher_ckpts": ("a", "b")}, r"one .*teacher; found .* 2 teachers"),
    ],
)
def test_distill_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**values)


def test_a_trial_refuses_before_it_trains(with_teachers, config, tmp_path):
    plain = with_(config, "distill.kd_alpha=1")
    data = load_trial_data(plain)
    with pytest.raises(ValueError, match=r"train\.warmup_steps=400: the training has \d+ steps"):
        Trial(with_(plain, "train.warmup_steps=400"), data, tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"train\.amp='fp16' needs a CUDA device"):
            Trial(with_(plain, 'train.amp="fp16"', 'train.device="auto"'), data, tmp_path)
    with pytest.raises(ValueError, match=r"distill\.kd_alpha=0\.5 .* needs a teacher"):
        Trial(with_teachers, data, tmp_path)
    (tmp_path / "logits.safetensors").write_bytes(b"")
    logits = with_(
        with_teachers,
        f"distill.teacher_ckpts={json.dumps([str(tmp_path / 'logits.safetensors')])}",
        "distill.teacher_weights=[]",
    )
    with pytest.raises(CheckpointError, match=r"is a file; distill\.mode=online needs the folder of a teacher"):
        load_online(logits, data)
    nobody = with_(with_teachers, "distill.teacher_ckpts=[]", "distill.teacher_weights=[]")
    with pytest.raises(ValueError, match=r"distill\.teacher_ckpts names no teacher"):
        load_online(nobody, data)
    with pytest.raises(ConfigError, match=r"augment\.dir_p=0\.5 needs impulse responses"):
        with_(config, "augment.dir_p=0.5")
