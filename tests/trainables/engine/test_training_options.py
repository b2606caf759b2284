"""Options of training: schedules, accumulated batches, averaged weights, mixup, autocast; divergence."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.augment import draw_epoch
from tests.support.trainables.epochs import (
    FRONT_END,
    OFF,
    distilled,
    features,
    some,
    student,
    train,
    weights,
    without_bn,
)
from trainables.config.train import TrainConfig, enough_epochs
from trainables.engine.averages import WeightAverage
from trainables.engine.batches import balanced, batches
from trainables.engine.device import training_device
from trainables.engine.loop import TeacherOutput, TrainingDiverged
from trainables.engine.losses import kd_loss
from trainables.engine.schedule import jku_factor, learning_rate, schedule

# --- schedules ---


def test_jku_schedule_is_the_published_one():
    """The student schedule of CPJKU, DCASE 2023: 150 epochs, rise 14, fall from 50 over 84, last rate 0.005."""
    config = TrainConfig(schedule="jku", lr=2.0, warmup=14 / 150, rampdown_start=50 / 150, rampdown=84 / 150)
    rate = schedule(config, 150)
    rates = [rate(s) for s in range(150)]
    rise = [math.exp(-5 * (1 - max(e, 0.5) / 14) ** 2) for e in range(14)]
    fall = [0.005 + (1 - 0.005) * (84 - (e - 50)) / 84 for e in range(51, 134)]
    assert rates == pytest.approx([2 * f for f in rise + [1.0] * 37 + fall + [0.005] * 16], rel=1e-9)


def test_jku_phases_may_overlap_or_be_absent():
    assert jku_factor(3, 10, 0, 10, 0.1) == pytest.approx(math.exp(-5 * 0.7**2) * (1 - 0.9 * 0.3))
    assert [jku_factor(s, 0, 5, 0, 0.1) for s in (0, 5, 6)] == pytest.approx([1.0, 1.0, 0.1])
    assert [jku_factor(s, 0, 9, 3, 0.5) for s in (9, 12, 40)] == pytest.approx([1.0, 0.5, 0.5])


def test_warm_up_in_steps_is_dense_trainings():
    config = TrainConfig(lr=2.0, warmup=0.5, warmup_steps=7)
    assert [schedule(config, 100)(s) for s in range(100)] == [learning_rate(s, 100, 2.0, 0.07) for s in range(100)]
    assert [schedule(config, 6, 0.5)(s) for s in range(6)] == [learning_rate(s, 6, 0.5, 0.5) for s in range(6)]
    none = schedule(replace(config, warmup_steps=0), 100)
    assert none(0) == 2.0
    with pytest.raises(ValueError, match=r"train\.warmup_steps=7: the training has 7 steps"):
        schedule(config, 7)


def test_steps_of_an_epoch_follow_accumulation():
    assert [TrainConfig(batch_size=16, accumulate=k).epoch_steps(50) for k in (1, 2, 3, 4, 9)] == [4, 2, 2, 1, 1]
    assert enough_epochs(TrainConfig(epochs=3, min_steps=9, batch_size=16, accumulate=2), 50) == 5


# --- accumulation, rates of groups, accuracy ---


def test_accumulated_batches_equal_one_large_batch(clips):
    one, parts = without_bn(), without_bn()
    large_batch = train(one, some(clips, 48), TrainConfig(batch_size=16))
    accumulated = train(parts, some(clips, 48), TrainConfig(batch_size=8, accumulate=2))
    assert accumulated.loss == pytest.approx(large_batch.loss, rel=1e-5)
    assert (accumulated.acc, accumulated.macro_avg_acc) == (large_batch.acc, large_batch.macro_avg_acc)
    for a, b in zip(weights(one), weights(parts), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(weights(one)[0], weights(without_bn())[0], atol=1e-3)  # the weights changed


def test_unequal_batches_and_a_partial_last_step_count_by_their_clips(clips):
    """50 clips in batches of 8 or 7, four batches a step: a step of 29 clips, then one of the remaining 21."""
    model, expected = without_bn(), without_bn()
    train(model, clips, TrainConfig(batch_size=8, accumulate=4))
    parts = batches(50, 8, np.random.default_rng(0))
    assert [len(p) for p in parts] == [8, 7, 7, 7, 7, 7, 7]
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for picked in (np.concatenate(parts[:4]), np.concatenate(parts[4:])):
        optimizer.zero_grad()
        labels = torch.from_numpy(clips.labels[picked])
        distilled(expected(features(clips, picked)), labels, clips.teacher[picked]).backward()
        optimizer.step()
    for a, b in zip(weights(model), weights(expected), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_groups_have_their_own_share_of_the_rate(clips):
    free, scaled = without_bn(), without_bn()
    config = TrainConfig(batch_size=50)
    train(free, clips, config)
    *first, weight, bias = scaled.parameters()
    groups = [{"params": first, "lr_scale": 0.25}, {"params": [weight, bias]}]
    train(scaled, clips, config, groups=groups)
    for share, start, a, b in zip(
        (0.25, 0.25, 1, 1), weights(without_bn()), weights(free), weights(scaled), strict=True
    ):
        assert torch.allclose(b - start, share * (a - start), atol=1e-6)
    assert not torch.equal(weights(free)[0], weights(scaled)[0])


def test_training_accuracy_is_counted_on_the_batches(clips):
    batches_seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(logits, labels, teacher):
        batches_seen.append((logits.argmax(dim=1), labels))
        return F.cross_entropy(logits, labels)

    result = train(student(), clips, TrainConfig(batch_size=16), loss_of=spy)
    predicted, true = (torch.cat(t).tolist() for t in zip(*batches_seen, strict=True))
    right = [p == t for p, t in zip(predicted, true, strict=True)]
    assert len(true) == 50
    assert result.acc == pytest.approx(sum(right) / 50)
    by_class = [np.mean([r for r, t in zip(right, true, strict=True) if t == c]) for c in sorted(set(true))]
    assert result.macro_avg_acc == pytest.approx(np.mean(by_class))


# --- averaged weights ---


def test_average_follows_its_recursion(clips):
    """Compare with the recursion in float64 over the weights after each step; the warm-up lasts ten steps."""
    model = student()
    average, after = WeightAverage(model, 0.7), [weights(model)]
    start = average.network.state_dict()["blocks.b1.expand.1.running_mean"].clone()

    def step(i: int) -> None:
        average.update(model, i)
        after.append(weights(model))

    train(model, clips, TrainConfig(batch_size=3), after_step=step)
    assert len(after) == 18
    expected = [w.double() for w in after[0]]
    for t, now in enumerate(after[1:]):
        d = min(0.7, (1 + t) / (10 + t))
        expected = [d * e + (1 - d) * w if w.is_floating_point() else w for e, w in zip(expected, now, strict=True)]
    for e, got, last in zip(expected, weights(average.network), after[-1], strict=True):
        assert torch.allclose(e.to(got.dtype), got, atol=1e-5)
        assert got.dtype == last.dtype
    assert not torch.equal(
        start, average.network.state_dict()["blocks.b1.expand.1.running_mean"]
    )  # BN is averaged, too
    assert all(torch.equal(a, b) for a, b in zip(after[-1], weights(model), strict=True))  # the model is unchanged


# --- mixup ---


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_mixup_is_training_on_mixed_targets(clips, alpha):
    """The loss equals that of mixed labels, and the gradient that of the teachers' mixed probabilities at T."""
    mixed, augment = without_bn(), replace(OFF, mixup_alpha=0.7)

    def loss_of(logits, labels, teacher):
        return kd_loss(logits, labels, teacher, alpha, 2.0)

    result = train(mixed, clips, TrainConfig(batch_size=50), augment, loss_of=loss_of)
    rng = np.random.default_rng(0)
    picked = batches(50, 50, rng)[0]
    mix = draw_epoch(augment, FRONT_END, [clips.devices[picked]], 0, rng)[0].mixup
    assert mix is not None
    expected = without_bn()
    logits = expected(mix(features(clips, picked)))
    target = mix(F.one_hot(torch.from_numpy(clips.labels[picked]), 10).double())
    hard = -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    teacher = mix(F.softmax(clips.teacher[picked] / 2, dim=1))
    soft = (teacher * (teacher.log() - F.log_softmax(logits / 2, dim=1))).sum(dim=1).mean()
    (alpha * hard + (1 - alpha) * 4 * soft).backward()
    if alpha == 1:
        assert result.loss == pytest.approx(hard.item(), rel=1e-5)
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    for now, then in zip(weights(mixed), weights(expected), strict=True):
        assert torch.allclose(now, then, atol=1e-6)


