"""Estimate the cost of a study without training it: `python tune/run.py --space kd_prune --dry-run`.

1. Configurations are sampled from the space at random, and their feasibility is checked as in a search. This shows how
   many samples fit the limits, why other samples do not, and how large the networks are.
2. The smallest, the median and the largest feasible network train a few steps on noise, to measure their step times.
3. The hours of a trial, and of the study on several workers, are computed from the step times.

All results are printed; no file is kept.
"""

import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.manifest import Requested
from ascmodels.config.limits import Limits, size_bytes
from search_spaces import Space
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.device import training_device
from trainables.inputs.clips import read_parts, with_enough_epochs
from trainables.step_time import StepTime, measure
from tune.planning.cost import Rungs, duration, makespan, trial_hours, until_stopped, wilson
from tune.search.feasibility import NetworkGate, stages

DRAWS = 200
SAMPLING_S = 30.0
WORKERS = (1, 2, 4, 8)  # number of GPUs, or of concurrent trials on CPUs

Networks = tuple[tuple[int, int, Any], ...]  # MACs, params and widths of each stage


@dataclass(frozen=True)
class Draws:
    """Random samples of a search space and the results of their feasibility checks."""

    feasible: list[tuple[TrialConfig, Networks]]
    over: list[Networks]  # networks of the samples that can be built, but fit the limits at no stage
    rejected: Counter[str]  # reason -> number of samples
    examples: dict[str, str]  # reason -> one sample

    @property
    def total(self) -> int:
        return len(self.feasible) + self.rejected.total()


def dry_run(
    space: Space, config: TrialConfig, request: Requested, console: Console, n_draws: int = DRAWS
) -> dict[str, Any]:
    """Estimate the cost of the requested study, print the estimate on `console`, and return its figures.

    `config` has the values of all keys; the values sampled from `space` override it. `request` has the options of
    `tune/run.py`, and `n_draws` is the number of random samples.

    The returned dict has these keys, the last four only if `feasible` is not 0:

    - `draws`: the number of samples.
    - `feasible`: the number of samples that fit the limits.
    - `interval`: the 95 % interval (low, high) of the share of feasible samples, from 0 to 1.
    - `rejected`: reason -> number of samples that were rejected for this reason.
    - `networks`: the number of different architectures among the feasible samples.
    - `steps`: (MACs, `StepTime`) of up to three networks: seconds of a training step and of validating one clip.
    - `trial_hours`: the training hours of each feasible sample, if it is not stopped early.
    - `study_hours`: number of workers -> (hours without early stopping, hours with early stopping).
    """
    _, parts = read_parts(config)
    clips = len(parts.train), len(parts.validation)
    config = with_enough_epochs(config, clips[0])
    draws = draw(space, config.flat(), request.seed, n_draws)
    n_fit, (low, high) = len(draws.feasible), wilson(len(draws.feasible), draws.total)
    _print(
        console,
        f"space {space.name}: {n_fit} of {draws.total} random samples fit the limits at one stage or more: "
        f"{n_fit / draws.total:.0%} (95 % interval {low:.0%} to {high:.0%})",
    )
    for reason, count in draws.rejected.most_common():
        _print(console, f"  {count} rejected: {reason}, for example {draws.examples[reason]}")
    found = {"draws": draws.total, "feasible": n_fit, "interval": (low, high), "rejected": dict(draws.rejected)}
    if not draws.feasible:
        _print(console, nothing_fits(draws, config.limits))
        return found
    found["networks"] = len({networks for _, networks in draws.feasible})
    _print(console, f"number of different architectures among the {n_fit} samples that fit: {found['networks']}")
    console.print(size_table(draws.feasible, config.limits.precision))
    try:
        gpu = training_device(config.train).type == "cuda"
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _print(console, machine(config, gpu))
    found["steps"] = steps = measure_some(draws.feasible)
    console.print(step_table(steps, config))
    hours = [trial_hours(c, [macs for macs, *_ in n], clips, steps) for c, n in draws.feasible]
    each = [sum(h) for h in hours]
    _print(
        console,
        f"estimate for a trial on {clips[0]} clips, validated on {clips[1]}, {config.train.epochs} dense epochs and "
        f"{config.prune.epochs} after each prune step: {duration(min(each))} to {duration(max(each))}, mean "
        f"{duration(statistics.mean(each))}",
    )
    found["trial_hours"] = each
    rungs = Rungs(request.scheduler, config.train.epochs)
    found["study_hours"] = print_study_hours(request, hours, rungs, gpu, console)
    return found


