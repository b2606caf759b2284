"""Device impulse responses: the synthetic set, and the draws for a batch (data/impulse.py, data/augment.py)."""

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from data.augment import Draws, augment_waveforms, draw_epoch
from data.config.augment import AugmentConfig
from data.config.frontend import FrontEndConfig
from data.impulse import RATE, impulses_for, load_impulses, main, synthetic_impulses
from data.tau import DatasetError

DEVICES = np.array(["a", "b", "a", "s1", "c", "a"])
FRONT_END = FrontEndConfig(sample_rate=1000, n_fft=64, win_length=64, hop_length=50, n_mels=8)


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, "FLOAT")


# --- the convolution ---


def test_convolution_equals_numpys_and_leaves_other_devices_alone():
    rng = np.random.default_rng(0)
    x, impulses = rng.standard_normal((6, 500)), rng.standard_normal((3, 40))
    draws = Draws(impulses=np.array([2, -1, 0, -1, -1, 2]))
    y = augment_waveforms(torch.from_numpy(x), draws, 1000, torch.from_numpy(impulses))
    for i, k in enumerate(draws.impulses if draws.impulses is not None else []):
        expected = x[i] if k < 0 else np.convolve(x[i], impulses[k])[:500]
        assert np.allclose(y[i], expected, atol=1e-10)
        assert k >= 0 or np.array_equal(y[i], x[i])
    assert x.shape == y.shape


def test_only_clips_of_device_a_are_drawn_at_their_rate():
    config, rng = AugmentConfig(roll_s=0, dir_p=0.4, dir_dir="x"), np.random.default_rng(1)
    draws = np.stack([np.asarray(d.impulses) for d in draw_epoch(config, FRONT_END, [DEVICES] * 800, 5, rng)])
    from_a = DEVICES == "a"
    assert (draws[:, ~from_a] == -1).all()
    hit = draws[:, from_a]
    n = hit.size
    assert abs((hit >= 0).mean() - 0.4) < 5 * (0.4 * 0.6 / n) ** 0.5
    shares = np.bincount(hit[hit >= 0], minlength=5) / (hit >= 0).sum()
    assert (abs(shares - 0.2) < 5 * (0.2 * 0.8 / (0.4 * n)) ** 0.5).all()
    always = draw_epoch(AugmentConfig(dir_p=1.0, dir_dir="x"), FRONT_END, [DEVICES], 5, rng)[0].impulses
    assert ((np.asarray(always) >= 0) == from_a).all()


def test_response_comes_before_the_roll_and_both_are_shared_between_sample_rates():
    """At either sample rate a click is delayed by the response, then rolled by the same time."""
    click = torch.zeros(1, 800)
    click[0, 100] = 1
    delay = torch.zeros(1, 30)
    delay[0, 20] = 1  # 20 ms at 1 kHz
    draws = Draws(torch.tensor([0.3], dtype=torch.float64), np.array([0]))
    assert augment_waveforms(click, draws, 1000, delay)[0].argmax() == 100 + 20 + 300
    late = torch.roll(click, 690, 1)  # at sample 790: the response moves it past the end, where no roll restores it
    assert augment_waveforms(late, draws, 1000, delay).abs().max() < 1e-6
    twice, delay_twice = torch.zeros(1, 1600), torch.zeros(1, 60)
    twice[0, 200], delay_twice[0, 40] = 1, 1
    assert augment_waveforms(twice, draws, 2000, delay_twice)[0].argmax() == 2 * (100 + 20 + 300)


def test_mixup_is_linear_and_its_share_follows_beta():
    config, rng = AugmentConfig(mixup_alpha=0.3), np.random.default_rng(0)
    x = torch.randn(6, 1, 4, 3)
    mixes = [draws.mixup for draws in draw_epoch(config, FRONT_END, [DEVICES] * 500, 0, rng)]
    mix = mixes[-1]
    assert mix is not None
    expected = torch.stack([mix.weight * x[i] + (1 - mix.weight) * x[j] for i, j in enumerate(mix.partner)])
    shares = [float(mix.weight) for mix in mixes if mix]
    assert len(shares) == 500
    assert torch.allclose(mix(x), expected)
    variance = 1 / (4 * (2 * 0.3 + 1))  # of Beta(0.3, 0.3)
    assert abs(np.mean(shares) - 0.5) < 5 * (variance / 500) ** 0.5
    assert np.var(shares) == pytest.approx(variance, rel=0.15)


# --- the files ---


def test_responses_are_read_in_order_with_energy_1(tmp_path):
    rng = np.random.default_rng(0)
    waves = {"b.wav": rng.standard_normal(300), "deeper/a.WAV": 1e-3 * rng.standard_normal(200), "a.wav": [0, 0.5, 0]}
    for name, wave in waves.items():
        write(tmp_path / name, wave)
    write(tmp_path / "long.wav", rng.standard_normal(RATE * 3))
    (tmp_path / "notes.txt").write_text("not a sound")
    impulses = load_impulses(tmp_path, RATE)
    assert impulses.shape == (4, RATE)  # responses are cut at 1 s
    assert impulses.dtype == torch.float32
    assert torch.allclose(impulses.square().sum(dim=1), torch.ones(4), atol=1e-5)
    assert impulses[0, :4].tolist() == [0, 1, 0, 0]
    scale = float(np.linalg.norm(waves["b.wav"]))
    assert torch.allclose(scale * impulses[1, :300], torch.tensor(waves["b.wav"]).float())
    assert impulses[2, 200:].abs().max() == 0
    lower = load_impulses(tmp_path, 16_000)
    wave = torchaudio.functional.resample(torch.tensor(waves["b.wav"]).float(), RATE, 16_000)
    assert lower.shape == (4, 16_000)
    assert torch.allclose(lower[1, : len(wave)], wave / wave.norm(), atol=1e-6)


