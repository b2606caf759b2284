"""Configuration of knowledge distillation: `DistillConfig`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MODES = ("offline", "online")

ENSEMBLES = ("logits", "probabilities", "greedy")


@dataclass(frozen=True)
class DistillConfig:
    """Distillation of an ensemble of teachers into the student."""

    kd_alpha: float = 0.5  # weight of the cross-entropy with the label, in [0, 1]; 1: no teacher is used
    kd_temp: float = 4.0  # temperature of both softmaxes, above 0
    teacher_ckpts: tuple[str, ...] = ()  # teacher folders or logits files; empty: one is fine-tuned (keys teacher.*)
    ensemble: str = "logits"  # mean of logits, of probabilities, or greedy: of probabilities, weights from validation
    teacher_weights: tuple[float, ...] = ()  # a weight for each teacher, in the order of teacher_ckpts; empty: equal
    mode: str = "offline"  # offline (cached logits of the clips) or online (teachers predict each augmented batch)
    feature_weight: float = 0.0  # weight of pre-classifier feature similarity (Tung, Mori 2019); mode=online, 1 teacher

    def __post_init__(self):
        object.__setattr__(self, "teacher_ckpts", tuple(self.teacher_ckpts))
        object.__setattr__(self, "teacher_weights", tuple(self.teacher_weights))
        check_ensemble(self.ensemble, self.teacher_weights, len(self.teacher_ckpts))
        if self.teacher_weights and not self.teacher_ckpts:
            raise ValueError(
                f"distill.teacher_weights={list(self.teacher_weights)}: distill.teacher_ckpts names no teacher to weigh"
                "; name one teacher for each weight, or drop the weights"
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
        """Whether the student learns from a teacher."""
        return self.kd_alpha < 1 or self.feature_weight > 0


def check_ensemble(method: str, weights: Sequence[float], n_teachers: int) -> None:
    """Raise ValueError for an unknown ensemble `method`, or for `weights` that do not fit the number of teachers.

    `n_teachers` is 0 if this number is not known yet.
    """
    if method not in ENSEMBLES:
        raise ValueError(f"distill.ensemble={method!r}: expected one of {', '.join(ENSEMBLES)}")
    found = f"distill.teacher_weights={list(weights)}"
    if weights and method == "greedy":
        raise ValueError(f"{found}: distill.ensemble=greedy chooses the weights itself; drop the weights")
    if weights and n_teachers and len(weights) != n_teachers:
        raise ValueError(f"{found}: expected {n_teachers}, one for each teacher of distill.teacher_ckpts")
    if weights and not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise ValueError(f"{found}: expected numbers >= 0, not all of them 0")
