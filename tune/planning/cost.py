"""Cost model of a study: confidence intervals of shares, hours of a trial, hours of many trials on several workers.

trial_hours(config, macs, clips, steps)       hours of each stage, from measured step times
until_stopped(hours, rungs, rng)              hours of a trial that each rung promotes with probability 1/factor
makespan(hours, 4)                            hours until four workers have trained all trials
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np

from trainables.config.schema import TrialConfig
from trainables.step_time import StepTime
from tune.search.halving import build_rungs

_Z = 1.96  # standard normal quantile of a 95 % interval


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of the share `hits / n`.

    Wilson 1927: (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    """
    p, z2 = hits / n, _Z**2
    middle, half = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def trial_hours(
    config: TrialConfig, macs: Sequence[int], clips: tuple[int, int], steps: Sequence[tuple[int, StepTime]]
) -> list[float]:
    """Return the hours of each stage of a trial. `macs` holds the MACs of its network in each stage, `clips` the number
    of training clips and of validation clips.

    The time of a step is interpolated linearly in MACs between the measured networks `steps`, and constant outside.
    """
    by_macs = sorted(steps, key=lambda step: step[0])
    measured = [m for m, _ in by_macs]
    hours = []
    for stage, size in enumerate(macs):
        step_s = float(np.interp(size, measured, [t.step_s for _, t in by_macs]))
        validation_s = float(np.interp(size, measured, [t.validation_s for _, t in by_macs]))
        epochs = config.prune.epochs if stage else config.train.epochs
        hours.append(epochs * (config.train.epoch_steps(clips[0]) * step_s + clips[1] * validation_s) / 3600)
    return hours


class Rungs:
    """The rungs at which a study's scheduler may stop a trial."""

    def __init__(self, scheduler: str, epochs: int):
        halving = build_rungs(scheduler, epochs)
        self.epochs = sorted(halving.epochs) if halving else []
        self.after_steps = halving is not None and halving.after_steps
        self.kept = 1 / halving.factor if halving else 1.0  # share of the trials that a rung promotes
        self.dense_epochs = epochs

    def __bool__(self) -> bool:
        return bool(self.epochs) or self.after_steps

    def hours(self, stages: Sequence[float]) -> list[float]:
        """Return the hours after which a trial whose stages take `stages` hours reaches each rung before its end."""
        dense = [stages[0] * epoch / self.dense_epochs for epoch in self.epochs]
        return dense + (np.cumsum(stages)[1:-1].tolist() if self.after_steps else [])


def until_stopped(stages: Sequence[float], rungs: Rungs, rng: np.random.Generator) -> float:
    """Return the hours of a trial whose stages take `stages` hours, if each rung promotes it at random with probability
    `rungs.kept`."""
    for spent in rungs.hours(stages):
        if rng.random() >= rungs.kept:
            return spent
    return sum(stages)


def makespan(hours: Sequence[float], workers: int) -> float:
    """Return the hours until the last trial ends, if each trial starts on the first free worker."""
    free = [0.0] * workers
    for spent in hours:
        heapq.heapreplace(free, free[0] + spent)
    return max(free)


def duration(hours: float) -> str:
    """Return a time as text in hours, minutes or seconds."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
