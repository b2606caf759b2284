"""AdamW of a training, whose steps PyTorch runs one by one or a CUDA graph repeats (trainables/engine/graphs.py)."""

from typing import Any

import torch
from torch import nn


def new_optimizer(model: nn.Module, weight_decay: float, recorded: bool = False) -> torch.optim.AdamW:
    """Return AdamW for the parameters of `model`, with a learning rate that is set before each step.

    `recorded`: its steps are recorded in CUDA graphs, so the learning rate is a tensor on the device.
    """
    if not recorded:
        return torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=weight_decay)
    rate = torch.ones((), device=next(model.parameters()).device)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay, capturable=True, fused=True)


def set_learning_rate(group: dict[str, Any], value: float) -> None:
    """Set the learning rate of a parameter group; a tensor is filled, because a CUDA graph reads it at its address."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value


def load_state(optimizer: torch.optim.AdamW, state: dict[str, Any]) -> None:
    """Load the saved `state` into `optimizer`, which keeps its own settings (weight decay, kind of implementation).

    The state may come from another device or from a trial with other settings. ValueError if a value in the
    restored state of a parameter is missing, unknown, no tensor, or of another shape than AdamW needs.
    """
    groups = [
        group | {k: v for k, v in own.items() if k != "params"}
        for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for parameter, values in optimizer.state.items():
        shapes = {"step": [], "exp_avg": list(parameter.shape), "exp_avg_sq": list(parameter.shape)}
        for name in {**shapes, **values}:
            value = values.get(name)
            found = list(value.shape) if isinstance(value, torch.Tensor) and value.is_floating_point() else None
            if found is None or found != shapes.get(name):
                raise ValueError(
                    f"{name} in the state of the optimiser has the type {type(value).__name__} and the shape {found}; "
                    f"expected floating-point numbers of the shape {shapes.get(name)}"
                )
