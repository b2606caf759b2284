"""Kill drivers of studies (SIGKILL) at critical and at random moments; check that no result is lost or counted twice.

    python tests/bench/chaos.py                 # 36 kills in 6 studies of 24 trials, about 15 minutes on 2 cores
    python tests/bench/chaos.py --kills 3 --trials 4 --studies 1

All drivers use one Ray cluster, so that a resume takes seconds. The driver of each study is killed several times, and
resumed after each kill. The moments of the kills are, in turn:

    start        before the driver writes its first event
    write        while a checkpoint is written (its folder exists, but not seal.json, which is written last)
    report       when a checkpoint is complete and the next result has not arrived
    random       after a random time

Then the study runs to its end. Studies 0, 2, 4, ... have one worker, and their trials do not share dense training; the
points must be equal to those of a study that was not killed. Studies 1, 3, 5, ... have two workers, and trials that
differ only in pruning share their dense training. The exit status is 1 if a check fails.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import ray
from ray.cluster_utils import Cluster

from tests.support.paths import ROOT
from tests.support.tau import make_tau
from tune.search.halving import build_rungs
from tune.study.events import DriverFinished, DriverStarted, EpochReported, TrialEnded
from tune.study.journal import read_events, read_state, segments

INTERVAL_S = 0.5  # longer than an epoch
EPOCHS = 8  # dense epochs; the rung is at epoch 6
FREE = """
base: [student=rep_mobile, student.base_channels=8, distill.kd_alpha=1]
parameters:
  train.lr: {loguniform: [0.002, 0.02]}
  prune.ratios: {each: prune.steps, item: {uniform: [0.2, 0.4]}}
auxiliary:
  prune.steps: {int: [1, 2]}
