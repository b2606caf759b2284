"""The training loop: learning rate, batches, epochs, predictions, options that are refused."""

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ascmodels.students import Student, StudentConfig, build_student
from data.cache import open_cache
from data.config.augment import AugmentConfig
from data.config.frontend import FrontEndConfig
from data.features import LogMel
from data.tau import read_split
from tests.support.ascmodels.students import TINY, features, logits_of, train_a_little
from trainables.config.train import TrainConfig
from trainables.engine.batches import batches
from trainables.engine.deployment import folded
from trainables.engine.device import pick_device
from trainables.engine.loop import Epoch, TrainingDiverged, predict, train_epoch
from trainables.engine.losses import kd_loss
from trainables.engine.metrics import measure
from trainables.engine.schedule import learning_rate
from trainables.inputs.clips import Clips


def test_learning_rate_rises_then_falls_along_a_cosine():
    rates = [learning_rate(s, 100, 2.0, 0.1) for s in range(100)]
    assert rates[:10] == pytest.approx([2 * (s + 1) / 11 for s in range(10)])
    assert rates[10] == 2.0 == max(rates)
    assert rates[55] == pytest.approx(1.0)
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * k / 90) for k in range(90)])
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001
    assert learning_rate(100, 100, 2.0, 0.1) == pytest.approx(0)
    assert learning_rate(0, 100, 2.0, 0.0) == 2.0
    for n in range(1, 12):
        assert all(0 < learning_rate(s, n, 1.0, 0.3) <= 1 for s in range(n))


