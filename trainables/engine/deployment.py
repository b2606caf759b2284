"""The network as shipped: fused, rounded, and described for its user."""

from dataclasses import asdict
from typing import Any

import torch

from ascmodels.students import Student
from data import tau
from trainables.config.schema import TrialConfig


def placed(model: Student, device: torch.device) -> Student:
    """On `device`, in the memory layout that its convolutions are fastest with."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def deploy(model: Student, precision: str) -> Student:
    """The network as shipped: branches fused, parameters rounded to half precision unless fp32 is asked for.

    Arithmetic stays float32 and BN statistics stay as they are; int8 bytes are counted, its rounding is not simulated.
    """
    deployed = model.fuse()
    if precision != "fp32":
        with torch.no_grad():
            for parameter in deployed.parameters():
                parameter.copy_(parameter.half())
    return deployed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def describe_use(config: TrialConfig) -> dict[str, Any]:
    """What a checkpoint needs beside its weights to be used: class names and front-end."""
    return {"classes": list(tau.SCENES), "frontend": asdict(config.frontend)}
