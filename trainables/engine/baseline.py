"""Logistic regressions on statistics of the log-mels: the baseline of the accuracy, and a classifier of devices.

The statistics of a clip are the mean and the standard deviation of each mel bin over time.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from data.config.frontend import FrontEndConfig
from data.features import LogMel
from data.files import read_json, replace_text
from trainables.config.schema import ConfigError
from trainables.engine.metrics import measure
from trainables.inputs.clips import Clips

NAME = "logistic regression on log-mel means and deviations"
FORMAT = 1  # raise it when the regression or its features change


def cached_baseline(train: Clips, evaluated: Clips, front_end: FrontEndConfig, cache_dir: Path) -> float:
    """Return the macro average accuracy (0 to 1) on `evaluated` of a logistic regression that is fitted to `train`.

    The accuracy is cached in a file in `cache_dir`, so the regression is fitted only once for these clips.
    """
    path = baseline_file(train, evaluated, front_end, cache_dir)
    cached = read_baseline(path)
    if cached is not None:
        return cached
    accuracy = baseline_accuracy(train, evaluated, front_end)
    replace_text(path, json.dumps({"format": FORMAT, "name": NAME, "macro_avg_acc": accuracy}))
    return accuracy


def baseline_file(train: Clips, evaluated: Clips, front_end: FrontEndConfig, cache_dir: Path) -> Path:
    """Return the path of the file in `cache_dir` that caches the accuracy of the baseline (logistic regression).

    The file need not exist yet. Its name contains a hash of the clips `train` and `evaluated`, their labels and the
    front-end settings.
    """
    key = {
        "format": FORMAT,
        "front_end": asdict(front_end),
        "clips": [[c.cache.key, c.rows.tolist(), c.labels.tolist()] for c in (train, evaluated)],
    }
    text = json.dumps(key, sort_keys=True)
    return cache_dir / f"baseline-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def read_baseline(path: Path) -> float | None:
    """Return the accuracy (0 to 1) that the file `path` caches; None if the file does not exist or is damaged."""
    try:
        accuracy = read_json(path)["macro_avg_acc"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 1 else None


def baseline_accuracy(train: Clips, evaluated: Clips, front_end: FrontEndConfig) -> float:
    """Fit a logistic regression to `train`, and return its macro average accuracy (0 to 1) on `evaluated`."""
    model = _regression()
    model.fit(statistics(train, front_end), train.labels)
    scores = model.decision_function(statistics(evaluated, front_end))
    return measure(scores, evaluated.labels, evaluated.devices).macro_avg_acc


def device_entropy(clips: Clips, front_end: FrontEndConfig, cache_dir: Path) -> np.ndarray:
    """Return the entropy [N] in nats of the devices that a logistic regression predicts for each of N clips.

    It is high for a clip that could be from several devices. A curriculum starts with such clips (Zhang et al. 2025,
    arXiv:2509.11168, there with another classifier). Each clip is predicted by a regression that was fitted to the
    others (5 folds). The result is cached in `cache_dir`. Raise ConfigError if all clips have the same device.
    """
    devices, counts = np.unique(clips.devices, return_counts=True)
    if len(devices) < 2:
        raise ConfigError(
            f"train.curriculum needs training clips of two devices or more, found only device {devices.tolist()}: set "
            "train.curriculum=0"
        )
    key = {"format": FORMAT, "front_end": asdict(front_end), "cache": clips.cache.key}
    key |= {"rows": clips.rows.tolist(), "devices": clips.devices.tolist()}
    path = cache_dir / f"devices-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    cached = _read_entropy(path)
    if cached is not None and cached.shape == clips.rows.shape:
        return cached
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict

    folds = (StratifiedKFold if counts.min() >= 5 else KFold)(5, shuffle=True, random_state=0)
    features = statistics(clips, front_end)
    shares = np.asarray(cross_val_predict(_regression(), features, clips.devices, cv=folds, method="predict_proba"))
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)
    replace_text(path, json.dumps({"format": FORMAT, "entropy": entropy.tolist()}))
    return entropy


def _read_entropy(path: Path) -> np.ndarray | None:
    """Return the entropies that the file `path` caches; None if the file does not exist or is damaged."""
    try:
        entropy = np.array(read_json(path)["entropy"], dtype=np.float64)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return entropy if np.isfinite(entropy).all() else None


def _regression():
    from sklearn.linear_model import LogisticRegression  # imported here because the import takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


@torch.no_grad()
def statistics(clips: Clips, config: FrontEndConfig, batch_size: int = 64) -> np.ndarray:
    """Return the features `[N, 2 * n_mels]` of N clips: mean and standard deviation of each mel bin over time.

    `batch_size` is the number of clips whose log-mels are computed together.
    """
    front_end, parts = LogMel(config), []
    for start in range(0, len(clips.rows), batch_size):
        x = front_end(clips.cache.batch(clips.rows[start : start + batch_size])).squeeze(1)  # [B, F, T]
        parts.append(torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1))
    return torch.cat(parts).numpy()
