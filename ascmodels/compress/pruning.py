"""Structured pruning of a student: whole channels are removed, dependency group by dependency group (groups.py).

Pruning works on the unfused training form: a channel's score covers all branches, and all branches lose it. What is
deployed after a step is that network, retrained, with its remaining branches fused into one convolution (`fuse`).

    local        every layer loses the same share
    global       all channels are ranked together, by scores over the mean of their layer
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

_ROUNDING = 1e-9  # channels; above the rounding errors of a ratio, far below any share that differs from a whole number


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
    """Which channels of a network go together: each group's entries of `Widths` as (name, index, how much the entry
    falls when the group loses one channel)."""

    groups: tuple[tuple[tuple[str, int, int], ...], ...]

    def narrowed(self, widths: Widths, ratio: float, round_to: int) -> Widths:
        """What `prune` with scope `local` makes of `widths`, by arithmetic alone; its errors are the same."""
        check_ratio(ratio, "pruning ratio")
        left = {name: list(getattr(widths, name)) for name in ("stem", "expand", "out")}
        free = [g for g in self.groups if min(left[name][i] for name, i, _ in g) > NARROWEST]
        sizes = [left[name][i] // fall for (name, i, fall), *_ in free]
        counts = _local_counts([Group("", "", 1, torch.zeros(size)) for size in sizes], ratio, round_to)
        if not any(counts):
            raise PruningError(f"pruning ratio {ratio} removes no channel from widths {widths}; use a larger ratio")
        for group, count in zip(free, counts, strict=True):
            for name, i, fall in group:
                left[name][i] -= fall * count
        return Widths(**left)  # type: ignore[arg-type]


def ties(student: Student) -> Ties:
    """The ties of `student`'s channels, found by cutting: group number g loses a channel in the cuts that g + 1 has a
    bit for, and each width tells by the cuts that changed it whose it is."""
    groups = rank_channels(student, "l1", 0, None)
    owners: dict[tuple[str, int], int] = {}
    falls: dict[tuple[str, int], int] = {}
    for bit in range(len(groups).bit_length()):
        cut = remove_channels(student, groups, [(g + 1) >> bit & 1 for g in range(len(groups))]).widths
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
    groups = rank_channels(student, criterion, seed, gradients)
    at = partial(_counts, groups, scope=scope, round_to=round_to, limits=_limits(groups, max_ratio))
    low, high = 0.0, 1.0
    too_few, enough = at(low), at(high)
    best = remove_channels(student, groups, enough)
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
            candidate = remove_channels(student, groups, counts)
            if figure(candidate) > target:
                low, too_few = middle, counts
            else:
                high, enough, best = middle, counts, candidate
    return best


def smallest_step(student: Student, round_to: int, max_ratio: float) -> Student:
    """The least that `prune_below` leaves of `student`."""
    groups = rank_channels(student, "l1", 0, None)
    return remove_channels(student, groups, _counts(groups, 1.0, "local", round_to, _limits(groups, max_ratio)))


def prune_to_widths(
    student: Student, widths: Widths, criterion: str = "l2", seed: int = 0, gradients: Gradients | None = None
) -> Student:
    """A new student of exactly `widths`, which must lie within its own: the least important channels leave."""
    groups = rank_channels(student, criterion, seed, gradients)
    with torch.random.fork_rng(devices=[]):
        wanted = dict(build_student(student.config, student.n_classes, widths).named_modules())
    kept = [int(wanted[g.layer].out_channels) // g.sets for g in groups]  # type: ignore[arg-type]
    counts = tuple(g.size - k for g, k in zip(groups, kept, strict=True))
    pruned = remove_channels(student, groups, counts) if min(counts, default=0) >= 0 else student
    if pruned.widths != widths:
        raise PruningError(f"{student.widths} cannot be pruned to {widths}")
    return pruned


def check_ratio(ratio: float, name: str) -> None:
    if not 0 < ratio < 1:
        raise PruningError(
            f"{name}={ratio}: expected a share of channels above 0 and below 1; a ratio of 1 empties every layer"
        )


def removed_channels(total: int, ratio: float) -> int:
    """Return how many of `total` channels make up the share `ratio`, rounded up: the one rule for every amount.

    torch-pruning's own `total - int(total * (1 - ratio))` means the same, but takes a channel too many where
    total * (1 - ratio) is a whole number that floating point puts just below: 9 of 10 channels at ratio 0.8. A share
    within `_ROUNDING` of a whole number of channels is that number.
    """
    return max(0, math.ceil(total * ratio - _ROUNDING))


def _local_counts(groups: Sequence[Group], ratio: float, round_to: int) -> tuple[int, ...]:
    """How many channels leave each group when every layer loses the same share."""
    smallest = min((g.size for g in groups), default=0)
    if smallest and removed_channels(smallest, ratio) >= smallest:
        raise PruningError(
            f"pruning ratio {ratio} would empty a layer of {smallest} channel(s): "
            "use a smaller ratio, fewer steps or a wider network"
        )
    return _counts(groups, ratio, "local", round_to, [g.size - 1 for g in groups])


def _limits(groups: Sequence[Group], max_ratio: float) -> list[int]:
    """Return how many channels of each group may leave in one step: the share 1 - `max_ratio` stays."""
    return [max(0, min(g.size - removed_channels(g.size, 1 - max_ratio), g.size - NARROWEST)) for g in groups]


def _counts(
    groups: Sequence[Group], ratio: float, scope: str, round_to: int, limits: Sequence[int], strict: bool = False
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
