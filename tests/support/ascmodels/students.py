"""Small student networks and inputs for the tests of `ascmodels`."""

from typing import TypeVar

import torch
from torch import nn

from ascmodels.students import Student, StudentConfig, build_student

MIXED = ("1x1+3x3+identity", "plain", "3x1+1x3")
THREE_STAGES = {"base_channels": 8, "n_blocks": (2, 1, 1), "strides": ("b2:1x2",)}
TINY = {
    "cp_mobile": StudentConfig(**THREE_STAGES),
    "rep_mobile": StudentConfig(**THREE_STAGES, stage_branches=MIXED, activation="silu", grn=True),
    "tf_sepnet": StudentConfig(family="tf_sepnet", base_channels=12),
}
ALL = ("3x3", "3x1", "1x3", "1x1", "identity")
FOUR = ALL[:4]
SMALL = {"base_channels": 8, "n_blocks": (2, 1), "strides": ("b2:1x2",)}
Model = TypeVar("Model", bound=nn.Module)


def train_a_little(model: Model, inputs: torch.Tensor, steps: int = 2, rate: float = 0.05) -> Model:
    """Train a few steps, which move weights, batch normalisation and running statistics from their initial values."""
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    gen = torch.Generator().manual_seed(3)
    model.train()
    for _ in range(steps):
        output = model(inputs * 2 + 0.5)
        loss = (output - torch.randn(output.shape, generator=gen, dtype=output.dtype)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def seeded(config: StudentConfig, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return build_student(config)


@torch.no_grad()
def logits_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.eval()(x)


def features(n: int = 4, bins: int = 32, frames: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 1, bins, frames, generator=torch.Generator().manual_seed(seed))