# --- autocast, divergence ---


def test_bf16_trains_on_a_cpu_and_its_loss_is_float32(clips):
    dtypes = []

    def spy(logits, labels, teacher):
        dtypes.append(logits.dtype)
        return distilled(logits, labels, teacher)

    model, plain = student(), student()
    result = train(model, clips, TrainConfig(batch_size=16, amp="bf16"), loss_of=spy)
    full = train(plain, clips, TrainConfig(batch_size=16), loss_of=spy)
    assert set(dtypes) == {torch.float32}
    assert all(w.isfinite().all() for w in weights(model))
    assert result.loss == pytest.approx(full.loss, rel=0.1)
    assert result.loss != full.loss
    assert model.state_dict()["classifier.0.weight"].dtype == torch.float32


def test_fp16_leaves_out_steps_that_overflow(clips):
    """`train_epoch` accepts fp16 on any device, so the gradient scaler can be tested on a CPU."""
    calls, steps, model = [], [], student()
    config = TrainConfig(batch_size=16, amp="fp16")

    def overflows_once(logits, labels, teacher):
        calls.append(logits.dtype)
        steps.append(weights(model)[0])
        return distilled(logits, labels, teacher) * (1e9 if len(calls) == 2 else 1)

    train(model, clips, config, loss_of=overflows_once)
    assert set(calls) == {torch.float32}
    assert [torch.equal(a, b) for a, b in itertools.pairwise(steps)] == [False, True, False]
    with pytest.raises(TrainingDiverged, match=r"the gradient's norm is nan at step 1 of 4"):  # no step is left
        train(model, clips, config, loss_of=root_of_nothing)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_fp16_needs_cuda():
    with pytest.raises(ValueError, match=r"train\.amp='fp16' needs a CUDA device.*use bf16 or off"):
        training_device(TrainConfig(amp="fp16"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_an_epoch_on_a_gpu(clips, amp):
    model = student().cuda()
    config = TrainConfig(batch_size=16, amp=amp, accumulate=2)
    losses = [train(model, clips, config).loss for _ in range(6)]
    assert all(math.isfinite(v) for v in losses)
    assert losses[-1] < losses[0]
    with pytest.raises(TrainingDiverged, match=r"at step 1 of 2"):
        train(model, replace(clips, teacher=torch.full((50, 10), float("nan"))), config)


def root_of_nothing(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
    """Return a finite loss whose gradient is NaN."""
    return F.cross_entropy(logits, labels) + (logits - logits).abs().sqrt().sum()


def test_a_gradient_that_is_not_finite_stops_before_it_is_used(clips):
    model = without_bn()
    with pytest.raises(TrainingDiverged, match=r"^stage 0, epoch 4: the gradient's norm is nan at step 1 of 4; "):
        train(model, clips, TrainConfig(batch_size=16), loss_of=root_of_nothing, where="stage 0, epoch 4")
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(without_bn()), strict=True))


def test_divergence_names_its_step(clips):
    calls = []

    def later(logits, labels, teacher):
        calls.append(1)
        return distilled(logits, labels, teacher) * (math.inf if len(calls) == 6 else 1)

    with pytest.raises(TrainingDiverged, match=r"the epoch: the loss is inf at step 3 of 4"):
        train(student(), clips, TrainConfig(batch_size=8, accumulate=2), loss_of=later)


def test_mixed_clips_are_taught_by_what_teachers_say_of_them(clips):
    """Online teachers compute logits of the mixed clip, which both parts of the mixed loss use unchanged."""
    logits_of_teacher, used = torch.randn(50, 10), []

    def spy(logits, labels, teacher):
        used.append(teacher)
        return distilled(logits, labels, teacher)

    train(
        *(student(), replace(clips, teacher=None), TrainConfig(batch_size=50), replace(OFF, mixup_alpha=1.0)),
        loss_of=spy,
        teachers=lambda picked, draws: TeacherOutput(logits_of_teacher),
    )
    assert len(used) == 2
    assert all(t is logits_of_teacher for t in used)


# --- sampling ---


def test_balanced_sampling_draws_each_group_equally_often(clips):
    clips = some(clips, 33)  # not balanced itself
    for sampling in ("class", "device", "class_device"):
        drawn = np.concatenate([balanced(clips, sampling, np.random.default_rng(i)) for i in range(400)])
        parts = [clips.labels[drawn].astype(str)] if "class" in sampling else []
        parts += [clips.devices[drawn]] if "device" in sampling else []
        _, counts = np.unique([" ".join(group) for group in zip(*parts, strict=True)], return_counts=True)
        assert counts.sum() == 400 * len(clips.rows) and counts.min() > 0.7 * counts.max()
    with pytest.raises(ValueError, match=r"train\.sampling='even'"):
        TrainConfig(sampling="even")
