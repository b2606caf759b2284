"""Fixtures of trials that start from a trained network (a base): cache folder and configuration."""

from pathlib import Path

import pytest

from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.engine.device import set_up_process


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    set_up_process(1)
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config(tiny_tau: Path, cache: Path) -> TrialConfig:
    """Configuration of a trial from a base: two prune steps of one epoch, without a teacher."""
    words = [f"data.dataset_dir='{tiny_tau}'", f"data.cache_dir='{cache}'", "train.device=cpu", "train.epochs=3"]
    tiny = ["frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"]
    small = ["student.base_channels=8", "student.n_blocks=[1,1]", "student.strides=[]", "student.branches=[3x3,1x1]"]
    rest = ["train.batch_size=16", "distill.kd_alpha=1", "prune.epochs=1", "prune.ratios=[0.3,0.2]"]
    return compose([*words, *tiny, *small, *rest])
