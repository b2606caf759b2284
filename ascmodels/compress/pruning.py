"""Structured pruning of a student: complete channels are removed from each dependency group (groups.py).

Pruning works on the unfused training form: the score of a channel covers all branches, and it is removed from all
branches. After a step and its retraining, the branches of this network are fused for deployment (`Student.fuse`).

    local        each layer loses the same share of channels
    global       all channels are ranked together, by their score divided by the mean score of the layer
    isomorphic   layers with the same pattern of neighbours are ranked together (Fang et al. 2024, "Isomorphic Pruning")
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ascmodels.compress.groups import NARROWEST, Gradients, Group, PruningError, rank_channels, remove_channels
from ascmodels.students import Student, Widths, build_student

_ROUNDING = 1e-9  # tolerance in channels: above the rounding error of a ratio, far below any real fraction


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
    """Return a new student with the share `ratio` of its channels removed; `student` is unchanged.

    The classifier keeps its outputs, and layers of `NARROWEST` channels or fewer are not pruned. PruningError if a
    layer would become empty or no channel would be removed. `seed` is used by the random criterion, `gradients` (from
    `sensitivities`) by taylor and hessian, and `max_ratio` by the global and isomorphic scopes.
    """
    check_ratio(ratio, "pruning ratio")
    groups = rank_channels(student, criterion, seed, gradients)
    if scope == "local":
        counts = _local_counts(groups, ratio, round_to)
    else:
        counts = _counts(groups, ratio, scope, round_to, _limits(groups, max_ratio), strict=True)
    if not any(counts):
        raise PruningError(f"pruning ratio {ratio} removes no channel from widths {student.widths}; use a larger ratio")
    return remove_channels(student, groups, counts)


@dataclass(frozen=True)
class Ties:
    """The tied channels of a network: each group's entries of `Widths`, as (name, index, decrease).

    `decrease` is the number of channels that the entry loses if the group loses one channel.
    """

    groups: tuple[tuple[tuple[str, int, int], ...], ...]

    def narrowed(self, widths: Widths, ratio: float, round_to: int) -> Widths:
        """Return the widths after one local prune step at `ratio`, computed from `widths` without a network.

        Raises the same errors as `prune`.
        """
        check_ratio(ratio, "pruning ratio")
        remaining = {name: list(getattr(widths, name)) for name in ("stem", "expand", "out")}
        free = [g for g in self.groups if min(remaining[name][i] for name, i, _ in g) > NARROWEST]
        sizes = [remaining[name][i] // decrease for (name, i, decrease), *_ in free]
        counts = _local_counts([Group("", "", 1, torch.zeros(size)) for size in sizes], ratio, round_to)
        if not any(counts):
            raise PruningError(f"pruning ratio {ratio} removes no channel from widths {widths}; use a larger ratio")
        for group, count in zip(free, counts, strict=True):
            for name, i, decrease in group:
                remaining[name][i] -= decrease * count
        return Widths(**remaining)  # type: ignore[arg-type]


def ties(student: Student) -> Ties:
    """Return the ties of `student`'s channels, found by removing channels from a few copies ("cuts").

    In cut number b, every group g loses one channel if bit b of g + 1 is set. So the set of cuts in which a width
    decreased is the binary code of its group.
    """
    groups = rank_channels(student, "l1", 0, None)
    owners: dict[tuple[str, int], int] = {}
    decreases: dict[tuple[str, int], int] = {}
    for bit in range(len(groups).bit_length()):
        cut = remove_channels(student, groups, [(g + 1) >> bit & 1 for g in range(len(groups))]).widths
        for name in ("stem", "expand", "out"):
            for i, (before, after) in enumerate(zip(getattr(student.widths, name), getattr(cut, name), strict=True)):
                if before != after:
                    owners[name, i] = owners.get((name, i), 0) | 1 << bit
                    decreases[name, i] = before - after
    members = [
        [(*entry, decreases[entry]) for entry, owner in owners.items() if owner == g + 1] for g in range(len(groups))
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
    """Return the largest network, pruned in the order of the scores, whose `figure` (MACs, bytes) is <= `target`.

    The ratio is found by bisection. Each layer keeps at least `NARROWEST` channels and the share 1 - `max_ratio` of its
    channels. If `student` is small enough already, a copy is returned. PruningError if the target is too small; the
    message names the smallest possible figure.
    """
    if figure(student) <= target:
        return copy.deepcopy(student)
    groups = rank_channels(student, criterion, seed, gradients)
    at = partial(_counts, groups, scope=scope, round_to=round_to, limits=_limits(groups, max_ratio))
    low, high = 0.0, 1.0
    too_few, enough = at(low), at(high)
    best = remove_channels(student, groups, enough)
    if figure(best) > target:
        raise PruningError(
            f"target {target:,.0f} is out of reach: the smallest network after one step with "
            f"prune.max_ratio={max_ratio} has {figure(best):,.0f}"
        )
    while high - low > 1e-7:  # finer than one channel of any network
        middle = (low + high) / 2
        counts = at(middle)
        if counts == too_few:
            low = middle
        elif counts == enough:
            high = middle
        else:
            candidate = remove_channels(student, groups, counts)
            if figure(candidate) > target:
                low, too_few = middle, counts
            else:
                high, enough, best = middle, counts, candidate
    return best


def smallest_step(student: Student, round_to: int, max_ratio: float) -> Student:
    """Return the smallest network that `prune_below` can make of `student` in one step."""
    groups = rank_channels(student, "l1", 0, None)
    return remove_channels(student, groups, _counts(groups, 1.0, "local", round_to, _limits(groups, max_ratio)))


def prune_to_widths(
    student: Student, widths: Widths, criterion: str = "l2", seed: int = 0, gradients: Gradients | None = None
) -> Student:
    """Return a new student of exactly `widths`, made from `student` by removing its least important channels.

    PruningError if a width is larger than that of `student`, or if tied layers do not allow `widths`.
    """
    groups = rank_channels(student, criterion, seed, gradients)
    with torch.random.fork_rng(devices=[]):
        target = dict(build_student(student.config, student.n_classes, widths).named_modules())
    kept = [int(target[g.layer].out_channels) // g.sets for g in groups]  # type: ignore[arg-type]
    counts = tuple(g.size - k for g, k in zip(groups, kept, strict=True))
    pruned = remove_channels(student, groups, counts) if min(counts, default=0) >= 0 else student
    if pruned.widths != widths:
        raise PruningError(f"{student.widths} cannot be pruned to {widths}: expected widths that its tied layers allow")
    return pruned


def check_ratio(ratio: float, name: str) -> None:
    """Raise PruningError, which shows `name`, unless `ratio` is between 0 and 1 (exclusive)."""
    if not 0 < ratio < 1:
        raise PruningError(
            f"{name}={ratio}: expected a share of channels above 0 and below 1; a ratio of 1 empties every layer"
        )


def removed_channels(total: int, ratio: float) -> int:
    """Return the share `ratio` of `total` channels, rounded up to an integer; all amounts of pruning use this rule.

    torch-pruning's own `total - int(total * (1 - ratio))` has the same meaning, but removes one channel too many if
    total * (1 - ratio) is an integer that floating point puts just below: 9 of 10 channels at ratio 0.8. A share within
    `_ROUNDING` of an integer is rounded to this integer.
    """
    return max(0, math.ceil(total * ratio - _ROUNDING))


def _local_counts(groups: Sequence[Group], ratio: float, round_to: int) -> tuple[int, ...]:
    """Return how many channels each group loses if every layer loses the same share."""
    smallest = min((g.size for g in groups), default=0)
    if smallest and removed_channels(smallest, ratio) >= smallest:
        raise PruningError(
            f"pruning ratio {ratio} would empty a layer of {smallest} channel(s): "
            "use a smaller ratio, fewer steps or a wider network"
        )
    return _counts(groups, ratio, "local", round_to, [g.size - 1 for g in groups])


def _limits(groups: Sequence[Group], max_ratio: float) -> list[int]:
    """Return how many channels each group may lose in one step: at most `max_ratio`, and NARROWEST must remain."""
    return [max(0, min(g.size - removed_channels(g.size, 1 - max_ratio), g.size - NARROWEST)) for g in groups]


def _counts(
    groups: Sequence[Group], ratio: float, scope: str, round_to: int, limits: Sequence[int], strict: bool = False
) -> tuple[int, ...]:
    """Return how many channels each group loses at `ratio`: at most `limits[i]` for group i.

    With `strict`, raise PruningError if the limits allow fewer channels in total than `ratio` requires.
    """
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
                f"pruning ratio {ratio} would remove {leaving} of {total} channels that are ranked together, but "
                f"prune.max_ratio allows {allowed} in one step: use a smaller ratio or more steps"
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
