"""Online teachers: their input is the augmented clip, and their logits and features are distilled."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ascmodels.config.student import FAMILY_OPTIONS
from ascmodels.students import StudentConfig, build_student
from data.augment import Draws, Mix, augment_waveforms
from data.features import LogMel
from data.impulse import load_impulses
from data.impulse import main as write_impulses
from tests.support.trainables.epochs import with_
from trainables.config.distill import DistillConfig
from trainables.engine.losses import kd_loss, similarity_loss
from trainables.trial.data import data_key, load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial


@pytest.mark.parametrize("method", ["logits", "probabilities", "greedy"])
def test_online_and_offline_teachers_say_the_same(with_teachers, method):
    online = with_(
        with_teachers, f'distill.ensemble="{method}"', f"distill.teacher_weights={[] if method == 'greedy' else [1, 3]}"
    )
    cached = load_trial_data(with_(online, 'distill.mode="offline"')).train
    data = load_trial_data(online)
    assert data.train.teacher is None
    assert data.online is not None
    assert cached.teacher is not None
    teach = data.online.batch_teacher(online.augment, torch.device("cpu"))
    picked = np.random.default_rng(0).permutation(len(cached.rows))[:12]
    logits_of_teachers = teach(picked, Draws()).logits
    assert logits_of_teachers.shape == (12, 10)
    assert logits_of_teachers.std(dim=0).max() > 0.05
    largest = cached.teacher.abs().max()
    assert (logits_of_teachers - cached.teacher[picked]).abs().max() <= 2.0**-10 * largest + 1e-5
    logits = torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(cached.labels[picked])
    both = [kd_loss(logits, labels, t, 0.2, 2.0).item() for t in (logits_of_teachers, cached.teacher[picked])]
    assert both[0] == pytest.approx(both[1], rel=1e-3)


def test_online_teachers_hear_the_augmented_clip(with_teachers, tmp_path):
    """Impulse response, roll and mixup are applied at each teacher's own sample rate, as computed here by hand."""
    write_impulses([str(tmp_path), "--count", "3"])
    loud = with_(with_teachers, "augment.dir_p=1", f"augment.dir_dir={json.dumps(str(tmp_path))}")
    data = load_trial_data(loud)
    assert data.online is not None
    teach = data.online.batch_teacher(loud.augment, torch.device("cpu"), with_features=False)
    picked, rng = np.arange(6), np.random.default_rng(0)
    mix = Mix(torch.tensor(0.3), torch.from_numpy(rng.permutation(6)))
    shifts = torch.from_numpy(rng.integers(-160, 161, size=6) / 16_000)
    draws = Draws(shifts, np.array([0, -1, 2, 1, -1, 0]), mix)
    expected = []
    for member in data.online.members:
        rate = member.front_end.sample_rate
        waves = member.clips.cache.batch(member.clips.rows[picked])
        x = LogMel(member.front_end)(augment_waveforms(waves, draws, rate, load_impulses(tmp_path, rate)))
        with torch.no_grad():
            expected.append(member.teacher(0.3 * x + 0.7 * x[mix.partner]))
    logits_of_teachers = teach(picked, draws).logits
    assert torch.allclose(logits_of_teachers, 0.25 * expected[0] + 0.75 * expected[1], atol=1e-4)
    assert not torch.allclose(logits_of_teachers, teach(picked, Draws()).logits, atol=1e-2)


def test_data_is_shared_only_where_the_teachers_are_the_same(with_teachers):
    keys = [data_key(with_(with_teachers, *o)) for o in ([], ['distill.mode="offline"'], ["distill.kd_alpha=1"])]
    assert len(set(keys)) == 3
    assert data_key(with_(with_teachers, "distill.kd_temp=2")) == keys[0]


def test_features_are_distilled_from_one_teacher(with_teachers, tmp_path):
    """With kd_alpha=1 the loss is CE + weight * SP, so training approaches the teacher's similarities."""
    one = with_(
        with_teachers,
        f"distill.teacher_ckpts={json.dumps([with_teachers.distill.teacher_ckpts[0]])}",
        "distill.teacher_weights=[]",
    )
    heavy = with_(one, "distill.kd_alpha=1", "distill.feature_weight=100", "prune.ratios=[]")
    data = load_trial_data(heavy)
    assert data.online is not None
    trial = Trial(heavy, data, tmp_path)
    without = Trial(replace(heavy, distill=DistillConfig(kd_alpha=1.0)), replace(data, online=None), tmp_path)
    picked = np.arange(16)
    assert trial.teachers is not None
    theirs = trial.teachers(picked, Draws()).features
    assert theirs is not None
    assert theirs.shape == (16, 16)
    x = trial.front_end(data.train.cache.batch(data.train.rows[picked]))

    def distance(t: Trial) -> float:
        with torch.no_grad():
            return similarity_loss(t.network.eval().features(x).mean(dim=(2, 3)), theirs).item()

    before = distance(trial)
    losses = [(next(run_trial(t)).train_loss, distance(t)) for t in (trial, without)]
    assert losses[0][0] > losses[1][0] + 0.01  # the similarity's share of the loss
    assert losses[0][1] < losses[1][1]
    assert losses[0][1] != before


@pytest.mark.parametrize("family", sorted(FAMILY_OPTIONS))
def test_features_and_classifier_are_the_network(family):
    model = build_student(StudentConfig(family=family)).eval()
    x = torch.randn(2, 1, 64, 40)
    with torch.no_grad():
        assert torch.equal(model.classifier(model.features(x)).mean(dim=(2, 3)), model(x))
