"""Ensembles of teachers: means of logits or probabilities, and weights chosen greedily on validation.

    combine([first, second], "probabilities")                 logits [N, C] each; [N, C]
    greedy([first, second], labels).weights                   forward selection with replacement, Caruana et al. 2004

A mean of probabilities is returned as log-probabilities: their softmax is that mean, so the distillation loss takes
them as logits; its temperature then applies to the mean. The figures of `greedy` are of the clips that it chose on, so
they are optimistic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from trainables.config.distill import check_ensemble
from trainables.engine.metrics import measure

PICKS = 20  # of the greedy selection: the weights are multiples of 1/20 or coarser


def combine(logits: Sequence[torch.Tensor], method: str, weights: Sequence[float] = ()) -> torch.Tensor:
    """One teacher's worth of logits `[N, C]` from several's. `greedy` means the probabilities' mean with `weights`
    that a `Selection` has chosen. ValueError for weights that do not fit."""
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
    """The picks of a greedy selection in order, and the accuracy after each."""

    picks: tuple[int, ...]
    accuracies: tuple[float, ...]  # macro average on the clips that it was chosen on
    kept: int  # picks that make the best of these ensembles
    weights: tuple[float, ...]  # its weights, one a teacher, sum 1


@dataclass(frozen=True)
class Accuracies:
    """Macro average accuracies of teachers and of what they make together."""

    members: tuple[float, ...]
    ensembles: dict[str, float]
    selection: Selection


def accuracies(logits: Sequence[torch.Tensor], labels: np.ndarray, weights: Sequence[float] = ()) -> Accuracies:
    """Of teachers' logits `[M, C]` and their ensembles, for `labels [M]`; greedy weights are chosen on these clips."""
    selection = greedy(logits, labels)
    together = {method: combine(logits, method, weights) for method in ("logits", "probabilities")}
    together["greedy"] = combine(logits, "greedy", selection.weights)
    return Accuracies(
        tuple(macro_accuracy(z, labels) for z in logits),
        {method: macro_accuracy(z, labels) for method, z in together.items()},
        selection,
    )


def macro_accuracy(logits: torch.Tensor, labels: np.ndarray) -> float:
    """Mean of the class-wise accuracies of `logits [..., M, C]`."""
    return measure(logits.numpy(), labels, np.full(len(labels), "")).macro_avg_acc


def greedy(logits: Sequence[torch.Tensor], labels: np.ndarray, n_picks: int = PICKS) -> Selection:
    """Add, `n_picks` times, the teacher (again, maybe) that makes the macro accuracy of the mean probabilities highest,
    of equals the one with the lower cross-entropy; keep the smallest of the most accurate ensembles passed through."""
    p = torch.stack(list(logits)).double().softmax(dim=2)  # [K, M, C]
    true = torch.tensor(labels, dtype=torch.int64)
    counts = torch.bincount(true)
    share = 1 / (counts[true] * (counts > 0).sum()).double()  # [M]: each class weighs the same
    total, picks, scores = torch.zeros_like(p[0]), list[int](), list[tuple[float, float]]()
    for n in range(1, n_picks + 1):
        mean = (total + p) / n
        accuracy = ((mean.argmax(dim=2) == true) * share).sum(dim=1)
        loss = -mean[:, torch.arange(len(true)), true].clamp_min(1e-300).log().mean(dim=1)
        # rounded: the order of a sum must not decide between equals
        candidates = [(round(a, 12), -round(c, 12)) for a, c in zip(accuracy.tolist(), loss.tolist(), strict=True)]
        picks.append(max(range(len(p)), key=lambda k: candidates[k]))
        scores.append(candidates[picks[-1]])
        total = total + p[picks[-1]]
    best = max(range(n_picks), key=lambda n: scores[n][0]) + 1
    weights = tuple(picks[:best].count(k) / best for k in range(len(p)))
    return Selection(tuple(picks), tuple(accuracy for accuracy, _ in scores), best, weights)
