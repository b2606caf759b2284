"""Learning-rate schedules: cosine with linear warm-up, and the schedule of the JKU recipes."""

import math
from collections.abc import Callable

from trainables.config.train import TrainConfig


def learning_rate(step: int, n_steps: int, peak: float, warmup: float) -> float:
    """Return the learning rate of `step`: a linear rise over `warmup * n_steps` steps, then a cosine to 0."""
    rise = warmup * n_steps
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, n_steps - rise)))


def jku_factor(step: int, rise: float, start: float, length: float, last: float) -> float:
    """Return the learning rate of `step` in the JKU recipes, divided by the peak learning rate:

        exp(-5 (1 - step / rise)^2) while rising;  1 - (1 - last) * (step - start) / length while falling

    In steps in which it rises and falls, it is the product of both. This is `exp_warmup_linear_down` of PaSST (Koutini
    et al. 2022) and of CPJKU's DCASE 2022 and 2023 code; the rise is from Laine and Aila 2017. That code counts in
    epochs, this function in steps; as in that code, the rise begins at half a unit.
    """
    up = math.exp(-5 * (1 - max(step, 0.5) / rise) ** 2) if step < rise else 1.0
    fallen = min(max(step - start, 0) / length, 1.0) if length else float(step > start)
    return up * (1 - (1 - last) * fallen)


def schedule(config: TrainConfig, n_steps: int, peak: float | None = None) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, for a training of `n_steps` steps.

    Without `peak` it is for dense training. With `peak` it is for retraining, whose warm-up is always the share
    `warmup` of the steps. Raise ValueError if `config.warmup_steps` is not below `n_steps`.
    """
    warmup = config.warmup
    if peak is None and config.warmup_steps is not None:
        if config.warmup_steps >= n_steps:
            raise ValueError(
                f"train.warmup_steps={config.warmup_steps}: the training has {n_steps} steps, so the learning "
                "rate would never reach its peak; lower train.warmup_steps, or train for more epochs"
            )
        warmup = config.warmup_steps / n_steps
    top = config.lr if peak is None else peak
    if config.schedule == "cosine":
        return lambda step: learning_rate(step, n_steps, top, warmup)
    shape = (warmup * n_steps, config.rampdown_start * n_steps, config.rampdown * n_steps, config.last_lr)
    return lambda step: top * jku_factor(step, *shape)
