"""Measure time per trial, memory and file sizes of the driver in a study with 10,000 simulated trials.

    python tests/bench/scale.py                     # 10,000 trials of 3 results
    python tests/bench/scale.py --trials 1000 --sampler random

Searcher, feasibility check, scheduler, journal, tables and Ray are those of `tune/run.py`. The training is replaced by
a formula, which takes almost no time. The last lines show the time to resume the study, and whether the replayed
sampler equals the one of the search; if not, the exit status is 1.
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

from analysis.manifest import Requested, Resolved, StudyManifest
from search_spaces import load_space
from trainables.config.compose import compose
from tune.driver import Search
from tune.search.optuna_study import OBJECTIVES
from tune.study.access import StudyAccess
from tune.study.events import Event, TrialEnded
from tune.study.journal import read_events, segments
from tune.study.retry import Retry

# numbers of ended trials at which a line is printed
MARKS = (100, 500, 1_000, 2_500, 5_000, 7_500, 10_000)


class Simulated(rt.Trainable):
    """Ray Trainable that computes its results by a formula: two dense epochs, then one prune step with one epoch.

    Its checkpoint is a file with the number of epochs.
    """

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


class Marks:
    """Reducer that prints time, memory and file sizes when the number of ended trials reaches a value in MARKS."""

    def __init__(self, search: Search, folder: Path):
        self._search, self._folder = search, folder
        self._since = (time.perf_counter(), 0)

    def apply(self, event: Event) -> None:
        ended = self._search.log.state.n_ended
        if isinstance(event, TrialEnded) and ended in MARKS:
            since, before = self._since
            each = (time.perf_counter() - since) / (ended - before)
            journal = sum(s.path.stat().st_size for s in segments(self._folder)) / 1e6
            points = self._folder / "points.csv"
            table = points.stat().st_size / 1e6 if points.exists() else 0.0
            print(
                f"{ended:6d} trials: {1e3 * each:6.1f} ms per trial since the line above, {1e3 * each / 3:5.1f} ms per "
                f"result, driver {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f} MB, journal "
                f"{journal:5.1f} MB, points.csv {table:5.1f} MB written in {self._search.tables.table_took_s:.2f} s",
                flush=True,
            )
            self._since = (time.perf_counter(), ended)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help="number of trials (default: 10000)")
    parser.add_argument("--sampler", default="tpe", help="Optuna sampler, as in tune/run.py (default: tpe)")
    parser.add_argument("--scheduler", default="mo_asha", help="early stopping, as in tune/run.py (default: mo_asha)")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.environ |= {"TUNE_GLOBAL_CHECKPOINT_S": "1000000000", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    os.environ |= {"TUNE_DISABLE_STRICT_METRIC_CHECKING": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_worker_niceness": "0"}
    space = load_space("kd_prune")
    config = compose([*space.base, "train.epochs=2", "prune.epochs=1"])
    with tempfile.TemporaryDirectory(prefix="scale-") as made:
        folder = Path(made) / "study"
        folder.mkdir()
        requested = {"num_samples": options.trials, "sampler": options.sampler, "scheduler": options.scheduler}
        manifest = StudyManifest(
            Requested("study", command="scale", max_concurrent=2, **requested),
            Resolved(str(folder), space=space.as_dict(), config=config.flat(), objectives=dict(OBJECTIVES)),
        )
        ray.init("local", num_cpus=2, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        retry, quiet = Retry(print), Console(quiet=True)
        search = Search(StudyAccess(folder), manifest, space, retry, quiet)
        search.begin(confirm=None)
        search.log.attach(Marks(search, folder))
        started = time.perf_counter()
        search.run(Simulated)
        duration_s = time.perf_counter() - started
        search.journal.close()
        ray.shutdown()
        each_ms = duration_s / options.trials * 1e3
        print(f"{options.trials} trials in {duration_s:.0f} s, {search.log.state.counts()}, {each_ms:.1f} ms per trial")
        resumed = time.perf_counter()
        n_events = sum(1 for _ in read_events(folder))
        read_s = time.perf_counter() - resumed
        again = Search(StudyAccess(folder), manifest, space, retry, quiet)
        again.journal.close()
        print(
            f"resume: {read_s:.1f} s to read {n_events} events, "
            f"{time.perf_counter() - resumed - read_s:.1f} s to read and replay them into all reducers"
        )
        same = again.sampler.digest() == search.sampler.digest()
        print(f"the replayed sampler {'equals' if same else 'DIFFERS FROM'} the sampler of the search")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
