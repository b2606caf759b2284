"""The pruning plan: the configuration of progressive pruning, and how much each prune step removes.

    PruneConfig(ratios=(0.3, 0.3))                                  2 steps: each removes 0.3 of the remaining channels
    PruneConfig(n_steps=3, total_ratio=0.6, step_schedule="cubic")  3 steps: together they remove 0.6 of the channels
    PruneConfig(n_steps=3, target_macs=8e6)                         3 steps: the last network has at most 8e6 MACs

The schedule (`step_schedule`) distributes the total share s over R steps. The first k steps together remove the share
s_k of the original amount:

    constant    s_k = 1 - (1 - s)^(k / R)            each step removes the same share of the remaining amount
    linear      s_k = s k / R                        each step removes the same amount
    cubic       s_k = s (1 - (1 - k / R)^3)          the first steps remove most (Zhu and Gupta 2017, "To prune, or
                                                     not to prune")

The amount is a number of channels or, with `target_macs` or `target_bytes`, the size in MACs or bytes. With a target, s
is 1 - target / dense, where `dense` is the size before step 1. Step k makes the largest network whose size is at most
(1 - s_k) * dense.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import torch

from ascmodels.compress.groups import CRITERIA, DATA_CRITERIA, Gradients, PruningError
from ascmodels.compress.pruning import Ties, check_ratio, prune, prune_below, smallest_step, ties
from ascmodels.nessi import get_deployed_size, layer_rates, size_at, size_bytes
from ascmodels.students import Student, StudentConfig, Widths, build_student

SCHEDULES = ("constant", "linear", "cubic")
SCOPES = ("local", "global", "isomorphic")
MAX_STEPS = 100
LR_MODES = ("finetune", "rewind")
GOALS = ("ratios", "total_ratio", "target_macs", "target_bytes")


@dataclass(frozen=True)
class PruneConfig:
    """Configuration of progressive pruning: a number of prune steps, each followed by retraining.

    At most one of `ratios`, `total_ratio`, `target_macs` and `target_bytes` may be set; it determines how much is
    removed. If none is set, nothing is pruned.
    """

    ratios: tuple[float, ...] = ()  # share of the remaining channels that each prune step removes; empty: not set
    n_steps: int | None = None  # prune steps to total_ratio, target_macs or target_bytes (at least 1); null: not set
    total_ratio: float | None = None  # share of channels that all n_steps together remove (0 to 1); null: not set
    target_macs: float | None = None  # maximum MACs of the deployed network after the last step; null: not set
    target_bytes: float | None = None  # maximum parameter bytes after the last step, at limits.precision; null: not set
    step_schedule: str = "constant"  # amount per step: constant (same share of rest), linear (equal), cubic (falling)
    criterion: str = "l2"  # channel importance: l1, l2, lamp, fpgm, random, bn_scale, taylor or hessian
    scope: str = "local"  # channels are ranked per layer (local), all together (global), per kind of layer (isomorphic)
    max_ratio: float = 0.8  # largest share of a layer that a step removes (0 to 1; scope=local: only with a target)
    round_to: int = 1  # channels of a pruned layer are kept in multiples of this number (at least 1)
    importance_clips: int = 64  # number of training clips for the gradients of taylor and hessian (at least 1)
    epochs: int = 3  # epochs of retraining after each prune step (at least 1)
    lr: float = 1e-3  # peak learning rate of retraining with lr_mode finetune (above 0)
    lr_mode: str = "finetune"  # retraining: finetune (new schedule with peak lr) or rewind (end of the dense schedule)
    retrain_kd: bool = True  # retrain with distillation: true or false (cross-entropy only)

    def __post_init__(self):
        object.__setattr__(self, "ratios", tuple(float(r) for r in self.ratios))
        if len(self.ratios) > MAX_STEPS:
            raise ValueError(f"prune.ratios has {len(self.ratios)} entries: expected at most {MAX_STEPS}; remove some")
        for i, ratio in enumerate(self.ratios):
            check_ratio(ratio, f"prune.ratios[{i}]")
        if self.total_ratio is not None:
            check_ratio(self.total_ratio, "prune.total_ratio")
        for name, choices in (
            ("step_schedule", SCHEDULES),
            ("criterion", [*CRITERIA, *DATA_CRITERIA]),
            ("scope", SCOPES),
            ("lr_mode", LR_MODES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"prune.{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        if self.round_to < 1 or self.epochs < 1 or not self.lr > 0:
            raise ValueError(
                f"prune.round_to={self.round_to}, prune.epochs={self.epochs}, prune.lr={self.lr}: "
                "expected round_to and epochs to be integers >= 1, and lr to be above 0; change the invalid key"
            )
        if self.importance_clips < 1 or not 0 < self.max_ratio < 1:
            raise ValueError(
                f"prune.importance_clips={self.importance_clips}, prune.max_ratio={self.max_ratio}: "
                "expected importance_clips >= 1, and max_ratio above 0 and below 1; change the invalid key"
            )
        self._check_goal()

    def _check_goal(self) -> None:
        given = [name for name in GOALS if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            values = " and ".join(str(getattr(self, name)) for name in given)
            raise ValueError(
                f"prune.{' and prune.'.join(given)} exclude each other, but have the values {values}: "
                "set only one of them"
            )
        if given in ([], ["ratios"]):
            if self.n_steps is not None:
                found = f"prune.ratios={self.ratios} is set: replace it by" if given else "none of them is set: set"
                raise ValueError(
                    f"prune.n_steps={self.n_steps} needs prune.total_ratio, prune.target_macs or prune.target_bytes, "
                    f"but {found} one of them, or remove prune.n_steps"
                )
            return
        if self.n_steps is None or not 1 <= self.n_steps <= MAX_STEPS:
            raise ValueError(
                f"prune.n_steps={self.n_steps}: expected an integer from 1 to {MAX_STEPS}, because prune.{given[0]} is "
                "set; set prune.n_steps to the number of prune steps"
            )
        if self.goal and not self.goal[1] > 0:
            raise ValueError(f"prune.target_{self.goal[0]}={self.goal[1]}: expected a number above 0")

    @property
    def rounds(self) -> int:
        """The number of prune steps (0: no pruning)."""
        return len(self.ratios) or self.n_steps or 0

    @property
    def exact(self) -> bool:
        """Whether the sizes of the pruned networks do not depend on the weights, so are known before training."""
        return self.scope == "local"

    @property
    def goal(self) -> tuple[str, float] | None:
        """The target size as ("macs" or "bytes", value); None if neither target_macs nor target_bytes is set."""
        if self.target_macs is not None:
            return "macs", self.target_macs
        return None if self.target_bytes is None else ("bytes", self.target_bytes)

    @property
    def step_ratios(self) -> tuple[float, ...]:
        """The share of the remaining channels that each prune step removes.

        It is empty if a target size is set or nothing is pruned.
        """
        if self.total_ratio is None:
            return self.ratios
        removed = (0.0, *shares(self.step_schedule, self.total_ratio, self.rounds))
        return tuple(1 - (1 - removed[k]) / (1 - removed[k - 1]) for k in range(1, len(removed)))

    def targets(self, dense: float) -> tuple[float, ...]:
        """Return the maximum size after each prune step, in MACs (with target_macs) or bytes (with target_bytes).

        One of these two keys must be set. `dense` is the size before the first step, in the same unit. PruningError if
        the target is not smaller than `dense`.
        """
        assert self.goal is not None
        name, target = self.goal
        if target >= dense:
            raise PruningError(
                f"prune.target_{name}={target:,.0f}: expected less than {dense:,.0f}, the size before pruning; reduce "
                "the target"
            )
        intermediate = shares(self.step_schedule, 1 - target / dense, self.rounds)[:-1]
        return (*(dense * (1 - s) for s in intermediate), target)


def shares(schedule: str, total: float, n_steps: int) -> tuple[float, ...]:
    """Return the share that is removed in total after each of `n_steps` steps: of the channels, or of MACs or bytes.

    It is a share of the number before pruning. `schedule` is constant, linear or cubic; its formula is in this module's
    docstring. The last share is `total`.
    """
    parts = [k / n_steps for k in range(1, n_steps + 1)]
    if schedule == "constant":
        return tuple(1 - (1 - total) ** p for p in parts)
    return tuple(total * (p if schedule == "linear" else 1 - (1 - p) ** 3) for p in parts)


def take_step(
    student: Student,
    config: PruneConfig,
    step: int,
    dense: tuple[int, int],
    n_mels: int,
    frames: int,
    precision: str = "fp16",
    seed: int = 0,
    gradients: Gradients | None = None,
) -> Student:
    """Return a pruned copy of `student`: the network after prune step number `step` (1, 2, ...) of `config`.

    `student` is the network before this step, and `dense` the (MACs, parameters) of the deployed network before step 1.
    For a target, MACs are counted for one input of `n_mels` mel bins and `frames` frames, and bytes at `precision`
    (fp32, fp16 or int8). `seed` is for criterion random. `gradients`, the result of `sensitivities`, is for taylor and
    hessian. PruningError if the step is not possible.
    """
    options = {"round_to": config.round_to, "seed": seed, "scope": config.scope, "max_ratio": config.max_ratio}
    if config.goal is None:
        ratio = config.step_ratios[step - 1]
        return prune(student, ratio, config.criterion, gradients=gradients, **options)  # type: ignore[arg-type]
    name = config.goal[0]

    def figure(network: Student) -> float:
        return _figure(name, get_deployed_size(network, n_mels, frames), precision)

    target = config.targets(_figure(name, dense, precision))[step - 1]
    try:
        return prune_below(student, target, figure, config.criterion, gradients=gradients, **options)  # type: ignore[arg-type]
    except PruningError as error:
        where = f"prune step {step} of {config.rounds}, prune.target_{name}={config.goal[1]:,.0f}"
        raise PruningError(f"{where}: {error}") from error


def plan_sizes(
    config: StudentConfig,
    prune_config: PruneConfig,
    n_mels: int,
    frames: int,
    precision: str = "fp16",
    widths: Widths | None = None,
) -> list[tuple[int, int]]:
    """Return (MACs, parameters) of the deployed network before pruning and after each prune step, without training.

    MACs are counted for one input of `n_mels` mel bins and `frames` frames; a target in bytes is for parameters at
    `precision` (fp32, fp16 or int8). `widths` are the channels per layer before pruning (None: those of `config`).
    With another scope than local, sizes after pruning are estimates. PruningError if a step is not possible.
    """
    return [
        (macs, params) for macs, params, _ in plan_networks(config, prune_config, n_mels, frames, precision, widths)
    ]


def plan_networks(
    config: StudentConfig,
    prune_config: PruneConfig,
    n_mels: int,
    frames: int,
    precision: str = "fp16",
    widths: Widths | None = None,
) -> list[tuple[int, int, Widths]]:
    """Return (MACs, parameters, widths) before pruning and after each prune step, without training.

    MACs and parameters are those of the deployed network, for one input of `n_mels` mel bins and `frames` frames. A
    target in bytes is for parameters at `precision` (fp32, fp16 or int8). Before pruning, the network has the given
    `widths` (channels per layer; None: the unpruned widths of `config`). With scope local the result does not depend on
    the weights, so it is exact for the trained network. With scope global or isomorphic it is an *estimate* from random
    weights. PruningError if a step is not possible; for a target, the message contains the smallest possible size.
    """
    # without a target, the widths follow from the ratios. Not for TF-SepNet: its ties change as layers become narrow
    if prune_config.exact and prune_config.goal is None and config.family == "mobile":
        stages = [widths or _deployed(config).widths]
        tied = config  # equal for all branches (so cached once), except for an identity branch in the stem
        if not config.rep_stem:
            tied = replace(config, branches=(), stage_branches=(), activation="relu")
        for ratio in prune_config.step_ratios:
            stages.append(_ties(tied, stages[0]).narrowed(stages[-1], ratio, prune_config.round_to))
        return [(*_deployed_size(config, w, n_mels, frames), w) for w in stages]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = build_student(config, widths=widths)
    networks = [student]
    dense = get_deployed_size(student, n_mels, frames)
    goal, by_weights = prune_config.goal, replace(prune_config, criterion="l1")
    if goal is not None:
        prune_config.targets(_figure(goal[0], dense, precision))  # PruningError if the target is not smaller
    try:
        for step in range(1, prune_config.rounds + 1):
            networks.append(take_step(networks[-1], by_weights, step, dense, n_mels, frames, precision))
    except PruningError as error:
        if goal is None:
            raise
        for _ in range(prune_config.rounds):
            student = smallest_step(student, prune_config.round_to, prune_config.max_ratio)
        least = _figure(goal[0], get_deployed_size(student, n_mels, frames), precision)
        raise PruningError(
            f"{error}. The smallest size after {prune_config.rounds} step(s) is {least:,.0f}: set a larger target, or "
            "a larger prune.n_steps"
        ) from error
    return [(*get_deployed_size(network, n_mels, frames), network.widths) for network in networks]


@lru_cache(maxsize=4096)
def _deployed_size(config: StudentConfig, widths: Widths, n_mels: int, frames: int) -> tuple[int, int]:
    return size_at(_deployed(config, widths), _rates(config, n_mels, frames))


@lru_cache(maxsize=512)
def _rates(config: StudentConfig, n_mels: int, frames: int) -> dict[str, Fraction]:
    return layer_rates(_deployed(config), (1, 1, n_mels, frames))


def _deployed(config: StudentConfig, widths: Widths | None = None) -> Student:
    with torch.random.fork_rng(devices=[]):
        return build_student(config, widths=widths, fused=True)


@lru_cache(maxsize=512)
def _ties(config: StudentConfig, widths: Widths) -> Ties:
    with torch.random.fork_rng(devices=[]):
        return ties(build_student(config, widths=widths))


def _figure(name: str, size: tuple[int, int], precision: str) -> float:
    """Return the number that the pruning target `name` limits, for a deployed network of `size` (MACs, parameters).

    For `name` "macs", these are the MACs; for "bytes", the bytes of the parameters at `precision`.
    """
    return size[0] if name == "macs" else size_bytes(size[1], precision)
