"""The losses: distillation, its teachers' logits, label smoothing, similarities."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ascmodels.checkpoint import CheckpointError
from trainables.config.distill import DistillConfig
from trainables.engine.losses import kd_loss, similarity_loss
from trainables.teachers.ensemble import combine
from trainables.teachers.logits import folder_hash, load_logits, save_logits


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def drawn(seed: int, n: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(n, 10, generator=gen, dtype=torch.float64),
        torch.randint(10, (n,), generator=gen),
        3 * torch.randn(n, 10, generator=gen, dtype=torch.float64),
    )


@pytest.mark.parametrize(("alpha", "temp"), [(0.5, 4.0), (0.02, 2.0), (0.0, 1.0), (1.0, 3.0), (0.3, 0.5)])
def test_kd_loss_equals_the_formula(alpha, temp):
    logits, labels, teacher = drawn(0)
    z, t = logits.numpy(), teacher.numpy()
    hard = -np.log(softmax(z)[np.arange(7), labels.numpy()]).mean()
    p, q = softmax(t / temp), softmax(z / temp)
    soft = (p * np.log(p / q)).sum(axis=1).mean()  # summed over classes, averaged over the batch
    expected = alpha * hard + (1 - alpha) * temp**2 * soft
    assert kd_loss(logits, labels, teacher, alpha, temp).item() == pytest.approx(expected, rel=1e-12)


def test_kd_loss_at_its_ends():
    logits, labels, teacher = drawn(1)
    assert torch.equal(kd_loss(logits, labels, None, 0.3, 4.0), F.cross_entropy(logits, labels))
    assert torch.allclose(kd_loss(logits, labels, teacher, 1.0, 4.0), F.cross_entropy(logits, labels))
    student = teacher.clone().requires_grad_()
    loss = kd_loss(student, labels, teacher, 0.0, 4.0)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    shifted = kd_loss(teacher + 5, labels, teacher, 0.0, 4.0)  # a constant added to all logits has no effect
    assert abs(shifted.item()) < 1e-12
    other = logits.clone().requires_grad_()
    kd_loss(other, labels, teacher, 0.0, 4.0).backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 1e-3


def test_soft_loss_tends_to_half_the_mean_squared_difference_of_logits():
    """Hinton et al. 2015, section 2.1: at high T, T^2 * KL tends to sum((z - v)^2) / (2 C) of centred logits z, v."""
    logits, labels, teacher = drawn(2)
    difference = (logits - teacher) - (logits - teacher).mean(dim=1, keepdim=True)
    limit = difference.square().sum(dim=1).mean().item() / 20
    assert kd_loss(logits, labels, teacher, 0.0, 1e4).item() == pytest.approx(limit, rel=1e-3)


def test_logits_meet_by_filename(tmp_path):
    names = [f"audio/clip-{i}.wav" for i in range(40)]
    logits = 8 * torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    save_logits(tmp_path / "logits.safetensors", names, logits)
    order = np.random.default_rng(0).permutation(40)[:25]
    read = load_logits(tmp_path / "logits.safetensors", [names[i] for i in order])
    assert read.dtype == torch.float32
    assert torch.equal(read, logits[order].half().float())
    assert ((read - logits[order]).abs() <= 2.0**-11 * logits[order].abs() + 2.0**-25).all()  # half a step of fp16
    twice = load_logits(tmp_path / "logits.safetensors", [names[3], names[3]])
    assert torch.equal(twice[0], twice[1])
    with pytest.raises(CheckpointError, match=r"no logits for 2 of 3 clips, first audio/new\.wav"):
        load_logits(tmp_path / "logits.safetensors", [names[0], "audio/new.wav", "audio/newer.wav"])
    assert [p.name for p in tmp_path.iterdir()] == ["logits.safetensors"]


def test_ensemble_is_the_mean_of_logits():
    parts = [torch.full((2, 3), float(v)) for v in (1, 2, 6)]
    assert torch.equal(combine(parts, "logits"), torch.full((2, 3), 3.0))
    assert torch.equal(combine(parts[:1], "logits"), parts[0])


def test_folder_hash_follows_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    first = folder_hash(tmp_path)
    assert folder_hash(tmp_path) == first
    (tmp_path / "b").write_text("3")
    second = folder_hash(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c")
    assert len({first, second, folder_hash(tmp_path)}) == 3


@pytest.mark.parametrize("values", [{"kd_alpha": 1.1}, {"kd_alpha": -0.1}, {"kd_temp": 0.0}, {"kd_temp": -1.0}])
def test_distill_config_refuses(values):
    ((key, value),) = values.items()
    with pytest.raises(ValueError, match=rf"distill\.{key}={value}: expected"):
        DistillConfig(**values)


def test_label_smoothing_moves_a_share_of_the_target_to_all_classes():
    logits, labels = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)
    teacher = torch.randn(6, 10, dtype=torch.float64)
    log_p = F.log_softmax(logits, dim=1)
    expected = -(0.9 * log_p[range(6), labels] + 0.1 * log_p.mean(dim=1)).mean()
    assert kd_loss(logits, labels, None, 1.0, 1.0, 0.1).item() == pytest.approx(expected.item())
    soft = kd_loss(logits, labels, teacher, 0.0, 3.0)  # the teacher's part is not smoothed
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
    assert similarity_loss(3 * theirs, theirs).item() == pytest.approx(
        0, abs=1e-12
    )  # scale and rotation have no effect
    turn = torch.linalg.qr(torch.randn(3, 3, generator=gen, dtype=torch.float64))[0]
    assert similarity_loss(theirs @ turn, theirs).item() == pytest.approx(0, abs=1e-12)
