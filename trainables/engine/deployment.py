"""Conversion of a trained student to its deployed form, and the metadata that is saved with a student."""

import copy
import itertools
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

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


def folded(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in evaluation mode, with batch normalisation folded into the convolution before it.

    Only neighbours in an `nn.Sequential` are folded. The copy computes the same faster, except for rounding errors.
    """
    copied = copy.deepcopy(model).eval()
    for layers in [m for m in copied.modules() if isinstance(m, nn.Sequential)]:
        for i, (convolution, norm) in enumerate(itertools.pairwise(layers)):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layers[i], layers[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return copied


def describe_use(config: TrialConfig) -> dict[str, Any]:
    """Return the metadata that is needed to use a saved network.

    The keys are `classes`, the names of the scenes in the order of the logits, and `frontend`, the settings of the
    log-mel front-end (fields of `FrontEndConfig`).
    """
    return {"classes": list(tau.SCENES), "frontend": asdict(config.frontend)}
