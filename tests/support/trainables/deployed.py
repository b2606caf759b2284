"""A small deployed student for the tests of export and quantisation."""

import numpy as np
import torch
from torch import nn

from ascmodels.students import Student, StudentConfig, build_student

SMALL = StudentConfig(base_channels=8, n_blocks=(1, 1), strides=("b2:2x1",))
SHAPE = (1, 32, 65)
METADATA = {"classes": ["a", "b"], "frontend": {"n_mels": 32, "f_max": None}}


def student(config: StudentConfig = SMALL, seed: int = 0) -> Student:
    """Return a deployed student whose batch normalisation has non-trivial statistics."""
    torch.manual_seed(seed)
    network = build_student(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.fuse()


def clips(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, *SHAPE)).astype(np.float32)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]
