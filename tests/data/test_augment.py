"""The augmentations: closed forms, bounds, generators (`data/augment.py`)."""

import random

import numpy as np
import pytest
import torch

from data.augment import AugmentConfig, augment_features, augment_waveforms, draw_waveforms, freq_mixstyle, mask


def rolled(x: torch.Tensor, config: AugmentConfig, rate: int, rng: np.random.Generator) -> torch.Tensor:
    return augment_waveforms(x, draw_waveforms(config, rate, np.array(["a"] * len(x)), 0, rng), rate)


def test_roll_turns_each_clip_by_its_own_amount_within_the_limit():
    x = torch.arange(400).repeat(300, 1) + 1000 * torch.arange(300)[:, None]
    y = rolled(x, AugmentConfig(roll_s=0.1), 50, np.random.default_rng(0))  # 5 samples at most
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
    y = freq_mixstyle(x, 0.3, np.random.default_rng(1))
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
        x = torch.rand(500, 1, 40, 30) + 1
        y = mask(x, dim, longest, np.random.default_rng(0))
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
    assert mask(x, 3, 0, np.random.default_rng(0)) is x


def test_augmentation_depends_on_its_generator_alone():
    waves, features = torch.randn(8, 3200), torch.randn(8, 1, 32, 20)
    config = AugmentConfig(freq_mask=8, time_mask=5, mixstyle_p=1.0)

    def states() -> list:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index,union-attr]

    def run(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(seed)
        return rolled(waves, config, 32_000, rng), augment_features(features, config, rng)

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


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    augment_features(torch.randn(4, 1, 8, 8, generator=torch.Generator()), AugmentConfig(), np.random.default_rng(0))
    assert torch.equal(state, torch.get_rng_state())


def test_strength_0_is_the_identity():
    off = AugmentConfig(roll_s=0, freq_mask=0, time_mask=0, mixstyle_p=0)
    waves, features = torch.randn(8, 3200), torch.randn(8, 1, 32, 20)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert torch.equal(rolled(waves, off, 32_000, rng), waves)
        assert torch.equal(augment_features(features, off, rng), features)


def test_mixstyle_takes_its_share_of_the_batches():
    features, rng = torch.randn(4, 1, 8, 10), np.random.default_rng(0)
    config = AugmentConfig(freq_mask=0, time_mask=0, mixstyle_p=0.4)
    changed = sum(not torch.equal(augment_features(features, config, rng), features) for _ in range(600))
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
