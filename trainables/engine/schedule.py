"""Learning-rate schedules: `cosine` (cosine decay after a linear warm-up) and `jku` (the schedule of PaSST)."""

import math
from collections.abc import Callable

from trainables.config.train import TrainConfig


def learning_rate(step: int, n_steps: int, peak: float, warmup: float) -> float:
    """Return the learning rate of the `cosine` schedule at optimiser step `step` (from 0) of `n_steps` steps.

    The learning rate rises linearly to `peak` in the first `warmup * n_steps` steps, and then falls to 0 along a half
    cosine. `warmup` is a share in [0, 1).
    """
    rise = warmup * n_steps
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, n_steps - rise)))


def jku_factor(step: int, rise: float, start: float, length: float, last: float) -> float:
    """Return the learning rate of the `jku` schedule at step `step` (from 0), divided by the peak learning rate.

    The result is the product of two factors:

        exp(-5 (1 - step / rise)^2)                 in the first `rise` steps; 1 afterwards
        1 - (1 - last) * (step - start) / length    in the `length` steps after step `start`; `last` afterwards

    `rise`, `start` and `length` are numbers of steps. Before step `start`, the second factor is 1. `last` is the final
    learning rate divided by the peak.

    This is `exp_warmup_linear_down` of PaSST (Koutini et al. 2022) and of CP-JKU's DCASE 2022 and 2023 code; the rise
    is from Laine and Aila 2017. The original code counts epochs, and this function counts steps. The original replaces
    epoch 0 by 0.5, and this function replaces step 0 by 0.5.
    """
    up = math.exp(-5 * (1 - max(step, 0.5) / rise) ** 2) if step < rise else 1.0
    fallen = min(max(step - start, 0) / length, 1.0) if length else float(step > start)
    return up * (1 - (1 - last) * fallen)


def schedule(config: TrainConfig, n_steps: int, peak: float | None = None) -> Callable[[int], float]:
    """Return a function from the optimiser step (0 to `n_steps` - 1) to the learning rate of `config.schedule`.

    If `peak` is None, the schedule is that of dense training. The largest learning rate is then `config.lr`, and the
    warm-up has `config.warmup_steps` steps, but at most the share `config.warmup_cap` of `n_steps` (None: the share
    `config.warmup` of `n_steps`).

    Otherwise the schedule is for a later training (after a prune step, or for quantisation). The largest learning rate
    is then `peak`, and the warm-up has the share `config.warmup` of `n_steps`.

    Raise ValueError if `peak` is None and the warm-up has `n_steps` or more steps.
    """
    warmup = config.warmup
    if peak is None and config.warmup_steps is not None:
        rise = min(config.warmup_steps, math.floor(config.warmup_cap * n_steps))
        if rise >= n_steps:
            raise ValueError(
                f"train.warmup_steps={config.warmup_steps}: the training has {n_steps} steps, so the learning "
                f"rate would never reach its peak; set a number below {n_steps}, or train for more epochs"
            )
        warmup = rise / n_steps
    top = config.lr if peak is None else peak
    if config.schedule == "cosine":
        return lambda step: learning_rate(step, n_steps, top, warmup)
    shape = (warmup * n_steps, config.rampdown_start * n_steps, config.rampdown * n_steps, config.last_lr)
    return lambda step: top * jku_factor(step, *shape)
