"""What training can be told beyond its defaults: schedules, accumulation, autocast, averaged weights, mixup, distilled
similarities, online teachers; the figures of calibration; and that all of it survives a restart."""

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ascmodels.checkpoint import CheckpointError, load_student
from ascmodels.students import Student, StudentConfig, build_student
from ascmodels.students.base import FAMILY_OPTIONS
from ascmodels.teachers import TeacherModelConfig, build_teacher, save_teacher
from data.augment import AugmentConfig, Draws, augment_waveforms, draw_mixup
from data.cache import open_cache
from data.features import FrontEndConfig, LogMel
from data.impulse import load_impulses
from data.impulse import main as write_impulses
from data.tau import SCENES, read_split
from trainables.config.compose import compose
from trainables.config.distill import DistillConfig
from trainables.config.schema import ConfigError, TrialConfig
from trainables.config.train import TrainConfig, enough_epochs
from trainables.engine.deployment import deploy
from trainables.engine.device import set_up_process, training_device
from trainables.engine.loop import (
    Epoch,
    EpochResult,
    TeacherOutput,
    TrainingDiverged,
    WeightAverage,
    batches,
    train_epoch,
)
from trainables.engine.losses import kd_loss, similarity_loss
from trainables.engine.metrics import calibration_error, measure
from trainables.engine.schedule import jku_factor, learning_rate, schedule
from trainables.inputs.clips import Clips
from trainables.outputs.records import Point, point_dict, point_row
from trainables.teachers.online import load_online
from trainables.trial.data import TrialData, data_key, load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial

FRONT_END = FrontEndConfig(8000, 512, 400, 250, 16)
OFF = AugmentConfig(roll_s=0, freq_mask=0, time_mask=0, mixstyle_p=0)


@pytest.fixture(scope="module")
def clips(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """The tiny training split (50 clips) with random teacher logits."""
    table = read_split(tiny_tau, "split100")
    cache = open_cache(tiny_tau, list(table.filename), 8000, tmp_path_factory.mktemp("cache"), progress=False)
    teacher = 3 * torch.randn(len(table), 10, generator=torch.Generator().manual_seed(0))
    return Clips(cache, cache.rows(list(table.filename)), table.label.to_numpy(), table.device.to_numpy(str), teacher)


def student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return build_student(StudentConfig(base_channels=8, n_blocks=(1, 1), strides=("b1:2x2",), branches=("3x3", "1x1")))


def without_bn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    pool = nn.AdaptiveAvgPool2d((8, 1))
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(32, 10))


