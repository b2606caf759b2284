"""Ensembles of teachers: means of logits or probabilities, and weights chosen greedily on validation.

`combine` returns the logits of an ensemble, from the logits of its teachers. `greedy` chooses the weights of the
teachers by forward selection with replacement (Caruana et al. 2004, "Ensemble Selection from Libraries of Models").

For a mean of probabilities, `combine` returns its logarithm. The softmax of these log-probabilities is the mean, so the
distillation loss can use them as logits. The loss then applies its temperature to the ensemble, not to each teacher.
The accuracies that `greedy` returns are optimistic, because they are measured on the clips that chose the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from trainables.config.distill import check_ensemble
from trainables.engine.metrics import measure

PICKS = 20  # number of picks of the greedy selection: each weight is a multiple of 1/k for a k of at most 20


def combine(logits: Sequence[torch.Tensor], method: str, weights: Sequence[float] = ()) -> torch.Tensor:
    """Combine the logits `[N, C]` of several teachers into the logits `[N, C]` of their ensemble.

    `method` is logits (mean of logits) or probabilities (logarithm of the mean of probabilities). The method greedy is
    computed like probabilities, with the `weights` that the function `greedy` has chosen. `weights` has one number for
    each teacher; empty: equal weights.
    Raise ValueError for an unknown method, or for weights that do not fit the number of teachers.
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
    """Result of `greedy`: the teachers in the order in which they were picked, accuracies, ensemble weights."""

    picks: tuple[int, ...]  # index of the teacher of each pick
    accuracies: tuple[float, ...]  # macro average accuracy after each pick, on the clips used for the selection
    kept: int  # number of picks of the best ensemble, which consists of the first `kept` picks
    weights: tuple[float, ...]  # weights of the best ensemble, one for each teacher, sum 1


@dataclass(frozen=True)
class Accuracies:
    """Macro average accuracies of single teachers and of their ensembles on the same clips."""

    members: tuple[float, ...]  # accuracy of each teacher
    ensembles: dict[str, float]  # method of `combine` -> accuracy of the ensemble
    selection: Selection  # greedy selection on the same clips


def accuracies(logits: Sequence[torch.Tensor], labels: np.ndarray, weights: Sequence[float] = ()) -> Accuracies:
    """Return the accuracy of each teacher, and of the ensemble of all teachers for each method of `combine`.

    `logits` has one tensor `[M, C]` for each teacher; `labels [M]` are the true classes of the M clips. The methods
    logits and probabilities use `weights` (empty: equal weights). The weights of greedy are chosen on the same M clips.
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
    """Return the macro average accuracy (mean over the classes) of `logits [M, C]` for `labels [M]`."""
    return measure(logits.numpy(), labels, np.full(len(labels), "")).macro_avg_acc


def greedy(logits: Sequence[torch.Tensor], labels: np.ndarray, n_picks: int = PICKS) -> Selection:
    """Choose the weights of an ensemble by greedy forward selection with replacement.

    `logits` has one tensor `[M, C]` for each teacher; `labels [M]` are the true classes. Each of the `n_picks` picks
    adds a teacher to the ensemble, perhaps one that the ensemble already contains: the teacher with which the mean
    probabilities of the ensemble have the highest macro average accuracy. If several teachers reach it, the lowest
    cross-entropy decides. The best ensemble (`Selection.weights`) is the most accurate one of those after 1, 2, ...
    `n_picks` picks. If several are equal, it is the one with the fewest picks.
    """
    p = torch.stack(list(logits)).double().softmax(dim=2)  # [K, M, C]
    true = torch.tensor(labels, dtype=torch.int64)
    counts = torch.bincount(true)
    share = 1 / (counts[true] * (counts > 0).sum()).double()  # [M], weight of each clip: all classes get the same sum
    total, picks, scores = torch.zeros_like(p[0]), list[int](), list[tuple[float, float]]()
    for n in range(1, n_picks + 1):
        mean = (total + p) / n
        accuracy = ((mean.argmax(dim=2) == true) * share).sum(dim=1)
        loss = -mean[:, torch.arange(len(true)), true].clamp_min(1e-300).log().mean(dim=1)
        # rounded to 12 digits, so that floating-point errors do not decide between equal teachers
        candidates = [(round(a, 12), -round(c, 12)) for a, c in zip(accuracy.tolist(), loss.tolist(), strict=True)]
        picks.append(max(range(len(p)), key=lambda k: candidates[k]))
        scores.append(candidates[picks[-1]])
        total = total + p[picks[-1]]
    best = max(range(n_picks), key=lambda n: scores[n][0]) + 1
    weights = tuple(picks[:best].count(k) / best for k in range(len(p)))
    return Selection(tuple(picks), tuple(accuracy for accuracy, _ in scores), best, weights)
