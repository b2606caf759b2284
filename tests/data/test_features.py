"""The front-end against a second implementation (`data/features.py`)."""

import copy

import numpy as np
import pytest
import torch
import torchaudio

from data.config.frontend import FrontEndConfig
from data.features import LogMel
from tests.support.tau import coloured_noise


def mel_filters(config: FrontEndConfig) -> np.ndarray:
    """Return HTK's triangular mel filters by formula: `[n_fft // 2 + 1, n_mels]`."""
    top = config.f_max or config.sample_rate / 2

    def mel(hz: float) -> float:
        return 2595 * np.log10(1 + hz / 700)

    edges = 700 * (10 ** (np.linspace(mel(config.f_min), mel(top), config.n_mels + 2) / 2595) - 1)
    hz = np.linspace(0, config.sample_rate // 2, config.n_fft // 2 + 1)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


FRONT_ENDS = {
    "dcase": FrontEndConfig(),
    "hop 512": FrontEndConfig(hop_length=512),
    "teacher": FrontEndConfig(16_000, 1024, 800, 320, 64, mean=-3.0, std=4.0),
    "band": FrontEndConfig(16_000, 1024, 1024, 160, 40, f_min=50.0, f_max=7000.0),
}


@pytest.mark.parametrize(
    ("name", "shape"), [("dcase", (256, 65)), ("hop 512", (256, 63)), ("teacher", (64, 51)), ("band", (40, 101))]
)
def test_log_mels_equal_a_second_implementation(name, shape):
    config, rng = FRONT_ENDS[name], np.random.default_rng(0)
    waves = np.stack([coloured_noise(s, 0, 0, rng)[: config.sample_rate] for s in (0, 5, 9)]).astype(np.float32)
    actual = LogMel(config)(torch.from_numpy(waves))
    assert actual.shape == (3, 1, *shape)
    assert config.frames == shape[1]
    spectrum = torch.stft(
        torch.from_numpy(waves).double(),
        config.n_fft,
        config.hop_length,
        config.win_length,
        torch.hann_window(config.win_length, dtype=torch.float64),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    filters = torch.from_numpy(mel_filters(config))
    theirs = torchaudio.functional.melscale_fbanks(
        config.n_fft // 2 + 1, config.f_min, config.f_max or config.sample_rate / 2, config.n_mels, config.sample_rate
    )
    assert torch.allclose(filters, theirs.double(), atol=1e-4)
    power = (spectrum.abs() ** 2).transpose(1, 2) @ theirs.double()
    expected = ((power.transpose(1, 2) + 1e-5).log() - config.mean) / config.std
    assert torch.allclose(actual[:, 0].double(), expected, atol=2e-4)
    assert actual.std() > 0.2  # the features are not constant


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("n_clips", [1, 2, 7])
def test_log_mels_equal_those_of_torchaudio(name, n_clips):
    """For several chunks, quiet clips and a copy of the module, in float32."""
    config, rng = FRONT_ENDS[name], np.random.default_rng(0)
    waves = np.stack([coloured_noise(s, 0, 0, rng)[: config.sample_rate] for s in range(n_clips)])
    x = torch.from_numpy(waves.astype(np.float32))
    x[0] *= 1e-3
    power = torchaudio.transforms.MelSpectrogram(
        *(config.sample_rate, config.n_fft, config.win_length, config.hop_length, config.f_min, config.f_max),
        n_mels=config.n_mels,
    )
    expected = (((power(x) + 1e-5).log() - config.mean) / config.std).unsqueeze(1)
    front_end = LogMel(config)
    actual = front_end(x)
    assert actual.shape == expected.shape
    assert actual.is_contiguous()
    assert (actual - expected).abs().max() <= 3e-6
    assert torch.equal(copy.deepcopy(front_end)(x), actual)
    assert not front_end.state_dict()


def test_normalisation_and_silence_in_closed_form():
    raw = LogMel(FrontEndConfig(16_000, 512, 512, 160, 32))(torch.zeros(1, 16_000))
    assert torch.allclose(raw, torch.full_like(raw, float(np.log(1e-5))))
    scaled = LogMel(FrontEndConfig(16_000, 512, 512, 160, 32, mean=-4.27, std=9.14))(torch.zeros(1, 16_000))
    assert torch.allclose(scaled, torch.full_like(scaled, float((np.log(1e-5) + 4.27) / 9.14)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_mels": 0}, r"frontend\.n_mels=0"),
        ({"std": 0.0}, r"frontend\.std=0"),
        ({"hop_length": -1}, r"frontend\.hop_length=-1"),
        ({"win_length": 8192}, r"frontend\.win_length=8192 is longer than frontend\.n_fft=4096"),
    ],
)
def test_front_end_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        FrontEndConfig(**values)
