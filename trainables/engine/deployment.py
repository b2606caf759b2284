"""Conversion of a trained student to its deployed form, and the metadata that is saved with a student."""

from dataclasses import asdict
from typing import Any

import torch

from ascmodels.students import Student
from data import tau
from trainables.config.schema import TrialConfig


def placed(model: Student, device: torch.device) -> Student:
    """Move `model` to `device` and to channels-last format, in which its convolutions are fastest; return `model`."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def deploy(model: Student, precision: str) -> Student:
    """Return a copy of `model` in deployed form: branches fused, parameters rounded to fp16 unless `precision` is fp32.

    `precision` is fp32, fp16 or int8. With int8, parameters are rounded to fp16, too: quantisation to int8 is not
    simulated. Rounded parameters are stored as float32, and BN statistics are not rounded.
    """
    deployed = model.fuse()
    if precision != "fp32":
        with torch.no_grad():
            for parameter in deployed.parameters():
                parameter.copy_(parameter.half())
    return deployed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def describe_use(config: TrialConfig) -> dict[str, Any]:
    """Return the metadata that is needed to use a saved network.

    The keys are `classes`, the names of the scenes in the order of the logits, and `frontend`, the settings of the
    log-mel front-end (fields of `FrontEndConfig`).
    """
    return {"classes": list(tau.SCENES), "frontend": asdict(config.frontend)}
