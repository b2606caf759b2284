"""Configuration of a trial that trains for a few seconds on the data set of tests/support/tau.py, without a teacher."""

from pathlib import Path

from trainables.config.compose import compose
from trainables.config.schema import TrialConfig


def small_trial(tau: Path, cache_dir: Path, *overrides: str) -> TrialConfig:
    """Return the configuration of a small student on the CPU, with one epoch after each prune step.

    `tau` is the folder of the data set. `overrides` set the numbers of dense epochs and prune steps.
    """
    return compose(
        [
            f"data.dataset_dir='{tau}'",
            f"data.cache_dir='{cache_dir}'",
            *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
            *("train.batch_size=16", "train.device=cpu", "prune.epochs=1", "distill.kd_alpha=1"),
            *overrides,
        ]
    )
