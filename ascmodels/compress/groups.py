"""Channel groups of a student: which channels are removed together, their importance scores, and their removal.

Channels of different layers are *tied* if they can only be removed together. A depthwise convolution is tied to its
neighbours, the branches of one RepConv to each other, and the layers at both ends of a shortcut. Tied layers form a
group. torch-pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning") finds the groups, scores their
channels and removes them; only this file imports it. pruning.py decides how many channels each group loses.
torch-pruning is not used for this decision: it checks its limit `max_pruning_ratio` only before a removal, so a layer
can lose more than the limit.

The criterion (`prune.criterion`) determines the score of a channel. In torch-pruning 1.6.1, the score is computed from
these parameters of the group (depthwise convolutions are never used):

    l1, l2, lamp, hessian   weights of convolutions, and scales of batch normalisation (BN)
    fpgm, taylor            weights of convolutions (taylor: Molchanov et al. 2019)
    bn_scale                BN scales
    random                  none

hessian scores a weight w with gradient g by w^2 E[g^2] (LeCun et al. 1989, diagonal approximation).
"""

import copy
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ascmodels.config.prune import PruningError
from ascmodels.students import Student

if TYPE_CHECKING:
    import torch_pruning as tp


def _importance(name: str, **options: Any) -> "tp.importance.Importance":
    return getattr(_torch_pruning().importance, name)(**options)


def _torch_pruning() -> ModuleType:
    """Return the module torch_pruning, imported at the first call and without timm.

    torch-pruning uses timm, if it can be imported, only to count operations of timm's attention layers, which asc-tune
    does not call. The import of timm and torchvision would take a second of CPU time in the driver and in each actor.
    """
    if "torch_pruning" in sys.modules or "timm" in sys.modules:
        return importlib.import_module("torch_pruning")
    sys.modules["timm"] = None  # type: ignore[assignment] - `import timm` raises ImportError, as if it were missing
    try:
        return importlib.import_module("torch_pruning")
    finally:
        del sys.modules["timm"]


# criteria that need only the weights, by name
CRITERIA: dict[str, Callable[[], "tp.importance.Importance"]] = {
    "l1": partial(_importance, "GroupMagnitudeImportance", p=1),
    "l2": partial(_importance, "GroupMagnitudeImportance", p=2),
    "lamp": partial(_importance, "LAMPImportance", p=2),
    "fpgm": partial(_importance, "FPGMImportance", p=2),
    "random": partial(_importance, "RandomImportance"),
    "bn_scale": partial(_importance, "BNScaleImportance"),
}

# criteria that also need gradients of the loss (`sensitivities`), by name
DATA_CRITERIA: dict[str, Callable[[], "tp.importance.Importance"]] = {
    "taylor": partial(_importance, "GroupTaylorImportance"),
    # the score is w^2 E[g^2], because `rank_channels` stores the mean of g^2 over clips as the gradient
    "hessian": partial(_importance, "GroupHessianImportance"),
}

NARROWEST = 2  # layers with this many channels or fewer are not pruned, e.g. the stem of a small network

Gradients = Mapping[str, torch.Tensor]  # parameter name -> tensor returned by `sensitivities`


@dataclass(frozen=True)
class Group:
    """Tied layers (they lose channels only together), with one importance score for each of their common channels."""

    layer: str  # name of the group's first convolution
    kind: str  # types of the tied layers, in order; scope isomorphic ranks groups of equal `kind` together
    sets: int  # number of equal sets of channels (above 1: grouped convolution); each set loses the same channels
    scores: torch.Tensor  # [C] scores of one set; the channels with the lowest scores are removed first

    @property
    def size(self) -> int:
        return len(self.scores)


def sensitivities(
    student: Student, criterion: str, losses: Callable[[Student], Iterable[torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return the mean over clips of each parameter's gradient or squared gradient, by parameter name.

    With `criterion` taylor it is the mean gradient, with hessian the mean squared gradient. `losses(model)` yields the
    scalar loss of one clip at a time; `model` is a copy of `student` in evaluation mode, so that batch normalisation
    does not mix clips. PruningError if `losses` yields nothing.
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
        raise PruningError(
            f"criterion {criterion} received the losses of 0 clips: expected those of at least 1 training clip; check "
            "that the training split has clips"
        )
    return {name: (total / n_clips).cpu() for name, total in totals.items()}


def rank_channels(student: Student, criterion: str, seed: int, gradients: Gradients | None) -> list[Group]:
    """Return the groups of tied layers that may be pruned, with the scores of their channels by `criterion`.

    `criterion` is l1, l2, lamp, fpgm, random, bn_scale, taylor or hessian. Only random uses `seed`. taylor and hessian
    need `gradients`, the result of `sensitivities`; for other criteria it may be None. PruningError if `student` is in
    deployed form, if gradients are missing, or if within every group all channels have the same score.
    """
    if student.fused:
        raise PruningError("a fused student cannot be pruned: expected the training form; prune it before it is fused")
    if criterion in DATA_CRITERIA and gradients is None:
        raise PruningError(
            f"criterion {criterion} needs gradients of the loss, but `gradients` is None: pass the result of "
            "`sensitivities`"
        )
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
            if len(scores) > channels:  # torch-pruning adds zeros if a group starts with a depthwise layer
                scores = scores[:channels] * (channels / len(scores))
            sets = pruner._get_channel_groups(group)
            scores = scores.view(sets, -1).mean(dim=0)
            kind = "/".join(
                f"{type(d.source.module).__name__}>{type(d.target.module).__name__}:"
                f"{'out' if pruner.DG.is_out_channel_pruning_fn(d.handler) else 'in'}"
                for d, _ in group
            )
            # torch-pruning divides by the mean score; NaN means that all scores of the layer are 0 (least important)
            groups.append(Group(names[group[0].dep.target.module], kind, sets, scores.nan_to_num(0.0)))
    if groups and all(g.scores.min() == g.scores.max() for g in groups):
        cause = ": the BN scales of an untrained network are all 1" if criterion == "bn_scale" else ""
        raise PruningError(
            f"criterion {criterion}: all channels of each layer have the same score{cause}; expected different scores: "
            "train the network before pruning, or set another prune.criterion"
        )
    return groups


def remove_channels(student: Student, groups: Sequence[Group], counts: Sequence[int]) -> Student:
    """Return a copy of `student` in which each `groups[i]` has lost the `counts[i]` channels with the lowest scores.

    `groups` is the result of `rank_channels` for `student`.
    """
    device = next(student.parameters()).device
    pruned = copy.deepcopy(student).cpu()
    with torch.random.fork_rng(devices=[]):  # tracing draws random numbers; keep the caller's random state
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
    """Return a torch-pruning pruner for `model` that scores channels with `importance`.

    It prunes neither the classifier's outputs nor layers of NARROWEST channels or fewer. Creating the pruner puts
    `model` into evaluation mode.
    """
    narrow = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels <= NARROWEST]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # scalars of GRN: they have no channels to prune
        return _torch_pruning().pruner.BasePruner(
            model,
            torch.zeros(1, 1, 64, 64),  # input to trace; any size works, as the classifier averages over positions
            importance=importance,  # type: ignore[arg-type]
            ignored_layers=[*model.unprunable(), *narrow],
            # new dicts, because the defaults are shared between all pruners of a process
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            channel_groups={},
        )
