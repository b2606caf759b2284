"""Tiny teachers of every family."""

from dataclasses import replace

import torch

from ascmodels.teachers import (
    TeacherModelConfig,
    build_teacher,
)
from ascmodels.teachers.base import Teacher

N_MELS, FRAMES = 32, 40
AST_TINY = TeacherModelConfig(hidden_size=16, layers=2, heads=2)
VIT_TINY = TeacherModelConfig(family="vit", hidden_size=16, layers=2, heads=2)
CNN_TINY = TeacherModelConfig(family="cnn", name="test_efficientnet")  # timm's test network
DEIT = TeacherModelConfig(family="vit", name="test_vit", stride=8)
BEATS_TINY = replace(AST_TINY, family="beats")
ALL = {"ast": AST_TINY, "beats": BEATS_TINY, "vit": VIT_TINY, "named vit": DEIT, "cnn": CNN_TINY}


def features(n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, N_MELS, FRAMES, generator=torch.Generator().manual_seed(seed))


def built(config: TeacherModelConfig, n_classes: int = 10, seed: int = 0) -> Teacher:
    torch.manual_seed(seed)
    return build_teacher(config, n_classes, N_MELS, FRAMES)
