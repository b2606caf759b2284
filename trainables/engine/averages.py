"""Means of the weights of a training: the moving average of its steps, and the model soup of its best epochs."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of the weights of `model`, which is being trained.

    The attribute `network` is a copy of `model` with the averaged weights. `update` changes it after each optimiser
    step: average <- d * average + (1 - d) * weights, with d = min(`decay`, (1 + t) / (10 + t)) and the number t of
    earlier steps. d is smaller in the first steps: otherwise the initial weights would dominate the average of a short
    training. BN statistics are averaged like the weights; integer tensors (counters) are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.network, self.decay = copy.deepcopy(model), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights that `model` has after optimiser step number `step` (counted from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.network.state_dict().values(), model.state_dict().values(), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        means, news = [mean for mean, _ in moving], [new for _, new in moving]
        torch._foreach_lerp_(means, news, share)  # type: ignore[attr-defined]  # one call for all tensors
        for mean, new in pairs:
            if not mean.is_floating_point():
                mean.copy_(new)


@dataclass(frozen=True)
class Ingredient:
    accuracy: float | None  # validation accuracy in [0, 1]; None: not measured
    epoch: int
    weights: dict[str, torch.Tensor]


class Soup:
    """The weights of the `size` epochs with the highest validation accuracy; without validation, of the last ones.

    Their mean is a uniform model soup (Wortsman et al. 2022).
    """

    def __init__(self, size: int):
        self.size = size
        self.ingredients: list[Ingredient] = []

    def add(self, network: nn.Module, epoch: int, accuracy: float | None) -> None:
        """Add the weights of `network` after `epoch`, if they belong to the best; of equal ones, the later are kept."""
        ranked = sorted(
            [*self.ingredients, Ingredient(accuracy, epoch, {})],
            key=lambda i: (i.accuracy if i.accuracy is not None else 0.0, i.epoch),
        )[-self.size :]
        if ranked and any(i.epoch == epoch for i in ranked):
            weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
            ranked = [Ingredient(accuracy, epoch, weights) if i.epoch == epoch else i for i in ranked]
        self.ingredients = ranked

    @torch.no_grad()
    def into(self, network: nn.Module) -> None:
        """Set the weights of `network`, and its BN statistics, to their means; counters are those of the last epoch."""
        newest = max(self.ingredients, key=lambda i: i.epoch).weights
        means = {
            name: torch.stack([i.weights[name] for i in self.ingredients]).mean(dim=0)
            for name, tensor in newest.items()
            if tensor.is_floating_point()
        }
        network.load_state_dict(newest | means)

    def state(self) -> list[dict[str, Any]]:
        """Return the content as a list of dicts with tensors and plain values, for `restore`."""
        return [{"accuracy": i.accuracy, "epoch": i.epoch, "weights": i.weights} for i in self.ingredients]

    def restore(self, saved: list[dict[str, Any]], network: nn.Module) -> None:
        """Restore the result of `state`. ValueError if the weights do not fit `network`, or an entry is not valid."""
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        device = next(network.parameters()).device
        for entry in saved:
            if {name: tensor.shape for name, tensor in entry["weights"].items()} != shapes:
                raise ValueError("the weights of an epoch for the model soup do not fit the network")
        self.ingredients = [
            Ingredient(
                None if entry["accuracy"] is None else float(entry["accuracy"]),
                int(entry["epoch"]),
                {name: tensor.to(device) for name, tensor in entry["weights"].items()},
            )
            for entry in saved
        ]
