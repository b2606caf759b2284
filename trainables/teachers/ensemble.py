"""Ensembles of teachers: means of logits or probabilities, and weights chosen greedily on validation.

    combine([first, second], "probabilities")                 from logits [N, C] of each teacher to one [N, C]
    greedy([first, second], labels).weights                   forward selection with replacement, Caruana et al. 2004

A mean of probabilities is returned as log-probabilities. Their softmax is this mean, so the distillation loss can use
them as logits; its temperature then applies to the mean. The figures of `greedy` are measured on the clips on which it
chose the weights, so they are optimistic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from trainables.config.distill import check_ensemble
from trainables.engine.metrics import measure

PICKS = 20  # picks of the greedy selection: the weights are multiples of 1/20 or coarser


def combine(logits: Sequence[torch.Tensor], method: str, weights: Sequence[float] = ()) -> torch.Tensor:
    """Combine the logits `[N, C]` of several teachers into the logits `[N, C]` of their ensemble.

    `method` is logits, probabilities or greedy, which means probabilities with the `weights` of a `Selection`. Raise
    ValueError for weights that do not fit the number of teachers.
    """
    method = "probabilities" if method == "greedy" else method
    check_ensemble(method, weights, len(logits))
    share = torch.tensor(weights or [1.0] * len(logits), dtype=torch.float64, device=logits[0].device)
    kept = share > 0
    share = (share / share.sum())[kept].view(-1, 1, 1)
    stack = torch.stack(list(logits))[kept].double()  # [K, N, C]
    if method == "logits":
        return (share * stack).sum(dim=0).to(logits[0].dtype)
    return torch.logsumexp(F.log_softmax(stack, dim=2) + share.log(), dim=0).to(logits[0].dtype)


@dataclass(frozen=True)
class Selection:
    """Result of a greedy selection: the picked teachers in order, the accuracy after each pick, the weights."""

    picks: tuple[int, ...]  # indices of teachers
    accuracies: tuple[float, ...]  # macro average accuracy after each pick, on the clips used for the selection
    kept: int  # number of first picks that form the best ensemble
    weights: tuple[float, ...]  # weights of that ensemble, one for each teacher, sum 1


@dataclass(frozen=True)
class Accuracies:
    """Macro average accuracies of teachers and of their ensembles."""

    members: tuple[float, ...]  # one for each teacher
    ensembles: dict[str, float]  # one for each method of `combine`
    selection: Selection


def accuracies(logits: Sequence[torch.Tensor], labels: np.ndarray, weights: Sequence[float] = ()) -> Accuracies:
    """Return the accuracies of teachers' logits `[M, C]` and of their ensembles for `labels [M]`.

    `weights` apply to the means of logits and of probabilities. The greedy weights are chosen on the same M clips.
    """
    selection = greedy(logits, labels)
    together = {method: combine(logits, method, weights) for method in ("logits", "probabilities")}
    together["greedy"] = combine(logits, "greedy", selection.weights)
    return Accuracies(
        tuple(macro_accuracy(z, labels) for z in logits),
        {method: macro_accuracy(z, labels) for method, z in together.items()},
        selection,
    )


def macro_accuracy(logits: torch.Tensor, labels: np.ndarray) -> float:
    """Return the mean of the class-wise accuracies of `logits [M, C]` for `labels [M]`."""
    return measure(logits.numpy(), labels, np.full(len(labels), "")).macro_avg_acc


def greedy(logits: Sequence[torch.Tensor], labels: np.ndarray, n_picks: int = PICKS) -> Selection:
    """Choose the weights of an ensemble by greedy forward selection with replacement.

    Each of the `n_picks` picks adds the teacher that gives the highest macro accuracy of the mean probabilities; among
    equal teachers, the one with the lowest cross-entropy. A teacher may be picked more than once. The result is the
    most accurate ensemble that was found after any pick; among equal ensembles, the one with the fewest picks.
    """
    p = torch.stack(list(logits)).double().softmax(dim=2)  # [K, M, C]
    true = torch.tensor(labels, dtype=torch.int64)
    counts = torch.bincount(true)
    share = 1 / (counts[true] * (counts > 0).sum()).double()  # [M], weight of each clip: equal for all classes in total
    total, picks, scores = torch.zeros_like(p[0]), list[int](), list[tuple[float, float]]()
    for n in range(1, n_picks + 1):
        mean = (total + p) / n
        accuracy = ((mean.argmax(dim=2) == true) * share).sum(dim=1)
        loss = -mean[:, torch.arange(len(true)), true].clamp_min(1e-300).log().mean(dim=1)
        # rounded, so that the rounding errors of a sum do not decide between equal candidates
        candidates = [(round(a, 12), -round(c, 12)) for a, c in zip(accuracy.tolist(), loss.tolist(), strict=True)]
        picks.append(max(range(len(p)), key=lambda k: candidates[k]))
        scores.append(candidates[picks[-1]])
        total = total + p[picks[-1]]
    best = max(range(n_picks), key=lambda n: scores[n][0]) + 1
    weights = tuple(picks[:best].count(k) / best for k in range(len(p)))
    return Selection(tuple(picks), tuple(accuracy for accuracy, _ in scores), best, weights)
