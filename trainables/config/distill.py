"""Configuration of knowledge distillation: `DistillConfig`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MODES = ("offline", "online")

ENSEMBLES = ("logits", "probabilities", "greedy")


@dataclass(frozen=True)
class DistillConfig:
    """Distillation of an ensemble of teachers into the student."""

    kd_alpha: float = 0.5  # weight of the hard label; 1: no teacher takes part
    kd_temp: float = 4.0  # temperature T
    teacher_ckpts: tuple[str, ...] = ()  # teacher folders or logits files; none: one is fine-tuned as `teacher` says
    ensemble: str = "logits"  # mean of the teachers' logits or probabilities, or greedy: weights chosen on validation
    teacher_weights: tuple[float, ...] = ()  # one a teacher, in that order; none: equal
    mode: str = "offline"  # cached logits of the plain clips; online: the teachers hear each batch as it is augmented
    feature_weight: float = 0.0  # of the similarity loss on one teacher's and the student's features; online only

    def __post_init__(self):
        object.__setattr__(self, "teacher_ckpts", tuple(self.teacher_ckpts))
        object.__setattr__(self, "teacher_weights", tuple(self.teacher_weights))
        check_ensemble(self.ensemble, self.teacher_weights, len(self.teacher_ckpts))
        if self.teacher_weights and not self.teacher_ckpts:
            raise ValueError(
                f"distill.teacher_weights={list(self.teacher_weights)}: distill.teacher_ckpts names no teacher to weigh"
            )
        if not 0 <= self.kd_alpha <= 1:
            raise ValueError(f"distill.kd_alpha={self.kd_alpha}: expected a weight in [0, 1]")
        if not 0 < self.kd_temp < math.inf:
            raise ValueError(f"distill.kd_temp={self.kd_temp}: expected a finite temperature above 0")
        if self.mode not in MODES:
            raise ValueError(f"distill.mode={self.mode!r}: expected one of {', '.join(MODES)}")
        if not 0 <= self.feature_weight < math.inf:
            raise ValueError(f"distill.feature_weight={self.feature_weight}: expected a finite number >= 0")
        if self.feature_weight and (self.mode != "online" or len(self.teacher_ckpts) > 1):
            raise ValueError(
                f"distill.feature_weight={self.feature_weight} needs distill.mode=online and one teacher; found "
                f"distill.mode={self.mode} and {len(self.teacher_ckpts)} teachers in distill.teacher_ckpts"
            )

    @property
    def taught(self) -> bool:
        """Whether a teacher takes part."""
        return self.kd_alpha < 1 or self.feature_weight > 0


def check_ensemble(method: str, weights: Sequence[float], n_teachers: int) -> None:
    """ValueError for an unknown method, or weights that are none of `n_teachers` (0: not known yet)."""
    if method not in ENSEMBLES:
        raise ValueError(f"distill.ensemble={method!r}: expected one of {', '.join(ENSEMBLES)}")
    told = f"distill.teacher_weights={list(weights)}"
    if weights and method == "greedy":
        raise ValueError(f"{told}: distill.ensemble=greedy chooses the weights itself")
    if weights and n_teachers and len(weights) != n_teachers:
        raise ValueError(f"{told}: expected {n_teachers}, one for each teacher")
    if weights and not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise ValueError(f"{told}: expected numbers >= 0, not all of them 0")
