"""How far each prune step goes, and everything else that describes progressive pruning. No network is touched here.

    PruneConfig(ratios=(0.3, 0.3))                                  a ratio for each step
    PruneConfig(n_steps=3, total_ratio=0.6, step_schedule="cubic")       0.6 of the channels gone after 3 steps
    PruneConfig(n_steps=3, target_macs=8e6)                         each step to the largest network below its target

Three schedules share out the whole amount s over R steps; s_k is what has gone after step k:

    constant    s_k = 1 - (1 - s)^(k / R)            each step removes the same share of what is left
    linear      s_k = s k / R                        each step removes the same amount
    cubic       s_k = s (1 - (1 - k / R)^3)          Zhu and Gupta 2017, "To prune, or not to prune": much first

For a target, s = 1 - target / dense size, counted in MACs or bytes instead of channels.
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
LR_MODES = ("finetune", "rewind")
GOALS = ("ratios", "total_ratio", "target_macs", "target_bytes")


@dataclass(frozen=True)
class PruneConfig:
    """Progressive pruning. At most one of `ratios`, `total_ratio`, `target_macs` and `target_bytes` says how far."""

    ratios: tuple[float, ...] = ()  # share of the channels left that each step removes, rounded up; none: no pruning
    n_steps: int | None = None  # prune steps on the way to total_ratio or a target
    total_ratio: float | None = None  # share of the channels removed after all steps
    target_macs: float | None = None  # of the last network as deployed
    target_bytes: float | None = None  # the same for parameter memory at limits.precision
    step_schedule: str = "constant"  # constant, linear or cubic, for total_ratio and targets
    criterion: str = "l2"  # importance of a channel
    scope: str = "local"  # channels compete within a layer, among all, or among layers of one kind
    max_ratio: float = 0.8  # most that a step takes of one layer, except by local ratios, which take the same of all
    round_to: int = 1  # channels are kept in multiples of this
    importance_clips: int = 64  # training clips whose gradients rank the channels (taylor, hessian)
    epochs: int = 3  # of retraining after each step
    lr: float = 1e-3  # peak learning rate of retraining
    lr_mode: str = "finetune"  # own schedule up to prune.lr; rewind: the end of the dense one (Renda et al. 2020)
    retrain_kd: bool = True  # retrain with distillation; False: cross-entropy alone

    def __post_init__(self):
        object.__setattr__(self, "ratios", tuple(float(r) for r in self.ratios))
        for i, ratio in enumerate(self.ratios):
            check_ratio(ratio, f"prune.ratios[{i}]")
        if self.total_ratio is not None:
            check_ratio(self.total_ratio, "prune.total_ratio")
        for name, known in (
            ("step_schedule", SCHEDULES),
            ("criterion", [*CRITERIA, *DATA_CRITERIA]),
            ("scope", SCOPES),
            ("lr_mode", LR_MODES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"prune.{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        if self.round_to < 1 or self.epochs < 1 or not self.lr > 0:
            raise ValueError(
                f"prune.round_to={self.round_to}, prune.epochs={self.epochs}, prune.lr={self.lr}: "
                "expected whole numbers >= 1 and a learning rate above 0"
            )
        if self.importance_clips < 1 or not 0 < self.max_ratio < 1:
            raise ValueError(
                f"prune.importance_clips={self.importance_clips}, prune.max_ratio={self.max_ratio}: "
                "expected at least one clip and a share above 0 and below 1"
            )
        self._check_goal()

    def _check_goal(self) -> None:
        given = [name for name in GOALS if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise ValueError(f"prune.{' and prune.'.join(given)} exclude one another: give one of them")
        if given in ([], ["ratios"]):
            if self.n_steps is not None:
                raise ValueError(
                    f"prune.n_steps={self.n_steps} goes with prune.total_ratio, prune.target_macs or "
                    f"prune.target_bytes, {'not with prune.ratios' if given else 'and none of them is given'}"
                )
            return
        if self.n_steps is None or self.n_steps < 1:
            raise ValueError(f"prune.n_steps={self.n_steps}: prune.{given[0]} needs a number of steps, 1 at least")
        if self.goal and not self.goal[1] > 0:
            raise ValueError(f"prune.target_{self.goal[0]}={self.goal[1]}: expected a number above 0")

    @property
    def rounds(self) -> int:
        """The number of prune steps; 0: no pruning."""
        return len(self.ratios) or self.n_steps or 0

    @property
    def exact(self) -> bool:
        """Whether the sizes follow from the schedule alone, whatever the weights."""
        return self.scope == "local"

    @property
    def goal(self) -> tuple[str, float] | None:
        """("macs" or "bytes", target), where the steps aim at a size."""
        if self.target_macs is not None:
            return "macs", self.target_macs
        return None if self.target_bytes is None else ("bytes", self.target_bytes)

    @property
    def step_ratios(self) -> tuple[float, ...]:
        """Share of the channels left that each step removes; empty where a target decides it."""
        if self.total_ratio is None:
            return self.ratios
        gone = (0.0, *shares(self.step_schedule, self.total_ratio, self.rounds))
        return tuple(1 - (1 - gone[k]) / (1 - gone[k - 1]) for k in range(1, len(gone)))

    def targets(self, dense: float) -> tuple[float, ...]:
        """The size that each step must not exceed, for a network that starts with `dense` MACs or bytes."""
        assert self.goal is not None
        name, target = self.goal
        if target >= dense:
            raise PruningError(f"prune.target_{name}={target:,.0f} is no target: the dense network has {dense:,.0f}")
        on_the_way = shares(self.step_schedule, 1 - target / dense, self.rounds)[:-1]
        return (*(dense * (1 - s) for s in on_the_way), target)


def shares(schedule: str, total: float, n_steps: int) -> tuple[float, ...]:
    """The share of the original that has gone after each of `n_steps` steps; `total` after the last."""
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
    """The network after prune step `step` (1, 2, ...) of `config`; `dense` is the first one's (MACs, params)."""
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
        raise PruningError(f"prune step {step} of {config.rounds} towards prune.target_{name}: {error}") from error


