"""The metrics: accuracies, confusion matrix and calibration error, counted one by one."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.tau import DEVICE_GROUPS, SCENES
from trainables.engine.metrics import calibration_error, measure
from trainables.outputs.records import Point, point_dict, point_row


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_counting_one_by_one(seed):
    rng = np.random.default_rng(seed)
    n = 60
    present = rng.permutation(10)[: rng.integers(3, 11)]
    labels = rng.choice(present, size=n)
    every = [d for members in DEVICE_GROUPS.values() for d in members] + ["x9"]
    devices = rng.choice(every[: rng.integers(2, 11)], size=n)
    logits = rng.normal(size=(n, 10)).astype(np.float32) * 5
    logits[np.arange(n), labels] += 3
    metrics = measure(logits, labels, devices)

    def accuracy(rows: list[int]) -> float:
        return sum(max(range(10), key=lambda c: logits[i, c]) == labels[i] for i in rows) / len(rows)

    by_class = {SCENES[c]: accuracy([i for i in range(n) if labels[i] == c]) for c in set(labels.tolist())}
    assert metrics.class_acc == pytest.approx(by_class)
    assert metrics.macro_avg_acc == pytest.approx(sum(by_class.values()) / len(by_class))
    by_device = {d: accuracy([i for i in range(n) if devices[i] == d]) for d in set(devices.tolist())}
    assert metrics.device_acc == pytest.approx(by_device)
    members = {**DEVICE_GROUPS, "other": ("x9",)}
    rows = {g: [i for i in range(n) if devices[i] in m] for g, m in members.items()}
    assert metrics.group_acc == pytest.approx({g: accuracy(r) for g, r in rows.items() if r})
    expected = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
    assert metrics.loss == pytest.approx(expected, rel=1e-9)
    json.dumps([metrics.class_acc, metrics.device_acc, metrics.group_acc, metrics.macro_avg_acc])  # Python's own types


def test_macro_average_is_not_the_share_of_clips():
    logits = np.eye(10)[[0] * 9 + [0]]  # nine clips of class 0 right, the clip of class 1 wrong
    labels = np.array([0] * 9 + [1])
    metrics = measure(logits, labels, np.array(["a"] * 10))
    assert metrics.macro_avg_acc == 0.5
    assert metrics.device_acc == {"a": 0.9}
    assert math.isfinite(measure(logits * 1e4, labels, np.array(["a"] * 10)).loss)


@pytest.mark.parametrize("seed", range(3))
def test_confusion_and_calibration_equal_counting_one_by_one(seed):
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(10, size=80), 3 * rng.standard_normal((80, 10)).astype(np.float32)
    logits[np.arange(80), labels] += 2
    metrics = measure(logits, labels, np.array(["a"] * 80))
    p = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    confusion = [[0] * 10 for _ in range(10)]
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(p, labels, strict=True):
        best = max(range(10), key=lambda c: row[c])
        confusion[label][best] += 1
        number = next(m for m in range(15) if row[best] <= (m + 1) / 15)  # ((m / 15), (m + 1) / 15]
        bins.setdefault(number, []).append((row[best], best == label))
    ece = sum(
        len(b) / 80 * abs(np.mean([right for _, right in b]) - np.mean([confidence for confidence, _ in b]))
        for b in bins.values()
    )
    assert metrics.confusion == confusion
    assert metrics.ece == pytest.approx(ece, abs=1e-9)
    assert metrics.acc == sum(confusion[c][c] for c in range(10)) / 80
    json.dumps(asdict(metrics))  # Python's own types


def test_calibration_at_its_ends():
    sure = np.ones(4)
    assert calibration_error(sure, np.array([True] * 4)) == 0
    assert calibration_error(sure, np.array([False] * 4)) == 1
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == 0
    assert math.isnan(calibration_error(np.array([0.5, np.nan]), np.array([True, True])))


def test_points_of_older_versions_are_read():
    old = {"step": 0, "epochs": 2, "val_macro_avg_acc": 0.5, "val_loss": 1.0, "macs": 9, "params": 3, "sparsity": 0.0}
    old |= {f"bytes_{p}": 6 for p in ("fp32", "fp16", "int8")} | {"feasible": True, "widths": {}, "checkpoint": "step0"}
    old |= {f"{kind}_acc": {} for kind in ("class", "device", "group")}
    point = Point(**old)
    assert (point.val_ece, point.train_macro_avg_acc, point.confusion) == (None, None, None)
    for values in (old, point_dict(point)):
        row = point_row("t", "complete", "experiments/t", values, {})
        assert row["val_ece"] is None
        assert "confusion" not in row
