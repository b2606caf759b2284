"""The augmentations: closed forms, bounds, generators (`data/augment.py`)."""

import random

import numpy as np
import pytest
import torch

from data.augment import Draws, augment_features, augment_waveforms, draw_epoch, freq_mixstyle, mask
from data.config.augment import AugmentConfig
from data.config.frontend import FrontEndConfig

FRONT_END = FrontEndConfig(sample_rate=32_000, n_fft=512, win_length=400, hop_length=1600, n_mels=40)  # 21 frames


def drawn(config: AugmentConfig, n: int, rng: np.random.Generator, front_end: FrontEndConfig = FRONT_END) -> Draws:
    """The random numbers of an epoch of one batch of `n` clips."""
    return draw_epoch(config, front_end, [np.array(["a"] * n)], 0, rng)[0]


def test_roll_turns_each_clip_by_its_own_amount_within_the_limit():
    x = torch.arange(400).repeat(300, 1) + 1000 * torch.arange(300)[:, None]
    front_end = FrontEndConfig(sample_rate=50, n_fft=8, win_length=8, hop_length=4, n_mels=4)
    draws = drawn(AugmentConfig(roll_s=0.1), len(x), np.random.default_rng(0), front_end)  # 5 samples at most
    y = augment_waveforms(x, draws, 50)
    shifts = []
    for before, after in zip(x, y, strict=True):
        shift = int((after == before[0]).nonzero())
        assert torch.equal(after, torch.roll(before, shift))
        shifts.append(shift if shift < 200 else shift - 400)
    assert set(shifts) == set(range(-5, 6))  # both ends are reached, and not exceeded
    assert torch.equal(x[0], torch.arange(400))  # the input is unchanged


def test_mixstyle_mixes_each_clips_statistics_with_one_other_clips():
    """The new mean and deviation of a clip interpolate, by a single lambda, between its own and another clip's."""
    gen = torch.Generator().manual_seed(0)
    scale, shift = torch.rand(12, 1, 6, 1, generator=gen) * 3 + 0.5, torch.randn(12, 1, 6, 1, generator=gen) * 4
    x = (torch.randn(12, 1, 6, 50, generator=gen) * scale + shift).double()
    mix = drawn(AugmentConfig(mixstyle_p=1, mixstyle_alpha=0.3), 12, np.random.default_rng(1)).mixstyle
    assert mix is not None
    y = freq_mixstyle(x, mix)
    mean, std, new_mean, new_std = (f(t, (1, 3)) for t in (x, y) for f in (torch.mean, torch.std))  # [B, F]
    shape_before = (x - mean[:, None, :, None]) / std[:, None, :, None]
    shape_after = (y - new_mean[:, None, :, None]) / new_std[:, None, :, None]
    assert torch.allclose(shape_before, shape_after, atol=1e-5)
    lambdas = []
    for i in range(12):
        fits = []
        for j in set(range(12)) - {i}:
            towards = torch.cat([mean[j] - mean[i], std[j] - std[i]])
            moved = torch.cat([new_mean[i] - mean[i], new_std[i] - std[i]])
            share = float(moved @ towards / (towards @ towards))  # 1 - lambda, least squares
            fits.append((float((moved - share * towards).abs().max()), share))
        residual, share = min(fits)
        assert residual < 1e-5
        assert -1e-6 <= share <= 1 + 1e-6
        lambdas.append(1 - share)
    assert len({round(v, 3) for v in lambdas}) > 6  # one for each clip


