"""Cost model of a study: the training hours of a trial and of a study, and confidence intervals of shares.

- `trial_hours`: training hours of each stage of a trial, from measured step times
- `until_stopped`: training hours of a trial that each rung stops with a given probability
- `makespan`: hours until several workers have trained all trials of a study
- `wilson`: 95 % confidence interval of a share, such as the share of the samples that fit the limits
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
    """Return the 95 % Wilson score interval (low, high) of a probability, estimated from `hits` hits in `n` samples.

    Wilson 1927, with p = hits / n: (p + z^2/2n +- z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    """
    p, z2 = hits / n, _Z**2
    middle, half = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def trial_hours(
    config: TrialConfig, macs: Sequence[int], clips: tuple[int, int], steps: Sequence[tuple[int, StepTime]]
) -> list[float]:
    """Return the training hours of each stage of a trial with the configuration `config`.

    `macs` holds the MACs of the trial's network in each stage; `clips` is (number of training clips, number of
    validation clips). `steps` holds (MACs, measured times) of one or more networks. Between these networks, times are
    interpolated linearly in MACs. A smaller network has the times of the smallest one, a larger one of the largest.
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
    """The rungs at which a study's scheduler may stop a trial. `bool(rungs)` is False if there are none.

    `scheduler` is a value of `tune/run.py --scheduler`, and `epochs` is the number of dense epochs of a trial.
    """

    def __init__(self, scheduler: str, epochs: int):
        halving = build_rungs(scheduler, epochs)
        self.epochs = sorted(halving.epochs) if halving else []  # epochs of the rungs in the dense phase
        self.after_steps = halving is not None and halving.after_steps  # whether each prune step has a rung
        self.kept = 1 / halving.factor if halving else 1.0  # share of the trials that a rung promotes
        self.dense_epochs = epochs

    def __bool__(self) -> bool:
        return bool(self.epochs) or self.after_steps

    def hours(self, stages: Sequence[float]) -> list[float]:
        """Return the training hours after which a trial reaches each of its rungs, in order.

        `stages` holds the training hours of each stage of the trial. A rung at the end of the last stage is left out,
        because a stop there saves nothing.
        """
        dense = [stages[0] * epoch / self.dense_epochs for epoch in self.epochs]
        return dense + (np.cumsum(stages)[1:-1].tolist() if self.after_steps else [])


def until_stopped(stages: Sequence[float], rungs: Rungs, rng: np.random.Generator) -> float:
    """Return the training hours of a trial that may be stopped early, as one random draw from `rng`.

    Each rung promotes the trial with probability `rungs.kept`, else it stops the trial. `stages` holds the training
    hours of each stage of the trial if it is not stopped.
    """
    for spent in rungs.hours(stages):
        if rng.random() >= rungs.kept:
            return spent
    return sum(stages)


def makespan(hours: Sequence[float], workers: int) -> float:
    """Return the hours until all trials have ended, if `workers` workers train one trial at a time each.

    `hours` holds the duration of each trial. The trials start in this order, each on the worker that is free first.
    """
    free = [0.0] * workers
    for spent in hours:
        heapq.heapreplace(free, free[0] + spent)
    return max(free)


def duration(hours: float) -> str:
    """Return `hours` as text in hours, minutes or seconds, for example "1.5 h" or "20.0 min"."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
