"""Configuration of progressive pruning (`PruneConfig`), and how much each prune step removes.

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

from dataclasses import dataclass

CRITERIA = ("l1", "l2", "lamp", "fpgm", "random", "bn_scale")  # that need only the weights
DATA_CRITERIA = ("taylor", "hessian")  # that also need gradients of the loss
SCHEDULES = ("constant", "linear", "cubic")
SCOPES = ("local", "global", "isomorphic")
MAX_STEPS = 100
LR_MODES = ("finetune", "rewind")
GOALS = ("ratios", "total_ratio", "target_macs", "target_bytes")


class PruningError(ValueError):
    """A pruning ratio or target is invalid, or a network cannot be pruned as requested."""


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


def check_ratio(ratio: float, name: str) -> None:
    """Raise PruningError unless `ratio` is above 0 and below 1; `name` is the name of the ratio in the message."""
    if not 0 < ratio < 1:
        raise PruningError(
            f"{name}={ratio}: expected a share of channels above 0 and below 1 (1 would empty every layer); change it"
        )