def test_masks_are_bands_within_the_bound():
    for dim, longest in ((2, 10), (3, 7), (2, 1000)):
        x = torch.rand(500, 1, 40, 21) + 1
        config = AugmentConfig(freq_mask=longest if dim == 2 else 0, time_mask=longest if dim == 3 else 0)
        draws = drawn(config, 500, np.random.default_rng(0))
        bands = draws.mel_bands if dim == 2 else draws.frame_bands
        assert bands is not None
        y = mask(x, dim, bands, 0.0)
        size = x.shape[dim]
        hit = (y == 0).squeeze(1).movedim(dim - 1, 1)  # [B, masked axis, other]
        assert (hit.all(dim=2) == hit.any(dim=2)).all()  # complete lines are masked
        assert torch.equal(torch.where(y == 0, x, y), x)  # the rest is unchanged
        widths, starts = [], set()
        for line in hit[:, :, 0]:
            places = line.nonzero().flatten().tolist()
            assert places == list(range(places[0], places[0] + len(places))) if places else True
            widths.append(len(places))
            starts |= {places[0]} if places else set()
        assert max(widths) <= min(longest, size)
        assert len(set(widths)) == min(longest, size)  # 0 ... longest - 1: uniform widths are rounded down
        assert min(starts) == 0
        assert len(starts) > size // 2


def test_augmentation_depends_on_its_generator_alone():
    waves, features = torch.randn(8, 3200), torch.randn(8, 1, 40, 21)
    config = AugmentConfig(freq_mask=8, time_mask=5, mixstyle_p=1.0)

    def states() -> list:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index,union-attr]

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        draws = drawn(config, 8, np.random.default_rng(seed))
        return augment_waveforms(waves, draws, 32_000), augment_features(features, draws, -11.5)

    before = states()
    first = run(1)
    torch.manual_seed(99)
    np.random.seed(99)
    changed = states()
    second, other = run(1), run(2)
    assert states() == changed
    assert before != changed
    for a, b, c in zip(first, second, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_strength_0_is_the_identity():
    off = AugmentConfig(roll_s=0, freq_mask=0, time_mask=0, mixstyle_p=0)
    waves, features = torch.randn(8, 3200), torch.randn(8, 1, 40, 21)
    rng = np.random.default_rng(0)
    draws = drawn(off, 8, rng)
    assert draws == Draws()
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn
    assert augment_waveforms(waves, draws, 32_000) is waves
    assert augment_features(features, draws, -11.5) is features


def test_each_batch_of_an_epoch_gets_its_own_numbers():
    config = AugmentConfig(mixstyle_p=1.0, mixup_alpha=0.5, time_mask=9, dir_p=0.5, dir_dir="x")
    devices = [np.array(["a"] * n) for n in (5, 5, 4)]
    epoch = draw_epoch(config, FRONT_END, devices, 7, np.random.default_rng(0))
    assert len(epoch) == 3
    for draws, n in zip(epoch, (5, 5, 4), strict=True):
        assert draws.mixup is not None
        assert draws.mixstyle is not None
        assert draws.impulses is not None
        assert draws.mixup.weight.shape == ()
        assert draws.mixstyle.weight.shape == (n,)
        for mix in (draws.mixup, draws.mixstyle):
            assert sorted(mix.partner.tolist()) == list(range(n))  # partners are clips of the same batch
        for values in (draws.shifts, draws.impulses, draws.mel_bands, draws.frame_bands):
            assert values is not None
            assert len(values) == n
    assert len({float(draws.mixup.weight) for draws in epoch if draws.mixup}) == 3
    shifts = [draws.shifts for draws in epoch if draws.shifts is not None]
    assert len(set(torch.cat(shifts).tolist())) == 14


def test_mixstyle_takes_its_share_of_the_batches():
    config, devices = AugmentConfig(mixstyle_p=0.4), [np.array(["a"] * 4)] * 600
    epoch = draw_epoch(config, FRONT_END, devices, 0, np.random.default_rng(0))
    changed = sum(draws.mixstyle is not None for draws in epoch)
    assert abs(changed - 240) < 5 * (600 * 0.4 * 0.6) ** 0.5  # five standard deviations


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixstyle_p": 1.5}, r"augment\.mixstyle_p=1\.5"),
        ({"mixstyle_alpha": 0.0}, r"augment\.mixstyle_alpha=0"),
        ({"roll_s": -0.1}, r"augment\.roll_s=-0\.1"),
        ({"freq_mask": -1}, r"augment\.freq_mask=-1"),
        ({"time_mask": -1}, r"augment\.time_mask=-1"),
    ],
)
def test_augment_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)