def distilled(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
    return kd_loss(logits, labels, teacher, 0.5, 4.0)


def train(
    model: nn.Module, clips: Clips, config: TrainConfig, augment: AugmentConfig = OFF, **more: Any
) -> EpochResult:
    """One epoch with SGD at rate 0.1 and seed 0; `more` replaces fields of the Epoch."""
    groups = more.pop("groups", None) or [{"params": list(model.parameters())}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    epoch = Epoch(LogMel(FRONT_END), augment, config, distilled, lambda i: 0.1, np.random.default_rng(0))
    return train_epoch(model, optimizer, clips, replace(epoch, **more))


def some(clips: Clips, n: int) -> Clips:
    assert clips.teacher is not None
    return Clips(clips.cache, clips.rows[:n], clips.labels[:n], clips.devices[:n], clips.teacher[:n])


def features(clips: Clips, picked: np.ndarray) -> torch.Tensor:
    return LogMel(FRONT_END)(clips.cache.batch(clips.rows[picked]))


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [v.clone() for v in model.state_dict().values()]


# --- schedules ---


def test_jku_schedule_is_the_published_one():
    """CPJKU's student recipe in DCASE 2023: 150 epochs, rise 14, fall from 50 over 84, last 0.005; 1 step an epoch."""
    config = TrainConfig(schedule="jku", lr=2.0, warmup=14 / 150, rampdown_start=50 / 150, rampdown=84 / 150)
    rate = schedule(config, 150)
    got = [rate(s) for s in range(150)]
    rise = [math.exp(-5 * (1 - max(e, 0.5) / 14) ** 2) for e in range(14)]
    fall = [0.005 + (1 - 0.005) * (84 - (e - 50)) / 84 for e in range(51, 134)]
    assert got == pytest.approx([2 * f for f in rise + [1.0] * 37 + fall + [0.005] * 16], rel=1e-9)


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
    whole = train(one, some(clips, 48), TrainConfig(batch_size=16))
    accumulated = train(parts, some(clips, 48), TrainConfig(batch_size=8, accumulate=2))
    assert accumulated.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (accumulated.acc, accumulated.macro_avg_acc) == (whole.acc, whole.macro_avg_acc)
    for a, b in zip(weights(one), weights(parts), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(weights(one)[0], weights(without_bn())[0], atol=1e-3)  # it did learn


def test_unequal_batches_and_a_partial_last_step_count_by_their_clips(clips):
    """50 clips in batches of 8 or 7, four a step: 29 clips, then the 21 that are left."""
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
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(logits, labels, teacher):
        seen.append((logits.argmax(dim=1), labels))
        return F.cross_entropy(logits, labels)

    got = train(student(), clips, TrainConfig(batch_size=16), loss_of=spy)
    predicted, true = (torch.cat(t).tolist() for t in zip(*seen, strict=True))
    right = [p == t for p, t in zip(predicted, true, strict=True)]
    assert len(true) == 50
    assert got.acc == pytest.approx(sum(right) / 50)
    by_class = [np.mean([r for r, t in zip(right, true, strict=True) if t == c]) for c in sorted(set(true))]
    assert got.macro_avg_acc == pytest.approx(np.mean(by_class))


# --- averaged weights ---


def test_average_follows_its_recursion(clips):
    """In float64, from the weights seen after each step; the first ten steps are those of the warm-up."""
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
    assert not torch.equal(start, average.network.state_dict()["blocks.b1.expand.1.running_mean"])  # BN takes part
    assert all(torch.equal(a, b) for a, b in zip(after[-1], weights(model), strict=True))  # the model is left alone


# --- mixup ---


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_mixup_is_training_on_mixed_targets(clips, alpha):
    """Same loss as against mixed labels; with teachers the same gradient as against their mixed probabilities at T."""
    mixed, augment = without_bn(), replace(OFF, mixup_alpha=0.7)

    def loss_of(logits, labels, teacher):
        return kd_loss(logits, labels, teacher, alpha, 2.0)

    got = train(mixed, clips, TrainConfig(batch_size=50), augment, loss_of=loss_of)
    rng = np.random.default_rng(0)
    picked = batches(50, 50, rng)[0]
    mix = draw_mixup(augment, 50, rng, "cpu")
    assert mix is not None
    expected = without_bn()
    logits = expected(mix(features(clips, picked)))
    target = mix(F.one_hot(torch.from_numpy(clips.labels[picked]), 10).double())
    hard = -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    teacher = mix(F.softmax(clips.teacher[picked] / 2, dim=1))
    soft = (teacher * (teacher.log() - F.log_softmax(logits / 2, dim=1))).sum(dim=1).mean()
    (alpha * hard + (1 - alpha) * 4 * soft).backward()
    if alpha == 1:
        assert got.loss == pytest.approx(hard.item(), rel=1e-5)
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    for now, then in zip(weights(mixed), weights(expected), strict=True):
        assert torch.allclose(now, then, atol=1e-6)


# --- losses ---


def test_label_smoothing_moves_a_share_of_the_target_to_all_classes():
    logits, labels = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)
    teacher = torch.randn(6, 10, dtype=torch.float64)
    log_p = F.log_softmax(logits, dim=1)
    expected = -(0.9 * log_p[range(6), labels] + 0.1 * log_p.mean(dim=1)).mean()
    assert kd_loss(logits, labels, None, 1.0, 1.0, 0.1).item() == pytest.approx(expected.item())
    soft = kd_loss(logits, labels, teacher, 0.0, 3.0)  # the teacher's part is left alone
    both = kd_loss(logits, labels, teacher, 0.4, 3.0, 0.1)
    assert both.item() == pytest.approx((0.4 * expected + 0.6 * soft).item())


def test_similarity_loss_equals_a_double_loop():
    gen = torch.Generator().manual_seed(0)
    ours = torch.randn(5, 7, generator=gen, dtype=torch.float64).requires_grad_()
    theirs = torch.randn(5, 3, generator=gen, dtype=torch.float64)

    def rows(f: torch.Tensor) -> list[list[float]]:
        g = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in f.tolist()] for x in f.tolist()]
        return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in g]

    pairs = [(a, b) for r, s in zip(rows(ours), rows(theirs), strict=True) for a, b in zip(r, s, strict=True)]
    loss = similarity_loss(ours, theirs)
    assert loss.item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 25)
    loss.backward()
    assert ours.grad is not None
    assert ours.grad.abs().max() > 0
    assert similarity_loss(3 * theirs, theirs).item() == pytest.approx(0, abs=1e-12)  # scale and rotation do not count
    turn = torch.linalg.qr(torch.randn(3, 3, generator=gen, dtype=torch.float64))[0]
    assert similarity_loss(theirs @ turn, theirs).item() == pytest.approx(0, abs=1e-12)


