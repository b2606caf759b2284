"""Channel groups of a student: which channels are removed together, their importance scores, and their removal.

This is the only file that imports torch-pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"). Tied
channels (a depthwise convolution and its neighbours, the branches of one RepConv, both ends of a shortcut) form one
group and are removed together. torch-pruning finds the groups, scores their channels and removes them. pruning.py
decides which channels to remove, because torch-pruning's limit per layer (`max_pruning_ratio`) skips layers that have
reached the limit, but does not stop exactly at the limit.

A score is a sum over the tied 1x1 and 3x3 convolutions and BN scales. torch-pruning 1.6.1 omits depthwise weights in
all criteria, and BN scales in taylor (Molchanov et al. 2019). hessian is the diagonal w^2 E[g^2] (LeCun et al. 1989).
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ascmodels.students import Student

if TYPE_CHECKING:
    import torch_pruning as tp


def _importance(name: str, **options: Any) -> "tp.importance.Importance":
    import torch_pruning as tp  # imported here: it imports timm, which takes seconds

    return getattr(tp.importance, name)(**options)


CRITERIA: dict[str, Callable[[], "tp.importance.Importance"]] = {
    "l1": partial(_importance, "GroupMagnitudeImportance", p=1),
    "l2": partial(_importance, "GroupMagnitudeImportance", p=2),
    "lamp": partial(_importance, "LAMPImportance", p=2),
    "fpgm": partial(_importance, "FPGMImportance", p=2),
    "random": partial(_importance, "RandomImportance"),
    "bn_scale": partial(_importance, "BNScaleImportance"),
}

DATA_CRITERIA: dict[str, Callable[[], "tp.importance.Importance"]] = {
    "taylor": partial(_importance, "GroupTaylorImportance"),
    # torch-pruning keeps only the last clip's gradient g; with the mean of g^2 as the gradient, the score is correct
    "hessian": partial(_importance, "GroupHessianImportance"),
}

NARROWEST = 2  # layers with this many channels or fewer are not pruned, e.g. the stem of a small network

Gradients = Mapping[str, torch.Tensor]  # parameter name -> tensor returned by `sensitivities`


class PruningError(ValueError):
    """The requested prune step is not possible."""


@dataclass(frozen=True)
class Group:
    """Channels that are removed together, with one score each."""

    layer: str  # name of the group's first convolution
    kind: str  # the pattern of layers in the group
    sets: int  # number of equal sets of channels (grouped convolutions); each set loses the same channels
    scores: torch.Tensor  # [C] scores of one set; the channels with the lowest scores are removed first

    @property
    def size(self) -> int:
        return len(self.scores)


def sensitivities(
    student: Student, criterion: str, losses: Callable[[Student], Iterable[torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return each parameter's mean gradient (taylor) or mean squared gradient (hessian) over clips.

    `losses(model)` yields the scalar loss of each clip. The model is a copy of `student` in evaluation mode, so that
    batch statistics do not mix clips.
    """
    model = copy.deepcopy(student).eval()
    totals: dict[str, torch.Tensor] = {}
    n_clips = 0
    for loss in losses(model):
        model.zero_grad(set_to_none=True)
        loss.backward()
        n_clips += 1
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            gradient = parameter.grad if criterion == "taylor" else parameter.grad.square()
            totals[name] = totals.get(name, 0) + gradient
    if not n_clips:
        raise PruningError(f"criterion {criterion} received 0 clips for its gradients: expected at least 1")
    return {name: (total / n_clips).cpu() for name, total in totals.items()}


def rank_channels(student: Student, criterion: str, seed: int, gradients: Gradients | None) -> list[Group]:
    """Return all groups of tied channels that may be pruned, with the scores of their channels by `criterion`.

    `seed` is used by the random criterion, `gradients` (from `sensitivities`) by taylor and hessian.
    """
    if student.fused:
        raise PruningError("a fused student cannot be pruned: prune the training form, then fuse")
    if criterion in DATA_CRITERIA and gradients is None:
        raise PruningError(f"criterion {criterion} needs gradients of the loss: expected those of `sensitivities`")
    model = copy.deepcopy(student).cpu()
    if criterion in DATA_CRITERIA:
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()  # type: ignore[index]
    groups = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pruner = _pruner(model, (CRITERIA | DATA_CRITERIA)[criterion]())
        names = {module: name for name, module in model.named_modules()}
        for group in pruner.DG.get_all_groups(pruner.ignored_layers, pruner.root_module_types):
            scores = pruner.estimate_importance(group)
            if scores is None:
                continue
            channels = len(group[0].idxs)
            if len(scores) > channels:  # a group that starts with a depthwise convolution: padded with zeros
                scores = scores[:channels] * (channels / len(scores))
            sets = pruner._get_channel_groups(group)
            scores = scores.view(sets, -1).mean(dim=0)
            kind = "/".join(
                f"{type(d.source.module).__name__}>{type(d.target.module).__name__}:"
                f"{'out' if pruner.DG.is_out_channel_pruning_fn(d.handler) else 'in'}"
                for d, _ in group
            )
            # if all scores of a layer are 0, division by their mean gives NaN: its channels are least important
            groups.append(Group(names[group[0].dep.target.module], kind, sets, scores.nan_to_num(0.0)))
    if groups and all(g.scores.min() == g.scores.max() for g in groups):
        fresh = ": the BN scales of an untrained network are all 1" if criterion == "bn_scale" else ""
        raise PruningError(
            f"criterion {criterion}: all channels of each layer have the same score{fresh}; expected different scores: "
            "train first, or use another criterion"
        )
    return groups


def remove_channels(student: Student, groups: Sequence[Group], counts: Sequence[int]) -> Student:
    """Return a new student without the `counts[i]` lowest-scored channels of each group i."""
    device = next(student.parameters()).device
    pruned = copy.deepcopy(student).cpu()
    with torch.random.fork_rng(devices=[]):  # tracing draws random numbers
        graph = _pruner(pruned, CRITERIA["random"]()).DG
    modules = dict(pruned.named_modules())
    for group, count in zip(groups, counts, strict=True):
        if count:
            lowest = group.scores.argsort(stable=True)[:count]
            leaving = [int(i) + s * group.size for s in range(group.sets) for i in lowest]
            layer = modules[group.layer]
            cut = graph.get_pruner_of_module(layer).prune_out_channels  # type: ignore[union-attr]
            graph.get_pruning_group(layer, cut, leaving).prune()
    return pruned.rebuilt().train(student.training).to(device)


def _pruner(model: Student, importance: "tp.importance.Importance") -> "tp.pruner.BasePruner":
    """Return torch-pruning's pruner of `model`; this puts `model` into evaluation mode."""
    import torch_pruning as tp

    narrow = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels <= NARROWEST]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # the scalars of GRN, which have no channels
        return tp.pruner.BasePruner(
            model,
            torch.zeros(1, 1, 64, 64),  # any size works for tracing: the classifier averages over positions
            importance=importance,  # type: ignore[arg-type]
            ignored_layers=[*model.unprunable(), *narrow],
            # new dicts, because the defaults are shared between all pruners of a process
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            channel_groups={},
        )