def test_energy_1_keeps_the_loudness_of_noise(tmp_path):
    main([str(tmp_path), "--count", "8"])
    impulses = load_impulses(tmp_path, 32_000)
    noise = torch.randn(8, 32_000, generator=torch.Generator().manual_seed(0))
    augmented = augment_waveforms(noise, Draws(impulses=np.arange(8)), 32_000, impulses)
    assert torch.allclose(augmented.square().mean(dim=1).sqrt(), torch.ones(8), atol=0.08)


def broken(path):
    path.write_bytes(b"RIFF, but no more")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"holds no WAV file; `python -m data\.impulse FOLDER` writes"),
        (lambda p: broken(p / "x.wav"), r"x\.wav cannot be read as WAV"),
        (lambda p: write(p / "x.wav", np.ones((50, 2))), r"x\.wav has 2 channels; expected mono"),
        (lambda p: write(p / "x.wav", np.zeros(50)), r"x\.wav is empty, silent or not finite"),
        (lambda p: write(p / "x.wav", np.zeros(0)), r"x\.wav is empty, silent or not finite"),
        (lambda p: write(p / "x.wav", [1, np.nan]), r"x\.wav is empty, silent or not finite"),
    ],
)
def test_unfit_responses_are_named(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DatasetError, match=message):
        load_impulses(tmp_path, 16_000)
    with pytest.raises(DatasetError, match=message):
        impulses_for(AugmentConfig(dir_p=0.5, dir_dir=str(tmp_path)), 16_000)


def test_responses_are_read_only_where_they_are_used():
    assert impulses_for(AugmentConfig(dir_dir="/nowhere"), 16_000) is None


def test_synthetic_responses_are_seeded_short_and_coloured():
    first, again, other = (synthetic_impulses(6, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    energy = np.cumsum(first**2, axis=1) / (first**2).sum(axis=1, keepdims=True)
    assert (energy[:, 200] > 0.9).all()  # within 4.5 ms
    level = 20 * np.log10(np.abs(np.fft.rfft(first)))  # [6, F] dB
    frequency = np.fft.rfftfreq(first.shape[1], 1 / RATE)
    middle = level[:, (frequency > 500) & (frequency < 4000)].mean(axis=1)
    assert (level[:, frequency > 21_000].mean(axis=1) < middle - 6).all()
    assert (level[:, frequency < 30].mean(axis=1) < middle - 6).all()
    curves = level - level.mean(axis=1, keepdims=True)
    assert min(np.abs(curves[i] - curves[j]).mean() for i in range(6) for j in range(i)) > 1  # no two curves are equal


def test_command_writes_what_can_be_read(tmp_path, capsys):
    assert main([str(tmp_path / "set"), "--count", "3", "--seed", "5"]) == 0
    assert "3 impulse responses in" in capsys.readouterr().out
    impulses = load_impulses(tmp_path / "set", RATE).numpy()
    expected = synthetic_impulses(3, 5)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(impulses, expected, atol=1e-5)  # 24 bit
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "set")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--count", "0"])
    assert "--count 0 --seed 0: expected at least one file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dir_p": 0.4}, r"augment\.dir_p=0\.4 needs impulse.*augment.dir_dir.*`python -m data\.impulse.*to 0"),
        ({"dir_p": 1.4, "dir_dir": "x"}, r"augment\.dir_p=1\.4: "),
        ({"mixup_alpha": -1.0}, r"augment\.mixup_alpha=-1\.0: expected 0 or more"),
        ({"mixup_alpha": float("inf")}, r"augment\.mixup_alpha=inf: expected a finite number"),
        ({"roll_s": float("nan")}, r"augment\.roll_s=nan: expected a finite number"),
        ({"mixstyle_alpha": float("inf")}, r"augment\.mixstyle_alpha=inf: expected a finite number"),
    ],
)
def test_augment_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)


@pytest.mark.parametrize(
    ("rate", "n_channels", "n_samples", "message"),
    [
        (44_100, 8, 44_100, "8 channels"),
        (44_101, 1, 2000, "44101 Hz"),  # filters of 7 GB resample from this rate to 32000 Hz
        (2_000_000, 1, 2000, "2000000 Hz"),
    ],
)
def test_an_impulse_response_is_checked_before_it_is_read(tmp_path, rate, n_channels, n_samples, message):
    soundfile.write(tmp_path / "a.wav", np.ones((n_samples, n_channels)), rate, "PCM_16")
    with pytest.raises(DatasetError, match=rf"a\.wav has {message}"):
        load_impulses(tmp_path, 32_000)
