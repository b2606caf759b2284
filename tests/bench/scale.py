"""10,000 simulated trials through the real driver: time per trial, memory and files as a study grows.

    python tests/bench/scale.py                     # 10,000 trials of 3 results
    python tests/bench/scale.py --trials 1000 --sampler random

Searcher, gate, scheduler, journal, tables and Ray are those of `tune/run.py`; only the training is a formula that takes
no time. The last line tells what a resume of such a study costs: reading the journal, and telling it to Optuna.
"""

import argparse
import json
import logging
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import ray
import ray.tune as rt
from rich.console import Console

from search_spaces import load_space
from trainables.config import TrialConfig, compose
from tune.gate import NetworkGate
from tune.journal import Journal
from tune.run import search
from tune.search import FeasibleOptunaSearch
from tune.writer import StudyWriter

MARKS = (100, 500, 1_000, 2_500, 5_000, 7_500, 10_000)


class Simulated(rt.Trainable):
    """Two dense epochs and one prune step of a trial, by formula; checkpoints hold a line."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._sampled, self._points = new_config, []
        self._epochs = 0
        return True

    def step(self) -> dict[str, Any]:
        self._epochs += 1
        stage, epoch = divmod(self._epochs - 1, 2)
        width, alpha = self._sampled["student.base_channels"], self._sampled["distill.kd_alpha"]
        macs = int(width**1.8 * 2e4 * (1 - 0.4 * stage))
        accuracy = 0.3 + 0.1 * width**0.4 - (alpha - 0.4) ** 2 - 0.03 * stage
        shares = dict.fromkeys(("airport", "bus", "metro", "park", "tram"), accuracy)
        if self._epochs >= 2:
            self._points.append(
                {
                    **{
                        "step": stage,
                        "epochs": self._epochs,
                        "val_macro_avg_acc": accuracy,
                        "val_loss": 1.0,
                        "macs": macs,
                    },
                    **{"params": macs // 400, "bytes_fp32": macs // 100, "bytes_fp16": macs // 200},
                    **{"bytes_int8": macs // 400, "sparsity": 0.4 * stage, "feasible": True, "val_ece": 0.1},
                    **{"train_macro_avg_acc": accuracy, "class_acc": shares, "device_acc": shares, "group_acc": shares},
                    **{"checkpoint": f"step{stage}", "confusion": [[1] * 10] * 10, "widths": {"stem": [8, width]}},
                }
            )
        return {
            **{"stage": stage, "epoch": epoch + 1, "epochs": self._epochs, "training_iteration": self._epochs},
            **{"val_macro_avg_acc": accuracy, "macs": macs, "train_loss": 1.0, "val_loss": 1.0, "seconds": 0.0},
            **{"points": list(self._points), "done": self._epochs == 3, "finished": self._epochs == 3},
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "state.json").write_text(json.dumps(self._epochs))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self._epochs = json.loads((Path(checkpoint) / "state.json").read_text())


class Measuring(StudyWriter):
    """Prints a line at each mark."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._marks = [m for m in MARKS if m <= self.n_trials]
        self._since = (time.perf_counter(), 0)

    def on_step_end(self, iteration, trials, **info) -> None:
        super().on_step_end(iteration, trials, **info)
        ended = self._ended
        if self._marks and ended >= self._marks[0]:
            self._marks.pop(0)
            at, before = self._since
            each = (time.perf_counter() - at) / (ended - before)
            journal, table = self.journal.path.stat().st_size / 1e6, (self.folder / "points.csv").stat().st_size / 1e6
            print(
                f"{ended:6d} trials: {1e3 * each:6.1f} ms a trial since the last mark, {1e3 * each / 3:5.1f} ms a "
                f"result, driver {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f} MB, journal "
                f"{journal:5.1f} MB, points.csv {table:5.1f} MB written in {self._table_took:.2f} s",
                flush=True,
            )
            self._since = (time.perf_counter(), ended)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--scheduler", default="mo_asha")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.environ |= {"TUNE_GLOBAL_CHECKPOINT_S": "1000000000", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    os.environ |= {"TUNE_DISABLE_STRICT_METRIC_CHECKING": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_worker_niceness": "0"}
    space = load_space("kd_prune")
    config = compose([*space.base, "train.epochs=2", "prune.epochs=1"])
    manifest = {
        **{"num_samples": options.trials, "remote": None, "scheduler": options.scheduler, "sampler": options.sampler},
        **{"seed": 0, "seeds_per_config": 1, "warm_start": [], "cpus_per_trial": 1, "gpus_per_trial": 0},
        **{"max_concurrent": 2, "confirmations": []},
    }
    quiet = Console(quiet=True)
    with tempfile.TemporaryDirectory(prefix="scale-") as made:
        folder = Path(made) / "study"
        ray.init(num_cpus=2, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        journal = Journal(folder)
        journal.add("run", command="scale")
        writer = Measuring(folder, journal, options.trials, quiet)
        started = time.perf_counter()
        search(folder, space, config, manifest, journal, writer, quiet, Simulated)
        took = time.perf_counter() - started
        ray.shutdown()
        each_ms = took / options.trials * 1e3
        print(f"{options.trials} trials in {took:.0f} s, {journal.log.counts()}, {each_ms:.1f} ms each")
        resumed = time.perf_counter()
        again = Journal(folder)
        read = time.perf_counter() - resumed
        FeasibleOptunaSearch(space, {}, NetworkGate(TrialConfig.flat(config)), events=again)
        print(f"resume: {read:.1f} s to read the journal, {time.perf_counter() - resumed - read:.1f} s to tell Optuna")
    return 0


if __name__ == "__main__":
    sys.exit(main())
