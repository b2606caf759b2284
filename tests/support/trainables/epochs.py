"""Training of a small network for one epoch, and parts of it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ascmodels.students import Student, StudentConfig, build_student
from data.config.augment import AugmentConfig
from data.config.frontend import FrontEndConfig
from data.features import LogMel
from trainables.config.schema import TrialConfig
from trainables.config.train import TrainConfig
from trainables.engine.loop import (
    Epoch,
    EpochResult,
    train_epoch,
)
from trainables.engine.losses import kd_loss
from trainables.inputs.clips import Clips

FRONT_END = FrontEndConfig(8000, 512, 400, 250, 16)
OFF = AugmentConfig(roll_s=0, freq_mask=0, time_mask=0, mixstyle_p=0)


def student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return build_student(StudentConfig(base_channels=8, n_blocks=(1, 1), strides=("b1:2x2",), branches=("3x3", "1x1")))


def without_bn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    pool = nn.AdaptiveAvgPool2d((8, 1))
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(32, 10))


def distilled(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
    return kd_loss(logits, labels, teacher, 0.5, 4.0)


def train(
    model: nn.Module, clips: Clips, config: TrainConfig, augment: AugmentConfig = OFF, **more: Any
) -> EpochResult:
    """Train one epoch with SGD at rate 0.1 and seed 0 on the device of `model`; `more` replaces fields of the Epoch."""
    groups = more.pop("groups", None) or [{"params": list(model.parameters())}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    front_end = LogMel(FRONT_END).to(next(model.parameters()).device)
    epoch = Epoch(front_end, augment, config, distilled, lambda i: 0.1, np.random.default_rng(0))
    return train_epoch(model, optimizer, clips, replace(epoch, **more))


def some(clips: Clips, n: int) -> Clips:
    assert clips.teacher is not None
    return Clips(clips.cache, clips.rows[:n], clips.labels[:n], clips.devices[:n], clips.teacher[:n])


def features(clips: Clips, picked: np.ndarray) -> torch.Tensor:
    return LogMel(FRONT_END)(clips.cache.batch(clips.rows[picked]))


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [v.clone() for v in model.state_dict().values()]


def with_(config: TrialConfig, *overrides: str) -> TrialConfig:
    values = dict(o.split("=", 1) for o in overrides)
    return TrialConfig.from_flat(config.flat() | {k: json.loads(v) for k, v in values.items()})
