"""Channel groups of a student: which channels leave together, how they rank, and their removal.

The one file that knows torch-pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"). Channels that are
tied (a depthwise convolution and its neighbours, the branches of one RepConv, both ends of a shortcut) form one group
and are removed together. torch-pruning finds the groups, scores their channels and removes them; pruning.py decides
which ones, since torch-pruning's limit on a layer (`max_pruning_ratio`) skips full layers but does not stop at the
limit.

Scores are sums over the tied 1x1 and 3x3 convolutions and BN scales; torch-pruning 1.6.1 omits depthwise weights
everywhere, and BN scales from taylor (Molchanov et al. 2019). hessian is the diagonal w^2 E[g^2] (LeCun et al. 1989).
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
    import torch_pruning as tp  # here: it brings timm along, seconds that a command that prunes nothing need not spend

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
    # its accumulate_grad keeps the last clip alone; given the mean of g^2 as gradient, its score is right
    "hessian": partial(_importance, "GroupHessianImportance"),
}

NARROWEST = 2  # layers of so few channels are left as they are: the stem of a small network, mostly

Gradients = Mapping[str, torch.Tensor]  # parameter name -> what `sensitivities` gives


class PruningError(ValueError):
    """The step asked for cannot be taken."""


@dataclass(frozen=True)
class Group:
    """Channels that go together, one score each."""

    layer: str  # the convolution that leads the group
    kind: str  # the pattern of layers in it
    sets: int  # grouped convolutions: so many equal sets of channels, each losing the same ones
    scores: torch.Tensor  # [C] of one set; the lowest leave first

    @property
    def size(self) -> int:
        return len(self.scores)


def sensitivities(
    student: Student, criterion: str, losses: Callable[[Student], Iterable[torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """What taylor and hessian rank by: each parameter's mean gradient, or its mean squared gradient, over clips.

    `losses(model)` yields the scalar loss of one clip after another. In evaluation mode, so that clips do not mix in
    batch statistics; the input is unchanged.
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
        raise PruningError(f"criterion {criterion} was given no clip to take gradients from")
    return {name: (total / n_clips).cpu() for name, total in totals.items()}


def rank_channels(student: Student, criterion: str, seed: int, gradients: Gradients | None) -> list[Group]:
    """Every group that may lose channels, with their scores."""
    if student.fused:
        raise PruningError("a fused student cannot be pruned: prune the training form, then fuse")
    if criterion in DATA_CRITERIA and gradients is None:
        raise PruningError(f"criterion {criterion} ranks by gradients of the loss, and none were given")
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
            if len(scores) > channels:  # led by a depthwise convolution, as long as what reads it: zeros at the end
                scores = scores[:channels] * (channels / len(scores))
            sets = pruner._get_channel_groups(group)
            scores = scores.view(sets, -1).mean(dim=0)
            kind = "/".join(
                f"{type(d.source.module).__name__}>{type(d.target.module).__name__}:"
                f"{'out' if pruner.DG.is_out_channel_pruning_fn(d.handler) else 'in'}"
                for d, _ in group
            )
            # a layer whose scores are all 0 is 0 / 0 after division by their mean: dead, so its channels matter least
            groups.append(Group(names[group[0].dep.target.module], kind, sets, scores.nan_to_num(0.0)))
    if groups and all(g.scores.min() == g.scores.max() for g in groups):
        fresh = ": the BN scales of a fresh network are all 1" if criterion == "bn_scale" else ""
        raise PruningError(
            f"criterion {criterion} cannot rank: all channels of each layer have the same score{fresh}; "
            "train first, or use another criterion"
        )
    return groups


def remove_channels(student: Student, groups: Sequence[Group], counts: Sequence[int]) -> Student:
    """A new student without the `counts[i]` channels of least score of each group."""
    device = next(student.parameters()).device
    pruned = copy.deepcopy(student).cpu()
    with torch.random.fork_rng(devices=[]):  # tracing draws
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
    """torch-pruning's view of `model`, which it leaves in evaluation mode."""
    import torch_pruning as tp

    narrow = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels <= NARROWEST]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unwrapped parameters")  # GRN's scalars: they have no channels
        return tp.pruner.BasePruner(
            model,
            torch.zeros(1, 1, 64, 64),  # enough for tracing: the classifier averages over whatever is left
            importance=importance,  # type: ignore[arg-type]
            ignored_layers=[*model.unprunable(), *narrow],
            # fresh dicts: the defaults are shared between pruners of one process
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            channel_groups={},
        )
