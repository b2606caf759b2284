"""Fixtures of the tests of teachers."""

from pathlib import Path

import pytest
import torch

from trainables.engine.device import set_up_process


@pytest.fixture(scope="module")
def timm_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders of checkpoints as timm writes them: three input channels, 1000 classes."""
    import timm
    from timm.models import save_for_hf

    folders = {}
    for name in ("test_vit", "test_efficientnet"):
        torch.manual_seed(5)
        network = timm.create_model(name, num_classes=1000)
        for module in network.modules():  # statistics that differ from the initial ones
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
        folders[name] = tmp_path_factory.mktemp(name)
        save_for_hf(network, folders[name], safe_serialization=True)
    return folders


@pytest.fixture(scope="module")
def words(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for two-epoch teachers of 0.02 M parameters on the tiny data set."""
    set_up_process(1)
    return [
        f"data.dataset_dir='{tiny_tau}'",
        f"data.cache_dir='{tmp_path_factory.mktemp('cache')}'",
        *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "train.device=cpu"),
        *("teacher.train.epochs=2", "teacher.train.min_steps=0", "teacher.train.device=cpu"),
        *("teacher.train.batch_size=16", "teacher.frontend.n_mels=32", "teacher.frontend.hop_length=400"),
    ]