def schedule_sizes(
    config: StudentConfig,
    prune_config: PruneConfig,
    n_mels: int,
    frames: int,
    precision: str = "fp16",
    widths: Widths | None = None,
) -> list[tuple[int, int]]:
    """(MACs, params) as deployed of the first network (dense, or of `widths`) and after each prune step, untrained;
    see `schedule_networks`."""
    return [
        (macs, params) for macs, params, _ in schedule_networks(config, prune_config, n_mels, frames, precision, widths)
    ]


def schedule_networks(
    config: StudentConfig,
    prune_config: PruneConfig,
    n_mels: int,
    frames: int,
    precision: str = "fp16",
    widths: Widths | None = None,
) -> list[tuple[int, int, Widths]]:
    """MACs, params and widths of the first network (dense, or of `widths`) and after each prune step, untrained.

    Local pruning makes the widths independent of the weights, so these are the trained trial's own. Global and
    isomorphic pruning do not (`PruneConfig.exact`): there they are an *estimate*, of a network with fresh weights.
    PruningError for a schedule that cannot be met; for a target it names what can be reached.
    """
    # widths follow from the ratios: nothing is cut. TF-SepNet's layers are tied anew as they become narrow
    if prune_config.exact and prune_config.goal is None and config.family == "mobile":
        stages = [widths or _deployed(config).widths]
        tied = config  # the branches of one layer are tied whichever they are, but for an identity over the stem
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
        prune_config.targets(_figure(goal[0], dense, precision))  # refuses one that is no smaller
    try:
        for step in range(1, prune_config.rounds + 1):
            networks.append(take_step(networks[-1], by_weights, step, dense, n_mels, frames, precision))
    except PruningError as error:
        if goal is None:
            raise
        for _ in range(prune_config.rounds):
            student = smallest_step(student, prune_config.round_to, prune_config.max_ratio)
        least = _figure(goal[0], get_deployed_size(student, n_mels, frames), precision)
        raise PruningError(f"{error}; {prune_config.rounds} such step(s) reach {least:,.0f} at least") from error
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
    """MACs or bytes of a (MACs, params) pair."""
    return size[0] if name == "macs" else size_bytes(size[1], precision)
