"""Trials that start from a base (a trained network), without the command `progressive_prune.py`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ascmodels.checkpoint import CheckpointError, load_student
from ascmodels.config.prune import PruneConfig, PruningError
from ascmodels.nessi import get_torch_size
from ascmodels.students import Student
from tests.support.trainables.comparison import same
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.deployment import deploy
from trainables.engine.schedule import schedule
from trainables.outputs.records import point_dict
from trainables.trial import stages
from trainables.trial.data import TrialData, load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.start import Start
from trainables.trial.trial import Trial

pytestmark = pytest.mark.slow  # whole trials


@pytest.fixture(scope="module")
def data(config: TrialConfig) -> TrialData:
    return load_trial_data(config)


@pytest.fixture(scope="module")
def base(config: TrialConfig, data: TrialData, tmp_path_factory: pytest.TempPathFactory) -> Student:
    trial = Trial(replace(config, prune=PruneConfig()), data, tmp_path_factory.mktemp("base"))
    list(run_trial(trial))
    return trial.model


def test_a_base_is_measured_and_never_trained(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    before = {k: v.clone() for k, v in base.state_dict().items()}
    trial = Trial(config, data, tmp_path, Start(base), validate_pruned=True)
    records = list(run_trial(trial))
    assert [(r.stage, r.epoch, r.epochs) for r in records] == [(0, 0, 0), (1, 1, 1), (2, 1, 2)]
    assert trial.total_epochs == 2
    assert all(torch.equal(before[k], v) for k, v in base.state_dict().items())
    assert same(load_student(tmp_path / "step0")[0], deploy(base, "fp16"))
    first, *pruned = trial.points
    assert (first.val_acc_pruned, first.train_macro_avg_acc, first.sparsity) == (None, None, 0)
    assert all(p.val_acc_pruned is not None and 0 <= p.val_acc_pruned <= 1 for p in pruned)


@pytest.mark.parametrize("stop_after", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_restored_from_a_base_without_the_base(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path, stop_after: int
) -> None:
    """A stopped and restored trial uses the same clips for Taylor scores and gives equal networks."""
    p = replace(config.prune, criterion="taylor", scope="global", importance_clips=5)
    config = replace(config, prune=p)
    uninterrupted = Trial(config, data, tmp_path / "whole", Start(base), validate_pruned=True)
    records = list(run_trial(uninterrupted))
    first = Trial(config, data, tmp_path / "parts", Start(base), validate_pruned=True)
    driver = run_trial(first)
    for _ in range(stop_after):
        next(driver)
    first.save(tmp_path)
    second = Trial(config, data, tmp_path / "parts", validate_pruned=True)
    second.load(tmp_path)
    rest = list(run_trial(second))
    assert [replace(r, seconds=0) for r in rest] == [replace(r, seconds=0) for r in records[stop_after:]]
    assert [point_dict(p) for p in second.points] == [point_dict(p) for p in uninterrupted.points]
    assert same(second.model, uninterrupted.model)


@pytest.mark.parametrize(
    ("criterion", "scope"),
    [
        ("hessian", "isomorphic"),
        pytest.param("bn_scale", "global", marks=pytest.mark.slow),
        pytest.param("random", "global", marks=pytest.mark.slow),
        pytest.param("l1", "local", marks=pytest.mark.slow),
    ],
)
def test_what_the_trial_measures_stays_below_its_target(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path, criterion: str, scope: str
) -> None:
    dense = Trial(replace(config, prune=PruneConfig()), data, tmp_path).sizes[0][0]
    aim = PruneConfig(n_steps=2, target_macs=0.45 * dense, criterion=criterion, scope=scope, importance_clips=4)
    trial = Trial(replace(config, prune=replace(aim, epochs=1)), data, tmp_path, Start(base))
    list(run_trial(trial))
    for point, target in zip(trial.points[1:], aim.targets(dense), strict=True):
        assert 0.6 * target < point.macs <= target
        macs = get_torch_size(load_student(tmp_path / point.checkpoint)[0], (1, 1, 32, config.frontend.frames))
        assert macs == (point.macs, point.params)


def test_with_widths_a_dense_network_or_one_step_to_them(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    pruned = Trial(config, data, tmp_path / "pruned", Start(base))
    list(run_trial(pruned))
    bare = replace(config, prune=PruneConfig())
    dense = Trial(bare, data, tmp_path / "dense", Start(widths=pruned.model.widths))
    list(run_trial(dense))
    once = Trial(config, data, tmp_path / "once", Start(base, pruned.model.widths))
    list(run_trial(once))
    assert dense.model.widths == once.model.widths == pruned.model.widths
    assert dense.points[0].macs == once.points[1].macs == pruned.points[2].macs
    assert [len(t.points) for t in (pruned, dense, once)] == [3, 1, 2]


def test_retraining_may_leave_the_teacher_out(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    teacher = torch.randn(len(data.train.rows), 10, generator=torch.Generator().manual_seed(0))
    with_teacher = replace(data, train=replace(data.train, teacher=teacher))
    kd = replace(config, distill=replace(config.distill, kd_alpha=0.3))
    models = []
    for i, (c, d) in enumerate(
        [(config, data), (replace(kd, prune=replace(kd.prune, retrain_kd=False)), with_teacher), (kd, with_teacher)]
    ):
        trial = Trial(c, d, tmp_path / str(i), Start(base))
        list(run_trial(trial))
        models.append(trial.model)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


@pytest.mark.parametrize(("dense", "retrain"), [(5, 2), (2, 3)])
def test_rewound_rates_are_the_end_of_the_dense_schedule(
    config: TrialConfig,
    data: TrialData,
    base: Student,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dense: int,
    retrain: int,
) -> None:
    """If retraining is longer than dense training, it stretches the complete schedule."""
    rates: list[float] = []
    train = stages.train_epoch

    def spy(model: Any, optimizer: Any, clips: Any, epoch: Any) -> Any:
        rates.extend(epoch.lr_of(i) for i in range(n_steps))
        return train(model, optimizer, clips, epoch)

    monkeypatch.setattr(stages, "train_epoch", spy)
    prune = replace(config.prune, ratios=(0.3,), epochs=retrain, lr_mode="rewind", lr=9.0)
    config = replace(config, prune=prune, train=replace(config.train, epochs=dense))
    n_steps = config.train.epoch_steps(len(data.train.rows))
    list(run_trial(Trial(config, data, tmp_path, Start(base))))
    dense_schedule = schedule(config.train, max(dense, retrain) * n_steps)
    expected = [dense_schedule(i) for i in range(max(dense, retrain) * n_steps)]
    assert rates == expected[-retrain * n_steps :]


def test_a_wound_back_schedule_whose_warm_up_would_not_end_is_refused_before_training(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    slow = replace(config, train=replace(config.train, warmup_steps=400))
    Trial(slow, data, tmp_path, Start(base))  # retraining with its own learning rate has its own warm-up
    with pytest.raises(ConfigError, match=r"train\.warmup_steps=400: the training has \d+ steps"):
        Trial(replace(slow, prune=replace(config.prune, lr_mode="rewind")), data, tmp_path, Start(base))


def test_a_state_of_an_older_version_is_gone_on_with(config: TrialConfig, data: TrialData, tmp_path: Path) -> None:
    trial = Trial(config, data, tmp_path)
    driver = run_trial(trial)
    next(driver)
    trial.save(tmp_path)
    state = torch.load(tmp_path / "trial.pt", weights_only=True)
    for key in ("from_base", "widths", "sizes", "val_acc_pruned", "averaged"):
        del state[key]
    state["config"] = json.dumps({k: v for k, v in config.flat().items() if k not in ("prune.n_steps", "train.amp")})
    torch.save(state, tmp_path / "trial.pt")
    again = Trial(config, data, tmp_path)
    again.load(tmp_path)
    assert (again.stage, again.epoch, again.sizes) == (0, 1, trial.sizes)
    expected, actual = next(driver), next(run_trial(again))
    assert replace(actual, seconds=0) == replace(expected, seconds=0)


def test_a_base_of_another_architecture_is_refused(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    wider = replace(config, student=replace(config.student, base_channels=16))
    with pytest.raises(CheckpointError, match="the base holds another architecture"):
        Trial(wider, data, tmp_path, Start(base))
    far = replace(config, prune=PruneConfig(n_steps=1, target_macs=10.0))
    with pytest.raises(PruningError, match=r"prune\.target_macs=10: .* out of reach"):
        Trial(far, data, tmp_path, Start(base))


def test_importance_clips_come_from_seed_and_stage(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    trial = Trial(replace(config, prune=replace(config.prune, importance_clips=4)), data, tmp_path, Start(base))
    losses_of_stage = {}
    for stage in (1, 2, 1):
        trial.stage = stage
        losses = [loss.item() for loss in stages._clip_losses(trial, base.eval())]
        assert len(losses) == 4
        assert losses_of_stage.setdefault(stage, losses) == losses
    assert losses_of_stage[1] != losses_of_stage[2]
    assert np.isfinite([*losses_of_stage[1], *losses_of_stage[2]]).all()