"""
SHARED = FREE.replace("{loguniform: [0.002, 0.02]}", "{choice: [0.002, 0.005, 0.01]}")
ENDED = ("complete", "stopped early")
MOMENTS = ("start", "random", "write", "random", "report", "random")


class Bench:
    def __init__(self, folder: Path, address: str, n_trials: int):
        self.folder, self.address, self.n_trials = folder, address, n_trials
        self.dataset = make_tau(folder / "TAU-urban-acoustic-scenes-2022-mobile-development")
        for name, text in (("free", FREE), ("shared", SHARED)):
            (folder / f"{name}.yaml").write_text(text)

    def start(self, name: str, one_worker: bool) -> subprocess.Popen:
        words = [
            *("--space", str(self.folder / ("free.yaml" if one_worker else "shared.yaml"))),
            *("--name", name, "--resume", "auto", "--storage", str(self.folder / "runs"), "--address", self.address),
            *("--num-samples", str(self.n_trials), "--max-concurrent", "1" if one_worker else "2"),
            *("--checkpoint-interval", str(INTERVAL_S)),
            f"--dataset_dir={self.dataset}",
            *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
            *(f"train.epochs={EPOCHS}", "train.batch_size=16", "prune.epochs=2"),
        ]
        return subprocess.Popen(
            [sys.executable, "tune/run.py", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"WANDB_MODE": "disabled"},
        )

    def kill(self, process: subprocess.Popen, study: Path, moment: str, rng: random.Random) -> bool:
        """Kill the driver `process` of `study` at `moment` (see MOMENTS); return False if the driver ended before."""
        before, marks = len(segments(study)), self._checkpoints(study)
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if moment == "start" and (study / "study.json").exists():
                break
            if moment == "random" and len(segments(study)) > before:
                time.sleep(rng.uniform(0, 8))
                break
            new = self._checkpoints(study).items() - marks.items()
            if any(sealed == (moment == "report") for _, sealed in new) and moment in ("write", "report"):
                break
            time.sleep(0.0005)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return not ended

    @staticmethod
    def _checkpoints(study: Path) -> dict[str, bool]:
        """Return the checkpoint folders of the newest driver: path -> True if the checkpoint is complete."""
        newest = max((study / "ray").glob("run*"), default=None)
        found = newest.glob("*/checkpoint_*") if newest else []
        return {str(p): (p / "seal.json").exists() for p in found}


def rows(study: Path) -> list[dict[str, str]]:
    with (study / "points.csv").open() as stream:
        return list(csv.DictReader(stream))


def check(study: Path, n_trials: int) -> Iterator[str]:
    """Yield a message for each fault of a study whose driver was killed and which has ended.

    Checked: all `n_trials` trials ended without failure, points.csv has each point once, no trial has events after its
    end, the epochs that a trial repeats after a kill took at most INTERVAL_S, the newest of them aside, and the rungs
    equal those rebuilt from the journal.
    """
    state = read_state(study)
    if sorted(state.trials) != [f"t{i:04d}" for i in range(n_trials)]:
        yield f"the study has the trials {sorted(state.trials)}; expected t0000 to t{n_trials - 1:04d}"
    yield from (f"{t.name} is {t.status}: {t.reason}" for t in state.trials.values() if t.status not in ENDED)
    table = Counter((row["trial_id"], row["step"]) for row in rows(study))
    if set(table) != {
        (t.name, str(p["step"])) for t in state.trials.values() for p in t.points
    } or table.total() != len(table):
        yield f"points.csv has {table.total()} rows and {len(table)} points; expected each point of the journal once"
    ended: set[str] = set()
    seconds: dict[tuple[str, int], float] = {}  # trial, epoch -> its duration when it was last reported
    lost: dict[str, list[float]] = {}  # trial -> durations of the epochs trained again since the last driver started
    rungs, digest = build_rungs("mo_asha", EPOCHS), None
    assert rungs is not None
    for event in read_events(study):
        name = getattr(event, "trial", "")
        rungs.apply(event)
        if isinstance(event, DriverStarted):
            lost = {}
        if name in ended:
            yield f"trial {name} has events after its end"
        if isinstance(event, EpochReported):
            before = seconds.get((name, event.epochs))
            if before is not None:
                lost.setdefault(name, []).append(before)
                if sum(lost[name][:-1]) > INTERVAL_S:
                    yield f"after one kill, trial {name} repeated epochs of {lost[name]} s; expected {INTERVAL_S} s"
            seconds[name, event.epochs] = event.figures.get("seconds") or 0.0
        if isinstance(event, TrialEnded):
            ended.add(name)
        if isinstance(event, DriverFinished):
            digest = event.digests["rungs"]
    if digest != rungs.digest():
        yield f"the last driver had the rungs {digest}; expected {rungs.digest()}, rebuilt from the journal"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=36, help="number of kills in all studies (default: 36)")
    parser.add_argument("--trials", type=int, default=24, help="number of trials of each study (default: 24)")
    parser.add_argument("--studies", type=int, default=6, help="number of studies that are killed (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the times of kills (default: 0)")
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    rng, failed, moments, repeated = random.Random(options.seed), [], Counter(), []
    try:
        with tempfile.TemporaryDirectory(prefix="chaos-") as made:
            bench = Bench(Path(made), str(cluster.address), options.trials)
            reference = bench.start("through", one_worker=True)
            output = reference.communicate()[0].decode()
            if reference.returncode:
                print(output)
                return 1
            expected = rows(bench.folder / "runs" / "through")
            for i in range(options.studies):
                study, one = bench.folder / "runs" / f"study{i}", i % 2 == 0
                kills = options.kills // options.studies + (i < options.kills % options.studies)
                for k in range(kills):
                    moment = MOMENTS[(i + k) % len(MOMENTS)] if k else MOMENTS[0]
                    done = bench.kill(bench.start(study.name, one), study, moment, rng)
                    moments[moment if done else "came too late"] += 1
                last = bench.start(study.name, one)
                output = last.communicate()[0].decode()
                wrong = list(check(study, options.trials)) if last.returncode == 0 else [output[-2000:]]
                if one and not wrong and rows(study) != expected:
                    wrong.append("points differ from those of the study that was not killed")
                state = read_state(study)
                repeated.append(sum(t.repeated for t in state.trials.values()))
                trained = sum(t.epochs for t in state.trials.values())
                print(
                    f"study {i}: {'one worker' if one else 'two workers, shared dense training'}, {kills} kills, "
                    f"{state.drivers} drivers with events, {state.counts()}, {trained} epochs, {repeated[-1]} of them "
                    f"repeated: {wrong or 'no faults'}",
                    flush=True,
                )
                failed += wrong
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps({"kills": dict(moments), "epochs repeated": repeated, "wrong": failed}))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
