"""The bar every front has to clear: a logistic regression on each clip's log-mel means and deviations over time."""

import numpy as np
import torch

from data.features import FrontEndConfig, LogMel
from trainables.loop import Clips
from trainables.metrics import measure

NAME = "logistic regression on log-mel means and deviations"


def baseline_accuracy(train: Clips, evaluated: Clips, front_end: FrontEndConfig) -> float:
    """Macro average accuracy on `evaluated` of a regression fitted to `train`."""
    from sklearn.linear_model import LogisticRegression  # here: a second that a command without it need not spend
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(statistics(train, front_end), train.labels)
    scores = model.decision_function(statistics(evaluated, front_end))
    return measure(scores, evaluated.labels, evaluated.devices).macro_avg_acc


@torch.no_grad()
def statistics(clips: Clips, config: FrontEndConfig, batch_size: int = 64) -> np.ndarray:
    """Mean and standard deviation over time of each mel bin, `[N, 2 * n_mels]`."""
    front_end, parts = LogMel(config), []
    for start in range(0, len(clips.rows), batch_size):
        x = front_end(clips.cache.batch(clips.rows[start : start + batch_size])).squeeze(1)  # [B, F, T]
        parts.append(torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1))
    return torch.cat(parts).numpy()