def draw(space: Space, base: dict[str, Any], seed: int, n: int = DRAWS, seconds: float = SAMPLING_S) -> Draws:
    """Draw up to `n` random samples from `space` with the random seed `seed`, and check their feasibility.

    After `seconds` seconds, no more samples are drawn, so there may be fewer than `n`, but there is at least one. The
    sampled values override the flat configuration `base`.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    gate = NetworkGate(base)
    draws, until = Draws([], [], Counter(), {}), time.monotonic() + seconds
    while draws.total < n and (draws.total == 0 or time.monotonic() < until):
        values = space.sample(study.ask())
        verdict = gate(values)
        if verdict.reason:
            draws.rejected[verdict.reason] += 1
            draws.examples.setdefault(verdict.reason, verdict.example)
        try:
            config = TrialConfig.from_flat(base | values)
            networks = stages(config.student, config.prune, *_shape(config))
        except ValueError:
            continue  # the reason is counted above
        if verdict.reason:
            draws.over.append(networks)
        else:
            draws.feasible.append((config, networks))
    return draws


def _shape(config: TrialConfig) -> tuple[int, int, str]:
    return config.frontend.n_mels, config.frontend.frames, config.limits.precision


def nothing_fits(draws: Draws, limits: Limits) -> str:
    """Return a message that states why no sample of `draws` is feasible, and what to change.

    Call this function only if no sample is feasible.
    """
    if not draws.over:
        return "no sample can be built and pruned, for the reasons above. Correct the ranges of the search space"
    macs = min(m for networks in draws.over for m, *_ in networks)
    nbytes = min(size_bytes(p, limits.precision) for networks in draws.over for _, p, _ in networks)
    missed = [
        f"the fewest {name} are {least:,.0f}, the limit is {limit:,.0f}"
        for name, least, limit in (("MACs", macs, limits.macs), ("bytes", nbytes, limits.bytes))
        if least > limit
    ]
    missed = missed or ["each of the two limits is met by some network, but no network meets both"]
    return (
        f"no sample fits the limits: {'; '.join(missed)}. Raise the limits (--limits), or allow smaller networks in "
        "the search space"
    )


def size_table(feasible: Sequence[tuple[TrialConfig, Networks]], precision: str) -> Table:
    """Return a table with one row for dense and one for pruned networks: their number, MACs and size in kB.

    MACs and size are given as minimum, median and maximum. `feasible` holds (configuration, networks of its stages) of
    each feasible sample; `precision` (fp32, fp16 or int8) is the precision of the stored parameters.
    """
    table = Table("feasible networks", "number", "M MACs: min, median, max", "kB: min, median, max")
    parts = {"dense": [n[0] for _, n in feasible], "pruned": [x for _, n in feasible for x in n[1:]]}
    for name, networks in parts.items():
        if networks:
            macs = [m / 1e6 for m, *_ in networks]
            kilobytes = [size_bytes(p, precision) / 1e3 for _, p, _ in networks]
            figures = ["  ".join(f"{f(c):.3g}" for f in (min, statistics.median, max)) for c in (macs, kilobytes)]
            table.add_row(name, str(len(networks)), *figures)
    return table


def measure_some(feasible: Sequence[tuple[TrialConfig, Networks]]) -> list[tuple[int, StepTime]]:
    """Measure the step times of three feasible samples: those with the smallest, median and largest dense network.

    `feasible` holds (configuration, networks of its stages) of each feasible sample. Return (MACs of the dense network,
    its step times) of the three samples, smallest first. If some of these networks have equal MACs, only one of them is
    measured, and the list is shorter.
    """
    ordered = sorted(feasible, key=lambda pair: pair[1][0][0])
    chosen = {networks[0][0]: c for c, networks in (ordered[0], ordered[len(ordered) // 2], ordered[-1])}
    return [(macs, measure(c)) for macs, c in chosen.items()]


def machine(config: TrialConfig, gpu: bool) -> str:
    """Return a line of text that names the device on which the step times are measured.

    If teachers compute logits during the training (distill.mode=online), the line says that their time is not included.
    `gpu` is True if a GPU trains, and False if the CPU does.
    """
    if gpu:
        text = f"measured on {torch.cuda.get_device_name()}"
    else:
        text = (
            f"measured on this machine's CPU with {config.train.threads} thread(s); no GPU was used, and CPU times do "
            "not predict GPU times"
        )
    online = "; the time in which teachers compute logits during the training (distill.mode=online) is not included"
    return text + (online if config.distill.mode == "online" else "")


def step_table(steps: Sequence[tuple[int, StepTime]], config: TrialConfig) -> Table:
    """Return a table with the measured times of a training step and of the validation of a clip, for each network.

    `steps` is the result of `measure_some`, and `config` contains the number of clips in a step.
    """
    step = f"ms per step of {config.train.batch_size} clips"
    table = Table("network", "M MACs", step, "ms per validation clip", "timed steps")
    names = ("smallest", "median", "largest") if len(steps) == 3 else ("smallest", "largest")
    for (macs, times), name in zip(steps, names, strict=False):
        timed = f"{times.measured} x {times.batch_size} clips"
        figures = f"{macs / 1e6:.3g}", f"{times.step_s * 1e3:,.1f}", f"{times.validation_s * 1e3:,.2f}"
        table.add_row(name, *figures, timed)
    return table


def print_study_hours(
    request: Requested, hours: Sequence[list[float]], rungs: Rungs, gpu: bool, console: Console
) -> dict[int, tuple[float, float]]:
    """Estimate the hours of a study for several numbers of workers, and print them as a table.

    A worker trains one trial at a time. Each worker is a GPU, or some cores of this machine's CPU if `gpu` is False.
    `hours` holds the training hours of each stage, for each feasible sample; the trials of the study are drawn from
    these samples at random. `rungs` are the rungs of the requested scheduler.

    Return {number of workers: (hours without early stopping, hours with early stopping)}.
    """
    n = request.n_trials
    rng = np.random.default_rng(request.seed)
    picked = [hours[i] for i in rng.integers(len(hours), size=n)]
    reached = any(rungs.hours(h) for h in hours)  # without prune steps and in few epochs, a trial has no rung
    unstopped, stopped = [sum(h) for h in picked], [until_stopped(h, rungs, rng) for h in picked]
    found = {k: (makespan(unstopped, k), makespan(stopped, k)) for k in WORKERS}
    early = [f"{request.scheduler}, at best"] if reached else []
    table = Table(f"estimate for {n} trials", "none stopped early", *early)
    for k, figures in found.items():
        name = f"{k} GPU(s)" if gpu else f"{k} concurrent, {request.cpus_per_trial:g} core(s) each"
        table.add_row(name, *[duration(f) for f in figures[: 1 + len(early)]])
    console.print(table)
    if reached:
        epochs = [f"epochs {', '.join(map(str, rungs.epochs))}"] if rungs.epochs else []  # none: a short dense phase
        where = ", ".join(epochs + (["after each prune step"] if rungs.after_steps else []))
        _print(
            console,
            f'"at best" means that each rung promotes {rungs.kept:.0%} of the trials ({where}). But rungs are '
            "asynchronous and promote most of the first trials that reach them: expect a time between the two columns",
        )
    if gpu:
        shared = "trials that share a GPU are counted as if they were trained one after the other"
    else:
        shared = f"this machine has {os.cpu_count()} core(s), and concurrent trials may slow each other down"
    _print(
        console,
        f"{shared}; not included: decoding the clips, training the teacher and computing its logits, once per study",
    )
    return found


def _print(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
