"""The networks of a pruning plan (`ascmodels.config.prune`): the sizes and widths after each of its prune steps."""

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import torch

from ascmodels.compress.groups import Gradients
from ascmodels.compress.pruning import Ties, prune, prune_below, smallest_step, ties
from ascmodels.config.limits import size_bytes
from ascmodels.config.prune import PruneConfig, PruningError
from ascmodels.nessi import get_deployed_size, layer_rates, size_at
from ascmodels.students import Student, StudentConfig, Widths, build_student


def take_step(
    student: Student,
    config: PruneConfig,
    step: int,
    dense: tuple[int, int],
    n_mels: int,
    frames: int,
    precision: str = "fp16",
    seed: int = 0,
    gradients: Gradients | None = None,
) -> Student:
    """Return a pruned copy of `student`: the network after prune step number `step` (1, 2, ...) of `config`.

    `student` is the network before this step, and `dense` the (MACs, parameters) of the deployed network before step 1.
    For a target, MACs are counted for one input of `n_mels` mel bins and `frames` frames, and bytes at `precision`
    (fp32, fp16 or int8). `seed` is for criterion random. `gradients`, the result of `sensitivities`, is for taylor and
    hessian. PruningError if the step is not possible.
    """
    options = {"round_to": config.round_to, "seed": seed, "scope": config.scope, "max_ratio": config.max_ratio}
    if config.goal is None:
        ratio = config.step_ratios[step - 1]
        return prune(student, ratio, config.criterion, gradients=gradients, **options)  # type: ignore[arg-type]
    name = config.goal[0]

    def figure(network: Student) -> float:
        return _figure(name, get_deployed_size(network, n_mels, frames), precision)

    target = config.targets(_figure(name, dense, precision))[step - 1]
    try:
        return prune_below(student, target, figure, config.criterion, gradients=gradients, **options)  # type: ignore[arg-type]
    except PruningError as error:
        where = f"prune step {step} of {config.rounds}, prune.target_{name}={config.goal[1]:,.0f}"
        raise PruningError(f"{where}: {error}") from error


def plan_sizes(
    config: StudentConfig,
    prune_config: PruneConfig,
    n_mels: int,
    frames: int,
    precision: str = "fp16",
    widths: Widths | None = None,
) -> list[tuple[int, int]]:
    """Return (MACs, parameters) of the deployed network before pruning and after each prune step, without training.

    MACs are counted for one input of `n_mels` mel bins and `frames` frames; a target in bytes is for parameters at
    `precision` (fp32, fp16 or int8). `widths` are the channels per layer before pruning (None: those of `config`).
    With another scope than local, sizes after pruning are estimates. PruningError if a step is not possible.
    """
    return [
        (macs, params) for macs, params, _ in plan_networks(config, prune_config, n_mels, frames, precision, widths)
    ]


def plan_networks(
    config: StudentConfig,
    prune_config: PruneConfig,
    n_mels: int,
    frames: int,
    precision: str = "fp16",
    widths: Widths | None = None,
) -> list[tuple[int, int, Widths]]:
    """Return (MACs, parameters, widths) before pruning and after each prune step, without training.

    MACs and parameters are those of the deployed network, for one input of `n_mels` mel bins and `frames` frames. A
    target in bytes is for parameters at `precision` (fp32, fp16 or int8). Before pruning, the network has the given
    `widths` (channels per layer; None: the unpruned widths of `config`). With scope local the result does not depend on
    the weights, so it is exact for the trained network. With scope global or isomorphic it is an *estimate* from random
    weights. PruningError if a step is not possible; for a target, the message contains the smallest possible size.
    """
    # without a target, the widths follow from the ratios. Not for TF-SepNet: its ties change as layers become narrow
    if prune_config.exact and prune_config.goal is None and config.family == "mobile":
        stages = [widths or _deployed(config).widths]
        tied = config  # equal for all branches (so cached once), except for an identity branch in the stem
        if not config.rep_stem:
            tied = replace(config, branches=(), stage_branches=(), activation="relu")
        for ratio in prune_config.step_ratios:
            stages.append(_ties(tied, stages[0]).narrowed(stages[-1], ratio, prune_config.round_to))
        return [(*_deployed_size(config, w, n_mels, frames), w) for w in stages]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = build_student(config, widths=widths)
    networks = [student]
    dense = get_deployed_size(student, n_mels, frames)
    goal, by_weights = prune_config.goal, replace(prune_config, criterion="l1")
    if goal is not None:
        prune_config.targets(_figure(goal[0], dense, precision))  # PruningError if the target is not smaller
    try:
        for step in range(1, prune_config.rounds + 1):
            networks.append(take_step(networks[-1], by_weights, step, dense, n_mels, frames, precision))
    except PruningError as error:
        if goal is None:
            raise
        for _ in range(prune_config.rounds):
            student = smallest_step(student, prune_config.round_to, prune_config.max_ratio)
        least = _figure(goal[0], get_deployed_size(student, n_mels, frames), precision)
        raise PruningError(
            f"{error}. The smallest size after {prune_config.rounds} step(s) is {least:,.0f}: set a larger target, or "
            "a larger prune.n_steps"
        ) from error
    return [(*get_deployed_size(network, n_mels, frames), network.widths) for network in networks]


@lru_cache(maxsize=4096)
def _deployed_size(config: StudentConfig, widths: Widths, n_mels: int, frames: int) -> tuple[int, int]:
    return size_at(_deployed(config, widths), _rates(config, n_mels, frames))


@lru_cache(maxsize=512)
def _rates(config: StudentConfig, n_mels: int, frames: int) -> dict[str, Fraction]:
    return layer_rates(_deployed(config), (1, 1, n_mels, frames))


def _deployed(config: StudentConfig, widths: Widths | None = None) -> Student:
    with torch.random.fork_rng(devices=[]):
        return build_student(config, widths=widths, fused=True)


@lru_cache(maxsize=512)
def _ties(config: StudentConfig, widths: Widths) -> Ties:
    with torch.random.fork_rng(devices=[]):
        return ties(build_student(config, widths=widths))


def _figure(name: str, size: tuple[int, int], precision: str) -> float:
    """Return the number that the pruning target `name` limits, for a deployed network of `size` (MACs, parameters).

    For `name` "macs", these are the MACs; for "bytes", the bytes of the parameters at `precision`.
    """
    return size[0] if name == "macs" else size_bytes(size[1], precision)
