"""Structured pruning of a student: whole channels leave, dependency group by dependency group.

The one file that knows torch-pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"). Channels that are
tied - a depthwise convolution and its neighbours, the branches of one RepConv, both ends of a shortcut - are one group
and go together. Pruning works on the unfused network; what remains is fused for deployment.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch_pruning as tp
from torch import nn

from ascmodels.nessi import get_deployed_size
from ascmodels.students import Student, StudentConfig

CRITERIA: dict[str, Callable[[], tp.importance.Importance]] = {
    "l1": partial(tp.importance.GroupMagnitudeImportance, p=1),
    "l2": partial(tp.importance.GroupMagnitudeImportance, p=2),
    "lamp": partial(tp.importance.LAMPImportance, p=2),
    "fpgm": partial(tp.importance.FPGMImportance, p=2),
    "random": tp.importance.RandomImportance,
}


NARROWEST = 2  # layers of so few channels are left as they are: the stem of a small network, mostly


class PruningError(ValueError):
    """The step asked for cannot be taken."""


@dataclass(frozen=True)
class PruneConfig:
    """Progressive pruning: one ratio a step, each followed by retraining."""

    ratios: tuple[float, ...] = ()  # share of the channels left that each step removes; none: no pruning
    criterion: str = "l2"  # importance of a channel
    round_to: int = 1  # channels are kept in multiples of this
    epochs: int = 3  # of retraining after each step
    lr: float = 1e-3  # peak learning rate of retraining

    def __post_init__(self):
        object.__setattr__(self, "ratios", tuple(float(r) for r in self.ratios))
        for i, ratio in enumerate(self.ratios):
            _check_ratio(ratio, f"prune.ratios[{i}]")
        if self.criterion not in CRITERIA:
            raise ValueError(f"prune.criterion={self.criterion!r}: expected one of {', '.join(CRITERIA)}")
        if self.round_to < 1 or self.epochs < 1 or not self.lr > 0:
            raise ValueError(
                f"prune.round_to={self.round_to}, prune.epochs={self.epochs}, prune.lr={self.lr}: "
                "expected whole numbers >= 1 and a learning rate above 0"
            )


def _check_ratio(ratio: float, name: str) -> None:
    if not 0 < ratio < 1:
        raise PruningError(
            f"{name}={ratio}: expected a share of channels above 0 and below 1; a ratio of 1 empties every layer"
        )


def prune(student: Student, ratio: float, criterion: str = "l2", round_to: int = 1, seed: int = 0) -> Student:
    """A new student with `ratio` of the channels of every group removed (local, uniform); the input is unchanged.

    The classifier keeps its outputs, and layers of `NARROWEST` channels or fewer are left alone. PruningError when a
    layer would be emptied or nothing would be removed. `seed` serves the random criterion.
    """
    _check_ratio(ratio, "pruning ratio")
    if student.fused:
        raise PruningError("a fused student cannot be pruned: prune the training form, then fuse")
    before = student.widths
    smallest = min((c for c in (*before.stem, *before.expand, *before.out) if c > NARROWEST), default=0)
    if smallest and int(smallest * (1 - ratio)) < 1:
        raise PruningError(
            f"pruning ratio {ratio} would empty a layer of {smallest} channel(s): "
            "use a smaller ratio, fewer steps or a wider network"
        )
    device = next(student.parameters()).device
    pruned = copy.deepcopy(student).cpu()
    narrow = [m for m in pruned.modules() if isinstance(m, nn.Conv2d) and m.out_channels <= NARROWEST]
    # 64 x 64 is enough for tracing: the classifier averages over whatever is left
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # GRN's scalars: they have no channels
        torch.manual_seed(seed)
        pruner = tp.pruner.BasePruner(
            pruned,
            torch.zeros(1, 1, 64, 64),
            importance=CRITERIA[criterion](),  # type: ignore[arg-type]
            pruning_ratio=ratio,
            ignored_layers=[pruned.classifier[0], *narrow],
            round_to=round_to if round_to > 1 else None,  # type: ignore[arg-type]
            # fresh dicts: the defaults are shared between pruners of one process
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            channel_groups={},
        )
        pruner.step()
    if pruned.widths == before:
        raise PruningError(f"pruning ratio {ratio} removes no channel from widths {before}; use a larger ratio")
    return pruned.rebuilt().train(student.training).to(device)


def schedule_sizes(config: StudentConfig, prune_config: PruneConfig, n_mels: int, frames: int) -> list[tuple[int, int]]:
    """(MACs, params) as deployed of the dense network and after each prune step, without training.

    Local uniform pruning makes the widths independent of the weights, so the figures are those of the trained trial.
    """
    with torch.random.fork_rng(devices=[]):
        student = Student(config)
    sizes = [get_deployed_size(student, n_mels, frames)]
    for ratio in prune_config.ratios:
        student = prune(student, ratio, "l1", prune_config.round_to)
        sizes.append(get_deployed_size(student, n_mels, frames))
    return sizes
