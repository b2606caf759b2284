"""Arithmetic of a study's cost: intervals of shares, hours of a trial, of many trials on several workers.

trial_hours(config, sizes, clips, steps)      of each stage, from measured steps
until_stopped(hours, rungs, 0.5, rng)         of a trial that each rung lets pass with the chance 0.5
makespan(hours, 4)                            until four workers are through
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np

from trainables.config.schema import TrialConfig
from trainables.step_time import StepTime
from tune.search.halving import build_rungs

_Z = 1.96  # of a 95 % interval


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share, Wilson 1927: (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    p, z2 = hits / n, _Z**2
    middle, half = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def trial_hours(
    config: TrialConfig, macs: Sequence[int], clips: tuple[int, int], steps: Sequence[tuple[int, StepTime]]
) -> list[float]:
    """Hours of each stage of a trial whose networks have `macs`, on `clips` for training and validation.

    Between the measured networks (MACs, times) time is taken to be linear in MACs, outside of them constant.
    """
    known = sorted(steps, key=lambda step: step[0])
    measured = [m for m, _ in known]
    hours = []
    for stage, size in enumerate(macs):
        step_s = float(np.interp(size, measured, [t.step_s for _, t in known]))
        validation_s = float(np.interp(size, measured, [t.validation_s for _, t in known]))
        epochs = config.prune.epochs if stage else config.train.epochs
        hours.append(epochs * (config.train.epoch_steps(clips[0]) * step_s + clips[1] * validation_s) / 3600)
    return hours


class Rungs:
    """Where a study's scheduler stops trials early."""

    def __init__(self, scheduler: str, epochs: int):
        halving = build_rungs(scheduler, epochs)
        self.epochs = sorted(halving.epochs) if halving else []
        self.after_steps = halving is not None and halving.after_steps
        self.kept = 1 / halving.factor if halving else 1.0  # share of the trials that a rung lets pass
        self.dense_epochs = epochs

    def __bool__(self) -> bool:
        return bool(self.epochs) or self.after_steps

    def hours(self, stages: Sequence[float]) -> list[float]:
        """After how many hours a trial with such stages comes to each rung but its own end."""
        dense = [stages[0] * epoch / self.dense_epochs for epoch in self.epochs]
        return dense + (np.cumsum(stages)[1:-1].tolist() if self.after_steps else [])


def until_stopped(stages: Sequence[float], rungs: Rungs, rng: np.random.Generator) -> float:
    """Hours that a trial takes when each rung lets it pass by lot."""
    for spent in rungs.hours(stages):
        if rng.random() >= rungs.kept:
            return spent
    return sum(stages)


def makespan(hours: Sequence[float], workers: int) -> float:
    """Until the last trial ends, each starting on the first worker that is free."""
    free = [0.0] * workers
    for spent in hours:
        heapq.heapreplace(free, free[0] + spent)
    return max(free)


def duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