# --- autocast, divergence ---


def test_bf16_trains_on_a_cpu_and_its_loss_is_float32(clips):
    dtypes = []

    def spy(logits, labels, teacher):
        dtypes.append(logits.dtype)
        return distilled(logits, labels, teacher)

    model, plain = student(), student()
    got = train(model, clips, TrainConfig(batch_size=16, amp="bf16"), loss_of=spy)
    full = train(plain, clips, TrainConfig(batch_size=16), loss_of=spy)
    assert set(dtypes) == {torch.float32}
    assert all(w.isfinite().all() for w in weights(model))
    assert got.loss == pytest.approx(full.loss, rel=0.1)
    assert got.loss != full.loss
    assert model.state_dict()["classifier.0.weight"].dtype == torch.float32


def test_fp16_leaves_out_steps_that_overflow(clips):
    """`train_epoch` itself takes fp16 on any device: a CPU shows the scaler at work."""
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
    """A finite loss whose gradient is not a number."""
    return F.cross_entropy(logits, labels) + (logits - logits).abs().sqrt().sum()


def test_a_gradient_that_is_not_finite_stops_before_it_is_used(clips):
    model = without_bn()
    with pytest.raises(TrainingDiverged, match=r"^stage 0, epoch 4: the gradient's norm is nan at step 1 of 4$"):
        train(model, clips, TrainConfig(batch_size=16), loss_of=root_of_nothing, where="stage 0, epoch 4")
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(without_bn()), strict=True))


def test_divergence_names_its_step(clips):
    calls = []

    def later(logits, labels, teacher):
        calls.append(1)
        return distilled(logits, labels, teacher) * (math.inf if len(calls) == 6 else 1)

    with pytest.raises(TrainingDiverged, match=r"the epoch: the loss is inf at step 3 of 4"):
        train(student(), clips, TrainConfig(batch_size=8, accumulate=2), loss_of=later)


# --- metrics ---


@pytest.mark.parametrize("seed", range(3))
def test_confusion_and_calibration_equal_counting_one_by_one(seed):
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(10, size=80), 3 * rng.standard_normal((80, 10)).astype(np.float32)
    logits[np.arange(80), labels] += 2
    got = measure(logits, labels, np.array(["a"] * 80))
    p = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    confusion = [[0] * 10 for _ in range(10)]
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(p, labels, strict=True):
        best = max(range(10), key=lambda c: row[c])
        confusion[label][best] += 1
        number = next(m for m in range(15) if row[best] <= (m + 1) / 15)  # ((m / 15), (m + 1) / 15]
        bins.setdefault(number, []).append((row[best], best == label))
    ece = sum(
        len(b) / 80 * abs(np.mean([right for _, right in b]) - np.mean([confidence for confidence, _ in b]))
        for b in bins.values()
    )
    assert got.confusion == confusion
    assert got.ece == pytest.approx(ece, abs=1e-9)
    assert got.acc == sum(confusion[c][c] for c in range(10)) / 80
    json.dumps(asdict(got))  # plain values


def test_calibration_at_its_ends():
    sure = np.ones(4)
    assert calibration_error(sure, np.array([True] * 4)) == 0
    assert calibration_error(sure, np.array([False] * 4)) == 1
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == 0
    assert math.isnan(calibration_error(np.array([0.5, np.nan]), np.array([True, True])))


def test_points_of_older_versions_are_read():
    old = {"step": 0, "epochs": 2, "val_macro_avg_acc": 0.5, "val_loss": 1.0, "macs": 9, "params": 3, "sparsity": 0.0}
    old |= {f"bytes_{p}": 6 for p in ("fp32", "fp16", "int8")} | {"feasible": True, "widths": {}, "checkpoint": "step0"}
    old |= {f"{kind}_acc": {} for kind in ("class", "device", "group")}
    point = Point(**old)
    assert (point.val_ece, point.train_macro_avg_acc, point.confusion) == (None, None, None)
    for values in (old, point_dict(point)):
        row = point_row("t", "complete", "experiments/t", values, {})
        assert row["val_ece"] is None
        assert "confusion" not in row


# --- online teachers ---


