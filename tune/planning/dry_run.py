"""Estimate the cost of a study without training it: `python tune/run.py --space kd_prune --dry-run`.

The space is sampled at random and each sample passes the search's feasibility check. This shows how many samples fit
the limits, why the others do not, and how large the networks are. Then the smallest, the median and the largest
feasible network train a few steps on noise, and the hours of the study are estimated from their step times. Nothing is
kept.
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

from analysis.manifest import Asked
from ascmodels.nessi import Limits, size_bytes
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
    """Random samples of a space and the result of their feasibility checks."""

    feasible: list[tuple[TrialConfig, Networks]]
    over: list[Networks]  # networks of samples that can be built, but fit the limits at no stage
    rejected: Counter[str]  # reason -> number of samples
    examples: dict[str, str]  # reason -> one sample

    @property
    def total(self) -> int:
        return len(self.feasible) + self.rejected.total()


def dry_run(space: Space, config: TrialConfig, asked: Asked, console: Console, n_draws: int = DRAWS) -> dict[str, Any]:
    """Print the estimate on `console`; return its figures. `feasible` is 0 if no sample fits the limits."""
    _, parts = read_parts(config)
    clips = len(parts.train), len(parts.validation)
    config = with_enough_epochs(config, clips[0])
    draws = draw(space, config.flat(), asked.seed, n_draws)
    n_fit, (low, high) = len(draws.feasible), wilson(len(draws.feasible), draws.total)
    _print(
        console,
        f"space {space.name}: {n_fit} of {draws.total} random samples fit the limits at one stage or more: "
        f"{n_fit / draws.total:.0%} (95 % interval {low:.0%} to {high:.0%})",
    )
    for reason, count in draws.rejected.most_common():
        _print(console, f"  {count} {reason}, for example {draws.examples[reason]}")
    found = {"draws": draws.total, "feasible": n_fit, "interval": (low, high), "rejected": dict(draws.rejected)}
    if not draws.feasible:
        _print(console, nothing_fits(draws, config.limits))
        return found
    found["networks"] = len({networks for _, networks in draws.feasible})
    _print(console, f"{found['networks']} of them are distinct deployed networks")
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
    rungs = Rungs(asked.scheduler, config.train.epochs)
    found["study_hours"] = print_study_hours(asked, hours, rungs, gpu, console)
    return found


def draw(space: Space, base: dict[str, Any], seed: int, n: int = DRAWS, seconds: float = SAMPLING_S) -> Draws:
    """Draw `n` random samples of `space`, or as many as `seconds` allow (at least one), and check their feasibility.
    Their values override the flat configuration `base`."""
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
    """Return which limit rejects all samples, and what to change."""
    if not draws.over:
        return "no sample can be built or pruned: correct the space's ranges"
    macs = min(m for networks in draws.over for m, *_ in networks)
    nbytes = min(size_bytes(p, limits.precision) for networks in draws.over for _, p, _ in networks)
    missed = [
        f"the fewest {name} are {least:,.0f}, the limit is {limit:,.0f}"
        for name, least, limit in (("MACs", macs, limits.macs), ("bytes", nbytes, limits.bytes))
        if least > limit
    ]
    missed = missed or ["each limit alone is met by some sample, but no sample meets both"]
    return f"no sample fits the limits: {'; '.join(missed)}. Widen the limits or narrow the space"


def size_table(feasible: Sequence[tuple[TrialConfig, Networks]], precision: str) -> Table:
    """Return a table with minimum, median and maximum of MACs and kB, for dense and pruned networks."""
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
    """Return (MACs of the dense network, its step times) of the smallest, the median and the largest sample by MACs."""
    ordered = sorted(feasible, key=lambda pair: pair[1][0][0])
    chosen = {networks[0][0]: c for c, networks in (ordered[0], ordered[len(ordered) // 2], ordered[-1])}
    return [(macs, measure(c)) for macs, c in chosen.items()]


def machine(config: TrialConfig, gpu: bool) -> str:
    """Return a line that names the device on which the times were measured."""
    if gpu:
        text = f"measured on {torch.cuda.get_device_name()}"
    else:
        text = (
            f"measured on this machine's CPU, {config.train.threads} thread(s) a trial; no GPU is used here, and "
            "CPU times do not predict GPU times"
        )
    return text + ("; the time of online teachers is not included" if config.distill.mode == "online" else "")


def step_table(steps: Sequence[tuple[int, StepTime]], config: TrialConfig) -> Table:
    """Return a table of the measured step and validation times."""
    table = Table("network", "M MACs", f"ms a step of {config.train.batch_size} clips", "ms a validated clip", "timed")
    names = ("smallest", "median", "largest") if len(steps) == 3 else ("smallest", "largest")
    for (macs, times), name in zip(steps, names, strict=False):
        timed = f"{times.measured} x {times.batch_size} clips"
        figures = f"{macs / 1e6:.3g}", f"{times.step_s * 1e3:,.1f}", f"{times.validation_s * 1e3:,.2f}"
        table.add_row(name, *figures, timed)
    return table


def print_study_hours(
    asked: Asked, hours: Sequence[list[float]], rungs: Rungs, gpu: bool, console: Console
) -> dict[int, tuple[float, float]]:
    """Print and return {number of workers: (hours of the study without early stopping, hours with it)}.

    The trials are drawn at random from the measured samples and queued on the workers.
    """
    n = asked.num_samples or 0
    rng = np.random.default_rng(asked.seed)
    picked = [hours[i] for i in rng.integers(len(hours), size=n)]
    unstopped, stopped = [sum(h) for h in picked], [until_stopped(h, rungs, rng) for h in picked]
    found = {k: (makespan(unstopped, k), makespan(stopped, k)) for k in WORKERS}
    early = [f"{asked.scheduler}, at best"] if rungs else []
    table = Table(f"estimate for {n} trials", "none stopped early", *early)
    for k, figures in found.items():
        name = f"{k} GPU(s)" if gpu else f"{k} concurrent, {asked.cpus_per_trial:g} core(s) each"
        table.add_row(name, *[duration(f) for f in figures[: 1 + len(early)]])
    console.print(table)
    if rungs:
        epochs = [f"epochs {', '.join(map(str, rungs.epochs))}"] if rungs.epochs else []  # none: a short dense phase
        where = ", ".join(epochs + (["after each prune step"] if rungs.after_steps else []))
        _print(
            console,
            f"at best: each rung promotes {rungs.kept:.0%} of the trials ({where}). Rungs are asynchronous and "
            "promote the first trials, so expect a time between the two columns",
        )
    if gpu:
        shared = "trials that share a GPU are counted as if they ran one after another"
    else:
        shared = f"this machine has {os.cpu_count()} core(s), and concurrent trials may slow each other down"
    _print(console, f"{shared}; decoding the clips, fine-tuning the teacher and its logits are extra, once per study")
    return found


def _print(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
