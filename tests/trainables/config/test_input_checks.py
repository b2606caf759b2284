"""Values that would give NaN, take gigabytes or end in a traceback are refused when the configuration is built."""

import math
import re

import pytest

from ascmodels.teachers import TeacherModelConfig
from trainables.config.compose import compose
from trainables.config.schema import ConfigError, TrialConfig, key_types

NUMBERS = [key for key, kind in key_types().items() if "float" in str(kind) and "tuple" not in str(kind)]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_infinite_or_nan(key, value):
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}=.*{value}"):
        TrialConfig.from_flat({key: value} | ({"prune.n_steps": 1} if key.startswith("prune.t") else {}))


@pytest.mark.parametrize("key", ["distill.teacher_weights", "prune.ratios"])
def test_no_number_in_a_list_may_be_infinite_or_nan(key):
    for value in (math.nan, math.inf):
        with pytest.raises(ConfigError, match=re.escape(key)):
            TrialConfig.from_flat({key: [value], "distill.teacher_ckpts": ["a"]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("frontend.hop_length=10000000", "frontend.hop_length=10000000"),  # one frame: its variance is NaN
        ("frontend.hop_length=1", "frontend.hop_length=1"),
        ("frontend.n_mels=100000", "frontend.n_mels=100000"),
        ("frontend.sample_rate=1000000000", "frontend.sample_rate=1000000000"),
        ("frontend.sample_rate=31999", "frontend.sample_rate=31999"),  # filters of 5 GB resample to it
        ("teacher.frontend.hop_length=10000000", "teacher.frontend.hop_length=10000000"),
        ("teacher.frontend.win_length=99999", "teacher.frontend.n_fft=1024"),
        ("teacher.train.lr=-1", "teacher.train.lr=-1.0"),
        ("teacher.train.amp=fp8", "teacher.train.amp='fp8'"),
        ("teacher.augment.mixstyle_p=2", "teacher.augment.mixstyle_p=2.0"),
        ("teacher.augment.dir_p=1", "teacher.augment.dir_p=1.0 .*teacher.augment.dir_dir"),
        ("teacher.model.hidden_size=400000", "teacher.model.hidden_size=400000"),
        ("teacher.model.layers=100000000", "teacher.model.layers=100000000"),
        ("student.base_channels=1000000", "student.base_channels=1000000"),
        ("student.channels_multiplier=1e300", "student.channels_multiplier=1e\\+300"),
        ("student.n_blocks=[1000000000]", "student.n_blocks=.1000000000"),
        ("train.threads=1000000", "train.threads=1000000"),
        ("data.num_workers=1000000", "data.num_workers=1000000"),
        ("augment.roll_s=1e300", "augment.roll_s=1e\\+300"),
        ("augment.mixup_alpha=1e300", "augment.mixup_alpha=1e\\+300"),
        ("train.batch_size=1" + "0" * 400, "train.batch_size=10000"),
        ("train.lr=1" + "0" * 400, "train.lr=10000"),
        ("seed=1" + "0" * 5000, "seed=10000"),
        ("student.n_blocks=" + "[" * 1000 + "]" * 1000, r"student.n_blocks=\[\["),
    ],
)
def test_a_value_beyond_reason_is_refused(override, key):
    with pytest.raises(ConfigError, match=key):
        compose([override])


def test_prune_steps_are_limited():
    with pytest.raises(ConfigError, match=r"prune\.n_steps=1000000000"):
        TrialConfig.from_flat({"prune.n_steps": 10**9, "prune.total_ratio": 0.5})
    with pytest.raises(ConfigError, match=r"prune\.ratios has 1000 entries"):
        TrialConfig.from_flat({"prune.ratios": [0.01] * 1000})


def test_too_many_patches_are_refused():
    with pytest.raises(ConfigError, match=r"teacher\.model\.stride=1.*teacher\.frontend\.n_mels=64"):
        compose(["teacher.model.stride=1", "teacher.frontend.hop_length=20"])


def test_patchout_of_a_network_without_patches_is_refused():
    with pytest.raises(ValueError, match=r"teacher\.model\.patchout_freq=1"):
        TeacherModelConfig(family="cnn", name="resnet18", patchout_freq=1)


@pytest.mark.parametrize("override", ["zoo=1", "zoo/lion=1"])
def test_an_unknown_top_level_key_is_not_advised_to_be_added(override):
    with pytest.raises(ConfigError, match="unknown configuration key zoo") as error:
        compose([override])
    assert "+zoo" not in str(error.value)


def test_a_group_that_is_misspelt_is_named():
    with pytest.raises(ConfigError, match=r"unknown configuration key profil; did you mean profile\?"):
        compose(["profil=full"])
