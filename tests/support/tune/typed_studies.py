"""Studies that are started from the command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

TRIALS = 5


class Studies:
    """Starts `tune/run.py` in new processes, on the tiny data set."""

    def __init__(self, dataset: Path, folder: Path):
        self.folder = folder
        self.config = [
            f"--dataset_dir={dataset}",
            f"--cache_dir={folder / 'cache'}",
            *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
            *("train.epochs=4", "train.batch_size=8", "prune.epochs=2", "teacher.train.epochs=1"),
            *("teacher.model.hidden_size=32", "teacher.model.layers=1", "teacher.model.heads=2"),
        ]

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "tune/run.py", "--storage", str(self.folder), *words]
        environment = os.environ | {"WANDB_MODE": "offline", "COLUMNS": "160"}
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as nohup, cron and CI systems do
        )

    def new(self, name: str, *words: str) -> subprocess.Popen[str]:
        return self.start("--space", "kd_prune", "--name", name, "--num-samples", str(TRIALS), *words, *self.config)
