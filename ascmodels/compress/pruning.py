"""Structured pruning of a student: complete channels are removed from all layers that depend on them.

Channels of different layers are *tied* if they can only be removed together; such layers form a group (groups.py).
Pruning works on the training form: the score of a channel covers all RepConv branches, and the channel is removed from
all branches. For deployment, fuse a copy of the pruned and retrained network (`Student.fuse`).

The argument `scope` selects the channels that are ranked together by score. The lowest ones of a ranking are removed:

    local        the channels of one group: each group loses the same share of its channels
    global       the channels of all groups; a score is divided by the mean score of its group
    isomorphic   the channels of groups with the same types of layers (Fang et al. 2024, "Isomorphic Pruning")
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ascmodels.compress.groups import NARROWEST, Gradients, Group, rank_channels, remove_channels
from ascmodels.config.prune import PruningError, check_ratio
from ascmodels.students import Student, Widths, build_student

_ROUNDING = 1e-9  # tolerance in channels, above the floating-point error of total * ratio


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
    """Return a pruned copy of `student`, without the share `ratio` (above 0, below 1) of its channels.

    `criterion` (l1, l2, ...) scores the channels, and `scope` is local, global or isomorphic (see this module's
    docstring). The classifier keeps its outputs, and layers of `NARROWEST` channels or fewer are not pruned. The
    numbers of channels that remain in pruned layers are multiples of `round_to`. With scope global or isomorphic, no
    layer loses more than the share `max_ratio`. `seed` is for criterion random. `gradients`, the result of
    `sensitivities`, is for taylor and hessian. PruningError if a layer would become empty, no channel would be removed,
    or `max_ratio` does not allow `ratio`.
    """
    check_ratio(ratio, "pruning ratio")
    groups = rank_channels(student, criterion, seed, gradients)
    if scope == "local":
        counts = _local_counts(groups, ratio, round_to)
    else:
        counts = _counts(groups, ratio, scope, round_to, _limits(groups, max_ratio), strict=True)
    if not any(counts):
        raise PruningError(
            f"pruning ratio {ratio} removes no channel from widths {student.widths}: expected at least one; use a "
            "larger ratio, a smaller prune.round_to or fewer prune steps"
        )
    return remove_channels(student, groups, counts)


@dataclass(frozen=True)
class Ties:
    """Which numbers in the `Widths` (channels per layer) of a network become smaller together when it is pruned.

    `groups` has one tuple for each group of tied layers. It lists (field, index, decrease) for each affected number:
    when the group loses one channel, entry `index` of the `Widths` field `field` becomes smaller by `decrease`.
    """

    groups: tuple[tuple[tuple[str, int, int], ...], ...]

    def narrowed(self, widths: Widths, ratio: float, round_to: int) -> Widths:
        """Return the widths to which `prune` with scope local would reduce a network; no network is built.

        `widths` are those before pruning. `ratio` is the share of channels to remove; the numbers that remain are
        rounded to multiples of `round_to`. PruningError in the same cases as in `prune`.
        """
        check_ratio(ratio, "pruning ratio")
        remaining = {name: list(getattr(widths, name)) for name in ("stem", "expand", "out")}
        free = [g for g in self.groups if min(remaining[name][i] for name, i, _ in g) > NARROWEST]
        sizes = [remaining[name][i] // decrease for (name, i, decrease), *_ in free]
        counts = _local_counts([Group("", "", 1, torch.zeros(size)) for size in sizes], ratio, round_to)
        if not any(counts):
            raise PruningError(
                f"pruning ratio {ratio} removes no channel from widths {widths}: expected at least one; use a "
                "larger ratio, a smaller prune.round_to or fewer prune steps"
            )
        for group, count in zip(free, counts, strict=True):
            for name, i, decrease in group:
                remaining[name][i] -= decrease * count
        return Widths(**remaining)  # type: ignore[arg-type]


def ties(student: Student) -> Ties:
    """Return the groups of widths that become smaller together when `student` is pruned.

    They are found by removing channels from copies of `student`; about log2(number of groups) copies are enough. In
    copy number b, group g loses one channel if bit b of g + 1 is set. So the copies in which an entry of `Widths`
    becomes smaller identify the entry's group.
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
    """Return a pruned copy of `student`: the largest one whose size is at most `target`.

    `figure` returns the size (MACs or bytes) of a network. Bisection finds the smallest pruning ratio that reaches the
    target; the channels with the lowest scores are removed. Each layer keeps at least `NARROWEST` channels and the
    share 1 - `max_ratio` of its channels. If `student` is small enough, the copy is not pruned. The other arguments
    have the same meaning as in `prune`. PruningError if the target cannot be reached; the message contains the smallest
    possible size.
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
            f"target {target:,.0f} is out of reach: expected at least {figure(best):,.0f} (same unit), the smallest "
            f"network of this prune step with prune.max_ratio={max_ratio}; set a larger target or prune.max_ratio"
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
    """Return a copy of `student` with as few channels as one prune step to a target size can leave.

    Each layer keeps the share 1 - `max_ratio` of its channels, and at least `NARROWEST` channels. These minimum numbers
    are rounded up to multiples of `round_to`; a layer with fewer channels than the higher multiple keeps all of them.
    """
    groups = rank_channels(student, "l1", 0, None)
    return remove_channels(student, groups, _counts(groups, 1.0, "local", round_to, _limits(groups, max_ratio)))


def prune_to_widths(
    student: Student, widths: Widths, criterion: str = "l2", seed: int = 0, gradients: Gradients | None = None
) -> Student:
    """Return a copy of `student` that is pruned to exactly `widths`; the channels with the lowest scores are removed.

    `criterion` (l1, l2, ...) scores the channels. `seed` is for criterion random; `gradients`, the result of
    `sensitivities`, is for taylor and hessian. PruningError if a layer of `student` has fewer channels than `widths`
    requires, or if layers that lose channels only together would lose different numbers of channels.
    """
    groups = rank_channels(student, criterion, seed, gradients)
    with torch.random.fork_rng(devices=[]):
        target = dict(build_student(student.config, student.n_classes, widths).named_modules())
    kept = [int(target[g.layer].out_channels) // g.sets for g in groups]  # type: ignore[arg-type]
    counts = tuple(g.size - k for g, k in zip(groups, kept, strict=True))
    pruned = remove_channels(student, groups, counts) if min(counts, default=0) >= 0 else student
    if pruned.widths != widths:
        raise PruningError(
            f"{student.widths} cannot be pruned to {widths}: expected no larger widths, and the same decrease for all "
            "layers that lose channels together; use the widths of a pruned copy of this network"
        )
    return pruned


def removed_channels(total: int, ratio: float) -> int:
    """Return how many of `total` channels to remove: `total * ratio`, rounded up; all pruning uses this rule.

    A product within `_ROUNDING` of an integer is rounded to this integer. torch-pruning's own formula,
    `total - int(total * (1 - ratio))`, has no tolerance: at ratio 0.8 it removes 9 of 10 channels, because
    10 * (1 - 0.8) is slightly below 2 in floating point.
    """
    return max(0, math.ceil(total * ratio - _ROUNDING))


def _local_counts(groups: Sequence[Group], ratio: float, round_to: int) -> tuple[int, ...]:
    """Return the number of channels that each group loses with scope local, where all groups lose the share `ratio`.

    The number of channels that remain in a group is rounded to a multiple of `round_to` as in `_counts`. PruningError
    if `ratio` would empty a group.
    """
    smallest = min((g.size for g in groups), default=0)
    if smallest and removed_channels(smallest, ratio) >= smallest:
        raise PruningError(
            f"pruning ratio {ratio} would empty a layer of {smallest} channel(s): expected at least one to remain; "
            "use a smaller ratio, fewer steps or a wider network"
        )
    return _counts(groups, ratio, "local", round_to, [g.size - 1 for g in groups])


def _limits(groups: Sequence[Group], max_ratio: float) -> list[int]:
    """Return the maximum number of channels that each group may lose in one prune step.

    A group keeps at least the share 1 - `max_ratio` of its channels, and at least `NARROWEST` channels; a group with
    fewer channels loses none.
    """
    return [max(0, min(g.size - removed_channels(g.size, 1 - max_ratio), g.size - NARROWEST)) for g in groups]


def _counts(
    groups: Sequence[Group], ratio: float, scope: str, round_to: int, limits: Sequence[int], strict: bool = False
) -> tuple[int, ...]:
    """Return the number of channels that each group loses: at most `limits[i]` for group i.

    `scope` (local, global or isomorphic) selects the groups whose channels are ranked together; the share `ratio` of
    them is removed. If the limits allow fewer removals than `ratio` requires: with `strict`, raise PruningError; else
    remove as many as they allow. Then the number of channels that a pruned group keeps is rounded down to a multiple of
    `round_to`. If the group would lose more than its limit, the number is rounded up instead; a group that has fewer
    channels than the higher multiple keeps all of them.
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
                f"prune.max_ratio allows at most {allowed} in one step: use smaller ratios in more steps"
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
