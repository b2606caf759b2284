"""Configuration of knowledge distillation: `DistillConfig`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MODES = ("offline", "online")

ENSEMBLES = ("logits", "probabilities", "greedy")
N_CLASSES = 10  # scenes
REDUCTIONS = ("elements", "batch")  # of the KL divergence: mean over clips and classes, or over clips


@dataclass(frozen=True)
class DistillConfig:
    """Configuration of the distillation of one teacher, or of an ensemble of teachers, into the student."""

    kd_alpha: float = 0.5  # weight of the cross-entropy with the labels (0 to 1); weight of the teacher: 1 - kd_alpha
    kd_temp: float = 4.0  # temperature T of the softmax of the student and of the teacher in the loss (above 0)
    teacher_ckpts: tuple[str, ...] = ()  # folders or logits files of teachers; empty: fine-tune one (keys teacher.*)
    ensemble: str = "logits"  # logits or probabilities: their mean; greedy: weighted mean, weights chosen on validation
    teacher_weights: tuple[float, ...] = ()  # weights of teacher_ckpts, in the same order (0 or more); empty: all equal
    mode: str = "offline"  # teacher logits: offline (cached, of unaugmented clips) or online (of each augmented batch)
    feature_weight: float = 0.0  # weight of the feature loss, Tung and Mori 2019 (0: off; needs mode=online, 1 teacher)

    def __post_init__(self):
        object.__setattr__(self, "teacher_ckpts", tuple(self.teacher_ckpts))
        object.__setattr__(self, "teacher_weights", tuple(self.teacher_weights))
        check_ensemble(self.ensemble, self.teacher_weights, len(self.teacher_ckpts))
        if self.teacher_weights and not self.teacher_ckpts:
            raise ValueError(
                f"distill.teacher_weights={list(self.teacher_weights)}: distill.teacher_ckpts names no teacher to weigh"
                "; name one teacher for each weight, or remove the weights"
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
                f"distill.mode={self.mode} and {len(self.teacher_ckpts)} teachers in distill.teacher_ckpts; change "
                "these keys, or set distill.feature_weight to 0"
            )

    @property
    def taught(self) -> bool:
        """True if the student learns from a teacher.

        It learns from the teacher's logits if `kd_alpha` is below 1, from its features if `feature_weight` is above 0.
        """
        return self.kd_alpha < 1 or self.feature_weight > 0


def alpha_of(weight: float, reduction: str) -> float:
    """Return the `kd_alpha` of the loss `weight * CE + (1 - weight) * T^2 * KL`, up to a constant factor.

    `reduction` is "elements" if the KL divergence in this loss is averaged over clips and classes (`mean` in PyTorch),
    and "batch" if it is averaged over clips (`batchmean`). Our KL is averaged over clips, so it is `N_CLASSES` times
    the former. AdamW divides by the size of the gradient, so the constant factor has no effect.
    """
    return weight / (weight + (1 - weight) / (N_CLASSES if reduction == "elements" else 1))


def described(config: DistillConfig) -> str:
    """Return a sentence on the loss of `config`, with the weight that other code bases call lambda."""
    alpha = config.kd_alpha
    weight = alpha / (alpha + N_CLASSES * (1 - alpha))
    return (
        f"distillation: kd_alpha={alpha:.3g} (weight of the labels), kd_temp={config.kd_temp:.3g}; with a KL that is "
        f"averaged over clips and classes, as in other code bases, this is lambda={weight:.3g}"
    )


def check_ensemble(method: str, weights: Sequence[float], n_teachers: int) -> None:
    """Raise ValueError if the ensemble `method` is unknown or the `weights` of the teachers are invalid.

    `method` is logits, probabilities or greedy (`DistillConfig.ensemble`). `weights` may be empty (equal weights).
    Otherwise, `method` must not be greedy, and `weights` must be one number >= 0 for each teacher, not all of them 0.
    If `n_teachers` is 0, no teachers are named yet, and the number of weights is not checked.
    """
    if method not in ENSEMBLES:
        raise ValueError(f"distill.ensemble={method!r}: expected one of {', '.join(ENSEMBLES)}")
    found = f"distill.teacher_weights={list(weights)}"
    if weights and method == "greedy":
        raise ValueError(f"{found}: remove the weights, because distill.ensemble=greedy chooses the weights itself")
    if weights and n_teachers and len(weights) != n_teachers:
        raise ValueError(
            f"{found}: expected {n_teachers}, one for each teacher in distill.teacher_ckpts; add or remove weights"
        )
    if weights and not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise ValueError(f"{found}: expected numbers >= 0, not all of them 0, with a finite sum; correct them")