def test_batches_partition_the_clips():
    for n, size in itertools.product((1, 2, 5, 31, 32, 33, 64, 257), (2, 3, 32, 256)):
        parts = batches(n, size, np.random.default_rng(0))
        assert sorted(np.concatenate(parts).tolist()) == list(range(n))
        sizes = [len(p) for p in parts]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1  # no small last batch
        assert len(parts) == -(-n // size)
    first, again, other = (np.concatenate(batches(50, 8, np.random.default_rng(s))).tolist() for s in (0, 0, 1))
    assert first == again != other
    assert first != sorted(first)


FRONT_END = FrontEndConfig(8000, 512, 400, 250, 16)
OFF = AugmentConfig(roll_s=0, freq_mask=0, time_mask=0, mixstyle_p=0)


@pytest.fixture(scope="module")
def clips(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """The tiny training split; the first column of the teacher logits is the number of the clip."""
    table = read_split(tiny_tau, "split100")
    cache = open_cache(tiny_tau, list(table.filename), 8000, tmp_path_factory.mktemp("cache"), progress=False)
    teacher = torch.randn(len(table), 10, generator=torch.Generator().manual_seed(0))
    teacher[:, 0] = torch.arange(len(table))
    return Clips(cache, cache.rows(list(table.filename)), table.label.to_numpy(), table.device.to_numpy(str), teacher)


def new_student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return build_student(StudentConfig(base_channels=8, n_blocks=(1, 1), strides=("b1:2x2",), branches=("3x3", "1x1")))


def run_epoch(clips: Clips, seed: int, model: Student | None = None, augment: AugmentConfig | None = None) -> Any:
    model = model or new_student()
    augment = augment or AugmentConfig(freq_mask=4, time_mask=3, mixstyle_p=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    epoch = Epoch(
        *(LogMel(FRONT_END), augment, TrainConfig(batch_size=16)),
        lambda logits, labels, teacher: kd_loss(logits, labels, teacher, 0.5, 4.0),
        lambda i: 0.01,
        np.random.default_rng(seed),
    )
    return train_epoch(model, optimizer, clips, epoch).loss, {k: v.clone() for k, v in model.state_dict().items()}


def test_an_epoch_depends_on_its_generator_alone(clips):
    loss, state = run_epoch(clips, 0)
    torch.manual_seed(123)
    np.random.seed(123)
    model = new_student()
    before = torch.get_rng_state()
    again_loss, again = run_epoch(clips, 0, model)
    assert torch.equal(before, torch.get_rng_state())
    assert loss == again_loss
    assert all(torch.equal(state[k], again[k]) for k in state)
    other_loss, other = run_epoch(clips, 1)
    assert loss != other_loss
    assert not all(torch.equal(state[k], other[k]) for k in state)


def test_an_epoch_shows_every_clip_once_with_its_own_label_and_teacher(clips):
    model, seen, rates = new_student(), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def loss_of(logits, labels, teacher):
        loss = F.cross_entropy(logits, labels)
        seen.append((teacher[:, 0].long(), labels, loss.item()))
        rates.append(optimizer.param_groups[0]["lr"])
        return loss

    epoch = Epoch(
        *(LogMel(FRONT_END), OFF, TrainConfig(batch_size=16), loss_of),
        lambda i: 0.01 * (i + 1),
        np.random.default_rng(0),
    )
    mean = train_epoch(model, optimizer, clips, epoch).loss
    numbers = torch.cat([n for n, _, _ in seen])
    assert sorted(numbers.tolist()) == list(range(50))
    assert torch.cat([y for _, y, _ in seen]).tolist() == clips.labels[numbers].tolist()
    assert mean == pytest.approx(sum(len(n) * loss for n, _, loss in seen) / 50, rel=1e-5)
    assert [len(n) for n, _, _ in seen] == [13, 13, 12, 12]
    assert rates == pytest.approx([0.01, 0.02, 0.03, 0.04])


def test_training_learns(clips):
    """The loss on the training clips falls far below that of guessing."""
    model = new_student()
    hard = replace(clips, teacher=None)
    losses = [run_epoch(hard, epoch, model, OFF)[0] for epoch in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    metrics = measure(predict(model, clips, LogMel(FRONT_END)).numpy(), clips.labels, clips.devices)
    assert metrics.macro_avg_acc > 0.3


def test_a_loss_that_is_not_finite_stops_the_epoch(clips):
    model = new_student()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(TrainingDiverged, match="the loss is nan at step 1 of 4"):
        run_epoch(clips, 0, model)
    broken = replace(clips, teacher=torch.full((50, 10), float("inf")))
    with pytest.raises(TrainingDiverged):
        run_epoch(broken, 0)


def test_predictions_are_those_of_each_clip_alone(clips):
    model = new_student().train()
    run_epoch(clips, 0, model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    together = predict(model, clips, LogMel(FRONT_END), batch_size=16)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    front_end, alone = LogMel(FRONT_END), copy.deepcopy(model).eval()
    with torch.no_grad():
        singly = torch.cat([alone(front_end(clips.cache.batch(clips.rows[i : i + 1]))) for i in range(50)])
    assert torch.allclose(together, singly, atol=1e-5)
    assert together.shape == (50, 10)


@pytest.mark.parametrize("name", TINY)
def test_batch_normalisation_is_folded_in_a_copy(name):
    model = train_a_little(build_student(TINY[name]), features(8, 32, 24)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for network in (model, model.fuse()):
        copied = folded(network)
        left = [m for m in copied.modules() if isinstance(m, nn.BatchNorm2d)]
        assert not left or not network.fused  # a branch `identity` has no convolution
        expected = logits_of(copy.deepcopy(network), features(8, 32, 24, seed=5))
        actual = logits_of(copied, features(8, 32, 24, seed=5))
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match=r"train\.device='cuda', but PyTorch sees no CUDA device"):
        pick_device("cuda")
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    "values",
    [
        *({"epochs": 0}, {"batch_size": 1}, {"threads": 0}, {"lr": 0.0}, {"lr": float("nan")}),
        *({"weight_decay": -1.0}, {"warmup": 1.0}, {"device": "tpu"}),
    ],
)
def test_train_config_refuses(values):
    ((key, value),) = values.items()
    with pytest.raises(ValueError, match=rf"train\.{key}='?{value}"):
        TrainConfig(**values)