@pytest.fixture(scope="module")
def config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """One dense epoch, one prune step of two, a student at 16 kHz; nothing is augmented, nothing distilled."""
    set_up_process(1)
    folder = tmp_path_factory.mktemp("options")
    off = [f"augment.{name}=0" for name in ("roll_s", "freq_mask", "mixstyle_p")]
    return compose(
        [
            f"data.dataset_dir='{tiny_tau}'",
            f"data.cache_dir='{folder}'",
            *("frontend.sample_rate=16000", "frontend.n_fft=512", "frontend.win_length=512", "frontend.n_mels=16"),
            *("frontend.hop_length=400", "student.base_channels=8", "train.epochs=2", "train.batch_size=16"),
            *("student.n_blocks=[1,1]", "student.strides=[b1:2x2]"),
            *("prune.epochs=2", "prune.ratios=[0.3]", "train.device=cpu", "teacher.train.device=cpu"),
            *off,
        ]
    )


def with_(config: TrialConfig, *overrides: str) -> TrialConfig:
    values = dict(o.split("=", 1) for o in overrides)
    return TrialConfig.from_flat(config.flat() | {k: json.loads(v) for k, v in values.items()})


def untrained_teacher(folder: Path, seed: int, rate: int = 32_000) -> str:
    front_end = FrontEndConfig(rate, 1024, 800, 500, 16, mean=-3.0, std=4.0)
    torch.manual_seed(seed)
    shape = TeacherModelConfig(hidden_size=16, layers=1, heads=2)
    teacher = build_teacher(shape, len(SCENES), front_end.n_mels, front_end.frames)
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(4)  # logits that tell clips apart
    extra = {"classes": list(SCENES), "frontend": asdict(front_end), "validation": "", "val_macro_avg_acc": 0.1}
    save_teacher(folder / f"teacher{seed}", teacher, extra)
    return str(folder / f"teacher{seed}")


