"""The deployed form of a network: fused, rounded, and with a description of how to use it."""

from dataclasses import asdict
from typing import Any

import torch

from ascmodels.students import Student
from data import tau
from trainables.config.schema import TrialConfig


def placed(model: Student, device: torch.device) -> Student:
    """Move the model to `device`, in the memory layout in which its convolutions are fastest."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def deploy(model: Student, precision: str) -> Student:
    """Return the deployed form of a network: branches fused, parameters rounded to fp16 unless `precision` is fp32.

    Arithmetic stays float32, and BN statistics are not rounded. With `precision` int8, parameters are rounded to fp16
    too: the bytes of int8 are counted elsewhere, but the rounding to int8 is not simulated.
    """
    deployed = model.fuse()
    if precision != "fp32":
        with torch.no_grad():
            for parameter in deployed.parameters():
                parameter.copy_(parameter.half())
    return deployed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def describe_use(config: TrialConfig) -> dict[str, Any]:
    """Return the metadata that a user of a checkpoint needs: class names and front-end."""
    return {"classes": list(tau.SCENES), "frontend": asdict(config.frontend)}
