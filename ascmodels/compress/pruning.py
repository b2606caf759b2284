"""Structured pruning of a student: whole channels leave, dependency group by dependency group.

The one file that knows torch-pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"). Channels that are
tied - a depthwise convolution and its neighbours, the branches of one RepConv, both ends of a shortcut - are one group
and go together. torch-pruning finds the groups, scores their channels and cuts them; which of them leave is decided
here, since its own limit on a layer (`max_pruning_ratio`) leaves out full layers but does not stop at the limit.

Pruning works on the unfused training form: a channel's score covers all branches, and all branches lose it. What is
deployed after a step is that network, retrained, with its remaining branches fused into one convolution (`fuse`).

    local        every layer loses the same share
    global       all channels are ranked together, by scores over their layer's mean
    isomorphic   layers with the same pattern of neighbours are (Fang et al. 2024, "Isomorphic Pruning")

Scores are sums over the tied 1x1 and 3x3 convolutions and BN scales; torch-pruning 1.6.1 leaves out depthwise weights
everywhere, and BN scales from taylor (Molchanov et al. 2019). hessian is the diagonal w^2 E[g^2] (LeCun et al. 1989).
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ascmodels.students import Student, Widths, build_student

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
_ROUNDING = 1e-9  # channels; above the rounding errors of a ratio, far below any share that differs from a whole number
NARROWEST = 2  # layers of so few channels are left as they are: the stem of a small network, mostly
Gradients = Mapping[str, torch.Tensor]  # parameter name -> what `sensitivities` gives


class PruningError(ValueError):
    """The step asked for cannot be taken."""


@dataclass(frozen=True)
class _Group:
    """Channels that go together, one score each."""

    layer: str  # the convolution that leads the group
    kind: str  # the pattern of layers in it
    sets: int  # grouped convolutions: so many equal sets of channels, each losing the same ones
    scores: torch.Tensor  # [C] of one set; the lowest leave first

    @property
    def size(self) -> int:
        return len(self.scores)


def prune(
    student: Student,
    ratio: float,
    criterion: str = "l2",
    round_to: int = 1,
    seed: int = 0,
    scope: str = "local",
    max_ratio: float = 0.8,
    gradients: Gradients | None = None,
) -> Student:
    """A new student with `ratio` of its channels removed; the input is unchanged.

    The classifier keeps its outputs, and layers of `NARROWEST` channels or fewer are left alone. PruningError when a
    layer would be emptied or nothing would be removed. `seed` serves the random criterion, `gradients` (of
    `sensitivities`) taylor and hessian, `max_ratio` the global and the isomorphic scope.
    """
    check_ratio(ratio, "pruning ratio")
    groups = _rank(student, criterion, seed, gradients)
    if scope == "local":
        counts = _local_counts(groups, ratio, round_to)
    else:
        counts = _counts(groups, ratio, scope, round_to, _limits(groups, max_ratio), strict=True)
    if not any(counts):
        raise PruningError(f"pruning ratio {ratio} removes no channel from widths {student.widths}; use a larger ratio")
    return _cut(student, groups, counts)


@dataclass(frozen=True)
class Ties:
    """Which channels of a network go together: each group's entries of `Widths` as (name, index, how much the entry
    falls when the group loses one channel)."""

    groups: tuple[tuple[tuple[str, int, int], ...], ...]

    def narrowed(self, widths: Widths, ratio: float, round_to: int) -> Widths:
        """What `prune` with scope `local` makes of `widths`, by arithmetic alone; its errors are the same."""
        check_ratio(ratio, "pruning ratio")
        left = {name: list(getattr(widths, name)) for name in ("stem", "expand", "out")}
        free = [g for g in self.groups if min(left[name][i] for name, i, _ in g) > NARROWEST]
        sizes = [left[name][i] // fall for (name, i, fall), *_ in free]
        counts = _local_counts([_Group("", "", 1, torch.zeros(size)) for size in sizes], ratio, round_to)
        if not any(counts):
            raise PruningError(f"pruning ratio {ratio} removes no channel from widths {widths}; use a larger ratio")
        for group, count in zip(free, counts, strict=True):
            for name, i, fall in group:
                left[name][i] -= fall * count
        return Widths(**left)  # type: ignore[arg-type]


def ties(student: Student) -> Ties:
    """The ties of `student`'s channels, found by cutting: group number g loses a channel in the cuts that g + 1 has a
    bit for, and each width tells by the cuts that changed it whose it is."""
    groups = _rank(student, "l1", 0, None)
    owners: dict[tuple[str, int], int] = {}
    falls: dict[tuple[str, int], int] = {}
    for bit in range(len(groups).bit_length()):
        cut = _cut(student, groups, [(g + 1) >> bit & 1 for g in range(len(groups))]).widths
        for name in ("stem", "expand", "out"):
            for i, (before, after) in enumerate(zip(getattr(student.widths, name), getattr(cut, name), strict=True)):
                if before != after:
                    owners[name, i] = owners.get((name, i), 0) | 1 << bit
                    falls[name, i] = before - after
    members = [
        [(*entry, falls[entry]) for entry, owner in owners.items() if owner == g + 1] for g in range(len(groups))
    ]
    return Ties(tuple(map(tuple, members)))


def prune_below(
    student: Student,
    target: float,
    figure: Callable[[Student], float],
    criterion: str = "l2",
    round_to: int = 1,
    seed: int = 0,
    scope: str = "local",
    max_ratio: float = 0.8,
    gradients: Gradients | None = None,
) -> Student:
    """The largest network along the ranking whose `figure` (MACs, bytes) is not above `target`.

    Found by bisection on the ratio; every layer keeps `NARROWEST` channels and 1 - `max_ratio` of its own. A network
    that is small enough already comes back as a copy. PruningError names the figure that can be reached.
    """
    if figure(student) <= target:
        return copy.deepcopy(student)
    groups = _rank(student, criterion, seed, gradients)
    at = partial(_counts, groups, scope=scope, round_to=round_to, limits=_limits(groups, max_ratio))
    low, high = 0.0, 1.0
    too_few, enough = at(low), at(high)
    best = _cut(student, groups, enough)
    if figure(best) > target:
        raise PruningError(
            f"target {target:,.0f} is out of reach: within prune.max_ratio={max_ratio} the smallest network one step "
            f"leaves has {figure(best):,.0f}"
        )
    while high - low > 1e-7:  # finer than one channel of any network
        middle = (low + high) / 2
        counts = at(middle)
        if counts == too_few:
            low = middle
        elif counts == enough:
            high = middle
        else:
            candidate = _cut(student, groups, counts)
            if figure(candidate) > target:
                low, too_few = middle, counts
            else:
                high, enough, best = middle, counts, candidate
    return best


def smallest_step(student: Student, round_to: int, max_ratio: float) -> Student:
    """The least that `prune_below` leaves of `student`."""
    groups = _rank(student, "l1", 0, None)
    return _cut(student, groups, _counts(groups, 1.0, "local", round_to, _limits(groups, max_ratio)))


def prune_to_widths(
    student: Student, widths: Widths, criterion: str = "l2", seed: int = 0, gradients: Gradients | None = None
) -> Student:
    """A new student of exactly `widths`, which must lie within its own: the least important channels leave."""
    groups = _rank(student, criterion, seed, gradients)
    with torch.random.fork_rng(devices=[]):
        wanted = dict(build_student(student.config, student.n_classes, widths).named_modules())
    kept = [int(wanted[g.layer].out_channels) // g.sets for g in groups]  # type: ignore[arg-type]
    counts = tuple(g.size - k for g, k in zip(groups, kept, strict=True))
    pruned = _cut(student, groups, counts) if min(counts, default=0) >= 0 else student
    if pruned.widths != widths:
        raise PruningError(f"{student.widths} cannot be pruned to {widths}")
    return pruned


def check_ratio(ratio: float, name: str) -> None:
    if not 0 < ratio < 1:
        raise PruningError(
            f"{name}={ratio}: expected a share of channels above 0 and below 1; a ratio of 1 empties every layer"
        )


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


def _rank(student: Student, criterion: str, seed: int, gradients: Gradients | None) -> list[_Group]:
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
            groups.append(_Group(names[group[0].dep.target.module], kind, sets, scores.nan_to_num(0.0)))
    if groups and all(g.scores.min() == g.scores.max() for g in groups):
        fresh = ": the BN scales of a fresh network are all 1" if criterion == "bn_scale" else ""
        raise PruningError(
            f"criterion {criterion} cannot rank: all channels of each layer have the same score{fresh}; "
            "train first, or use another criterion"
        )
    return groups


def removed_channels(total: int, ratio: float) -> int:
    """Return how many of `total` channels make up the share `ratio`, rounded up: the one rule for every amount.

    torch-pruning's own `total - int(total * (1 - ratio))` means the same, but takes a channel too many where
    total * (1 - ratio) is a whole number that floating point puts just below: 9 of 10 channels at ratio 0.8. A share
    within `_ROUNDING` of a whole number of channels is that number.
    """
    return max(0, math.ceil(total * ratio - _ROUNDING))


def _local_counts(groups: Sequence[_Group], ratio: float, round_to: int) -> tuple[int, ...]:
    """How many channels leave each group when every layer loses the same share."""
    smallest = min((g.size for g in groups), default=0)
    if smallest and removed_channels(smallest, ratio) >= smallest:
        raise PruningError(
            f"pruning ratio {ratio} would empty a layer of {smallest} channel(s): "
            "use a smaller ratio, fewer steps or a wider network"
        )
    return _counts(groups, ratio, "local", round_to, [g.size - 1 for g in groups])


def _limits(groups: Sequence[_Group], max_ratio: float) -> list[int]:
    """Return how many channels of each group may leave in one step: the share 1 - `max_ratio` stays."""
    return [max(0, min(g.size - removed_channels(g.size, 1 - max_ratio), g.size - NARROWEST)) for g in groups]


def _counts(
    groups: Sequence[_Group], ratio: float, scope: str, round_to: int, limits: Sequence[int], strict: bool = False
) -> tuple[int, ...]:
    """How many channels leave each group at `ratio`; `strict` refuses what the limits do not let go."""
    competing: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        key = {"local": str(i), "global": "", "isomorphic": group.kind}[scope]
        competing.setdefault(key, []).append(i)
    counts = [0] * len(groups)
    for members in competing.values():
        total = sum(groups[i].size for i in members)
        leaving = removed_channels(total, ratio)
        allowed = sum(limits[i] for i in members)
        if strict and leaving > allowed:
            raise PruningError(
                f"pruning ratio {ratio} would take {leaving} of {total} channels that are ranked together, and "
                f"prune.max_ratio lets go of {allowed} in one step: use a smaller ratio or more steps"
            )
        lowest = torch.cat([groups[i].scores.sort().values[: limits[i]] for i in members])
        owners = torch.tensor([i for i in members for _ in range(limits[i])])
        for i in owners[lowest.argsort(stable=True)[:leaving]].tolist():
            counts[i] += 1
    for i, group in enumerate(groups):
        kept = group.size - counts[i]
        if counts[i] and kept % round_to:
            kept -= kept % round_to
            kept += round_to if group.size - kept > limits[i] else 0
            counts[i] = max(0, group.size - kept)
    return tuple(counts)


def _cut(student: Student, groups: Sequence[_Group], counts: Sequence[int]) -> Student:
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