@pytest.fixture(scope="module")
def taught(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """The same, distilled online from two teachers of unequal weight, one of them at another sample rate."""
    folder = tmp_path_factory.mktemp("teachers")
    names = [untrained_teacher(folder, 0, 16_000), untrained_teacher(folder, 1)]
    return with_(
        config, f"distill.teacher_ckpts={json.dumps(names)}", "distill.teacher_weights=[1,3]", 'distill.mode="online"'
    )


@pytest.mark.parametrize("method", ["logits", "probabilities", "greedy"])
def test_online_and_offline_teachers_say_the_same(taught, method):
    online = with_(
        taught, f'distill.ensemble="{method}"', f"distill.teacher_weights={[] if method == 'greedy' else [1, 3]}"
    )
    cached = load_trial_data(with_(online, 'distill.mode="offline"')).train
    data = load_trial_data(online)
    assert data.train.teacher is None
    assert data.online is not None
    assert cached.teacher is not None
    hear = data.online.batch_teacher(online.augment, torch.device("cpu"))
    picked = np.random.default_rng(0).permutation(len(cached.rows))[:12]
    heard = hear(picked, Draws(None, None), None).logits
    assert heard.shape == (12, 10)
    assert heard.std(dim=0).max() > 0.05
    largest = cached.teacher.abs().max()
    assert (heard - cached.teacher[picked]).abs().max() <= 2.0**-10 * largest + 1e-5
    logits = torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(cached.labels[picked])
    both = [kd_loss(logits, labels, t, 0.2, 2.0).item() for t in (heard, cached.teacher[picked])]
    assert both[0] == pytest.approx(both[1], rel=1e-3)


def test_online_teachers_hear_the_augmented_clip(taught, tmp_path):
    """Response, roll and mixup reach each teacher at its own sample rate: as if done by hand."""
    write_impulses([str(tmp_path), "--count", "3"])
    loud = with_(taught, "augment.dir_p=1", f"augment.dir_dir={json.dumps(str(tmp_path))}")
    data = load_trial_data(loud)
    assert data.online is not None
    hear = data.online.batch_teacher(loud.augment, torch.device("cpu"), with_features=False)
    picked, rng = np.arange(6), np.random.default_rng(0)
    draws = Draws(rng.integers(-160, 161, size=6) / 16_000, np.array([0, -1, 2, 1, -1, 0]))
    mix = draw_mixup(replace(OFF, mixup_alpha=1.0), 6, rng, "cpu")
    assert mix is not None
    expected = []
    for member in data.online.members:
        rate = member.front_end.sample_rate
        waves = member.clips.cache.batch(member.clips.rows[picked])
        x = LogMel(member.front_end)(augment_waveforms(waves, draws, rate, load_impulses(tmp_path, rate)))
        with torch.no_grad():
            expected.append(member.teacher(mix.lam * x + (1 - mix.lam) * x[mix.partner]))
    heard = hear(picked, draws, mix).logits
    assert torch.allclose(heard, 0.25 * expected[0] + 0.75 * expected[1], atol=1e-4)
    assert not torch.allclose(heard, hear(picked, Draws(None, None), None).logits, atol=1e-2)


def test_mixed_clips_are_taught_by_what_teachers_say_of_them(clips):
    """An online teacher's logits belong to the mixed clip: both parts of the loss take them as they are."""
    given, told = torch.randn(50, 10), []

    def spy(logits, labels, teacher):
        told.append(teacher)
        return distilled(logits, labels, teacher)

    train(
        *(student(), replace(clips, teacher=None), TrainConfig(batch_size=50), replace(OFF, mixup_alpha=1.0)),
        loss_of=spy,
        teachers=lambda picked, draws, mix: TeacherOutput(given),
    )
    assert len(told) == 2
    assert all(t is given for t in told)


def test_data_is_shared_only_where_the_teachers_are_the_same(taught):
    keys = [data_key(with_(taught, *o)) for o in ([], ['distill.mode="offline"'], ["distill.kd_alpha=1"])]
    assert len(set(keys)) == 3
    assert data_key(with_(taught, "distill.kd_temp=2")) == keys[0]


def test_features_are_distilled_from_one_teacher(taught, tmp_path):
    """With kd_alpha=1 the gradient is that of CE + weight * SP: training towards the teacher's similarities."""
    one = with_(
        taught, f"distill.teacher_ckpts={json.dumps([taught.distill.teacher_ckpts[0]])}", "distill.teacher_weights=[]"
    )
    heavy = with_(one, "distill.kd_alpha=1", "distill.feature_weight=100", "prune.ratios=[]")
    data = load_trial_data(heavy)
    assert data.online is not None
    trial = Trial(heavy, data, tmp_path)
    without = Trial(replace(heavy, distill=DistillConfig(kd_alpha=1.0)), replace(data, online=None), tmp_path)
    picked = np.arange(16)
    assert trial.teachers is not None
    theirs = trial.teachers(picked, Draws(None, None), None).features
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


# --- a whole trial ---


@pytest.fixture(scope="module")
def everything(taught: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    folder = tmp_path_factory.mktemp("impulses")
    write_impulses([str(folder), "--count", "4"])
    return with_(
        taught,
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
        assert (second.average is None) == (stop_after == 2)  # between the stages there is none
        assert [replace(r, seconds=0) for r in run_trial(second)] == records[stop_after:]
        for key, value in whole.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[key]), key


def test_the_average_is_what_counts(config, tmp_path):
    """Validated, saved as the point and pruned next: it, not the weights that are trained."""
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


def test_checkpoints_of_older_versions_go_on(config, tmp_path):
    """They lack the keys of today, which then have their defaults; a key that differs from its default is named."""
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
        ({"amp": "fp8"}, r"train\.amp='fp8': expected one of off, bf16, fp16"),
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


def test_a_trial_refuses_before_it_trains(taught, config, tmp_path):
    plain = with_(config, "distill.kd_alpha=1")
    data = load_trial_data(plain)
    with pytest.raises(ValueError, match=r"train\.warmup_steps=400: the training has \d+ steps"):
        Trial(with_(plain, "train.warmup_steps=400"), data, tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"train\.amp='fp16' needs a CUDA device"):
            Trial(with_(plain, 'train.amp="fp16"', 'train.device="auto"'), data, tmp_path)
    with pytest.raises(ValueError, match="needs teacher logits"):
        Trial(taught, data, tmp_path)
    (tmp_path / "logits.safetensors").write_bytes(b"")
    logits = with_(
        taught,
        f"distill.teacher_ckpts={json.dumps([str(tmp_path / 'logits.safetensors')])}",
        "distill.teacher_weights=[]",
    )
    with pytest.raises(CheckpointError, match=r"is a file; distill\.mode=online needs the folder of a teacher"):
        load_online(logits, data)
    nobody = with_(taught, "distill.teacher_ckpts=[]", "distill.teacher_weights=[]")
    with pytest.raises(ValueError, match=r"distill\.teacher_ckpts names no teacher"):
        load_online(nobody, data)
    with pytest.raises(ConfigError, match=r"augment\.dir_p=0\.5 needs impulse responses"):
        with_(config, "augment.dir_p=0.5")
