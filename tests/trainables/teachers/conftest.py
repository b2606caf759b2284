"""Fixtures of the tests of teachers."""

from pathlib import Path

import pytest
import torch


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
