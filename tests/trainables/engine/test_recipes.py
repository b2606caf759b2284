"""recipe=dcase2024 and recipe=kd: their augmentation, loss and updates equal a re-creation from the description."""

import copy
import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from torch import nn
from torch.nn import functional as F

from ascmodels.students import build_student
from data.augment import Draws, augment_features
from data.features import LogMel
from data.tau import SCENES
from tests.support.trainables.small_trials import small_trial
from trainables.config.compose import compose
from trainables.engine.batches import steps_of_epoch
from trainables.engine.loop import Epoch, train_epoch
from trainables.engine.losses import kd_loss
from trainables.engine.optimizer import new_optimizer
from trainables.engine.schedule import schedule
from trainables.inputs.clips import Clips, load_clips

RECIPE = compose(["recipe=dcase2024", "student=cp_mobile"])


@pytest.fixture(scope="module")
def clips(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return load_clips(small_trial(tiny_tau, tmp_path_factory.mktemp("cache"), "data.validation_share=0"), 32_000).train


def described_features(waveforms: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return log-mels [B, 1, F, T] as the baseline computes them: mel power, mask, logarithm, Freq-MixStyle."""
    mel = torchaudio.transforms.MelSpectrogram(32_000, 4096, 3072, 500, n_mels=256)
    power = mel(waveforms)[:, None]
    assert draws.mel_bands is not None
    for clip, (first, end) in zip(power, draws.mel_bands.tolist(), strict=True):
        clip[:, first:end] = 0
    x = (power + 1e-5).log()
    if draws.mixstyle:
        weight, other = draws.mixstyle.weight.view(-1, 1, 1, 1), draws.mixstyle.partner
        mean, deviation = x.mean((1, 3), keepdim=True), (x.var((1, 3), keepdim=True) + 1e-6).sqrt()
        mixed = weight * deviation + (1 - weight) * deviation[other]
        x = (x - mean) / deviation * mixed + weight * mean + (1 - weight) * mean[other]
    return x


def rolled(waveforms: torch.Tensor, draws: Draws) -> torch.Tensor:
    assert draws.shifts is not None
    samples = (draws.shifts * 32_000).round().long().tolist()
    return torch.stack([clip.roll(shift) for clip, shift in zip(waveforms, samples, strict=True)])


def test_the_recipe_is_the_baselines() -> None:
    c = RECIPE
    assert (c.frontend.n_fft, c.frontend.win_length, c.frontend.hop_length, c.frontend.n_mels) == (4096, 3072, 500, 256)
    assert (c.augment.roll_s, c.augment.freq_mask, c.augment.time_mask) == (0.1, 48, 0)
    assert (c.augment.mixstyle_p, c.augment.mixstyle_alpha) == (0.4, 0.3)
    assert (c.train.epochs, c.train.batch_size, c.train.lr, c.train.weight_decay) == (150, 256, 5e-3, 1e-4)
    assert not c.distill.taught
    n_steps = 150 * 546  # of the 100 % split
    rate = schedule(c.train, n_steps)
    for step in (500, 1999, 2000, 3000, 40_000, n_steps - 1):
        rising, falling = step / 2000, 0.5 * (1 + math.cos(math.pi * (step - 2000) / (n_steps - 2000)))
        assert rate(step) == pytest.approx(5e-3 * (rising if step < 2000 else falling), abs=3e-6)
    assert max(range(400), key=schedule(c.train, 400)) == 200  # a short training: half of it is warm-up


def test_the_recipe_of_the_field_is_its_loss() -> None:
    """0.02 * CE + 0.98 * T^2 * KL, with a KL averaged over clips and classes, has the direction of our gradient."""
    d, generator = compose(["recipe=kd"]).distill, torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(16, len(SCENES), generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(len(SCENES), (16,), generator=generator)
    theirs, ours = (logits.clone().requires_grad_() for _ in range(2))
    soft = F.kl_div(F.log_softmax(theirs / 2, 1), F.log_softmax(teacher / 2, 1), reduction="mean", log_target=True)
    (0.02 * F.cross_entropy(theirs, labels) + 0.98 * 4 * soft).backward()
    kd_loss(ours, labels, teacher, d.kd_alpha, d.kd_temp).backward()
    assert theirs.grad is not None and ours.grad is not None
    assert F.cosine_similarity(theirs.grad.flatten(), ours.grad.flatten(), dim=0) > 0.99999


class Double(nn.Module):
    """A student in float64: in float32, the gradient of an untrained one has rounding errors of several per cent."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.student(x.double())


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "mixed"), [(3, True), (1, False)])
def test_features_loss_and_update_equal_the_description(clips: Clips, seed: int, mixed: bool) -> None:
    """With `mixed`, the batch gets Freq-MixStyle."""
    config = RECIPE
    train = compose(["recipe=dcase2024", "train.batch_size=64", "train.lr=0.001", "train.warmup_steps=0"]).train
    front_end = LogMel(config.frontend)
    torch.manual_seed(0)
    model = Double(build_student(config.student))
    other = copy.deepcopy(model)

    rng, device = np.random.default_rng(seed), torch.device("cpu")
    ((batch,),) = steps_of_epoch(clips, config.augment, config.frontend, 0, train, rng, device, ExitStack())
    assert (batch.draws.mixstyle is not None) == mixed
    waveforms = rolled(batch.read(batch.rows), batch.draws)
    x = described_features(waveforms, batch.draws)
    ours = augment_features(front_end(waveforms), batch.draws, front_end.silence)
    assert batch.draws.mel_bands is not None
    bins = torch.arange(x.shape[2])
    masked = torch.stack([(bins >= first) & (bins < end) for first, end in batch.draws.mel_bands.tolist()])[:, None]
    assert (ours - x).abs()[~masked].max() < 1e-5
    # Freq-MixStyle divides the rounding errors of a silent band by 0.001, the standard deviation that it assumes
    assert (ours - x).abs()[masked].max() < (2e-3 if mixed else 1e-5)

    optimizer = torch.optim.AdamW(other.parameters(), lr=0.001, weight_decay=1e-4)
    loss = F.cross_entropy(other.train()(ours), batch.labels)
    loss.backward()
    epoch = Epoch(
        front_end,
        config.augment,
        train,
        lambda logits, labels, teacher: kd_loss(logits, labels, teacher, 1.0, 4.0),
        lambda step: 0.001,
        np.random.default_rng(seed),
    )
    result = train_epoch(model, new_optimizer(model, train.weight_decay), clips, epoch)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    gradients = [torch.cat([p.grad.flatten() for p in both if p.grad is not None]) for both in zip(*pairs, strict=True)]
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()
    optimizer.step()
    assert all(torch.allclose(p, q, rtol=1e-5, atol=1e-5) for p, q in pairs)
