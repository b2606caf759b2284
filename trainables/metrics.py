"""Classification metrics of the DCASE task, from logits in one pass."""

from dataclasses import dataclass

import numpy as np

from data.tau import DEVICE_GROUPS, SCENES


@dataclass(frozen=True)
class Metrics:
    """Accuracies in [0, 1]; scenes and devices that have no clip are absent."""

    loss: float  # mean cross-entropy, nats
    macro_avg_acc: float  # mean of the class-wise accuracies: the task's primary metric
    class_acc: dict[str, float]
    device_acc: dict[str, float]
    group_acc: dict[str, float]  # real, seen, unseen devices


def measure(logits: np.ndarray, labels: np.ndarray, devices: np.ndarray) -> Metrics:
    """Metrics of `logits [N, C]` for `labels [N]` recorded by `devices [N]`."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    correct = logits.argmax(axis=1) == labels
    class_acc = {SCENES[c]: float(correct[labels == c].mean()) for c in np.unique(labels)}
    group_of = {device: group for group, members in DEVICE_GROUPS.items() for device in members}
    groups = np.array([group_of.get(d, "other") for d in devices])
    return Metrics(
        loss=float(-log_probability[np.arange(len(labels)), labels].mean()),
        macro_avg_acc=float(np.mean(list(class_acc.values()))),
        class_acc=class_acc,
        device_acc={str(d): float(correct[devices == d].mean()) for d in np.unique(devices)},
        group_acc={g: float(correct[groups == g].mean()) for g in (*DEVICE_GROUPS, "other") if (groups == g).any()},
    )
