"""Student networks with random weights, whose channels differ, for the tests of pruning."""

import torch
from torch import nn

from ascmodels.students import Student, StudentConfig, build_student

MELS, FRAMES = 32, 24
SMALL = StudentConfig(base_channels=16, n_blocks=(1, 1), strides=("b2:2x1",), branches=("3x3", "identity"))
ONE_BLOCK = StudentConfig(base_channels=16, n_blocks=(1,), strides=())


def trained(config: StudentConfig, seed: int = 0) -> Student:
    """Return a student whose weights, BN scales and statistics differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = build_student(config)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))  # type: ignore[union-attr]
    return student
