"""Classification metrics of DCASE 2024 Task 1, computed from logits."""

from dataclasses import dataclass

import numpy as np

from data.tau import DEVICE_GROUPS, SCENES


@dataclass(frozen=True)
class Metrics:
    """Classification metrics of a network on a set of clips. Accuracies are in [0, 1].

    The dicts of accuracies have no entry for a scene, recording device or device group without clips.
    """

    loss: float  # mean cross-entropy in nats
    acc: float  # share of correctly classified clips
    macro_avg_acc: float  # mean of the class-wise accuracies: the task's primary metric
    class_acc: dict[str, float]  # scene -> accuracy
    device_acc: dict[str, float]  # recording device -> accuracy
    group_acc: dict[str, float]  # device group -> accuracy: real, seen, unseen; other: devices that TAU does not have
    ece: float  # expected calibration error, in [0, 1]; nan if a logit is not finite
    confusion: list[list[int]]  # [C, C] numbers of clips: rows are true scenes, columns predicted scenes


def measure(logits: np.ndarray, labels: np.ndarray, devices: np.ndarray) -> Metrics:
    """Return the metrics of the `logits [N, C]` of N clips.

    `labels [N]` are the true classes (indices in `SCENES`), and `devices [N]` the names of the recording devices.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    predicted = logits.argmax(axis=1)
    correct = predicted == labels
    n_classes = logits.shape[1]
    confusion = np.bincount(labels * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)
    class_acc = {SCENES[c]: float(confusion[c, c] / confusion[c].sum()) for c in np.flatnonzero(confusion.sum(axis=1))}
    recorders, number = np.unique(devices, return_inverse=True)
    right, clips = np.bincount(number, weights=correct), np.bincount(number)  # per device
    group_of = {device: group for group, members in DEVICE_GROUPS.items() for device in members}
    groups = np.array([group_of.get(d, "other") for d in recorders])
    return Metrics(
        loss=float(-log_probability[np.arange(len(labels)), labels].mean()),
        acc=float(correct.mean()),
        macro_avg_acc=float(np.mean(list(class_acc.values()))),
        class_acc=class_acc,
        device_acc={str(d): float(r / n) for d, r, n in zip(recorders, right, clips, strict=True)},
        group_acc={
            g: float(right[groups == g].sum() / clips[groups == g].sum())
            for g in (*DEVICE_GROUPS, "other")
            if (groups == g).any()
        },
        ece=calibration_error(np.exp(log_probability.max(axis=1)), correct),
        confusion=confusion.tolist(),
    )


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al. 2017), in [0, 1]; nan if a confidence is not finite.

    `confidence [N]` is the probability of each clip's predicted class, and `correct [N]` is True where this class is
    the true one. The range [0, 1] of the confidence is divided into `bins` intervals of equal width, each open below
    and closed above. The error is the sum over the intervals of
    (clips in the interval / N) * |share of correct predictions - mean confidence|.
    """
    if not np.isfinite(confidence).all():
        return float("nan")
    number = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(number, weights=correct - confidence)).sum() / len(confidence))
