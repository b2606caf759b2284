"""Measure the time to draw a configuration, including the feasibility check, in a study with thousands of trials.

python tests/bench/ask_time.py              # CPU time of 100 draws after 5,000 ended trials, on one thread
"""

import argparse
import json
import random
import sys
import time

import numpy as np
import optuna
import torch

from search_spaces import load_space
from trainables.config.compose import compose
from tune.search.feasibility import NetworkGate, Verdict
from tune.search.sampler import FeasibleSampler
from tune.search.session import SearchSession
from tune.study.events import Event
from tune.study.log import StudyLog


def history(n_trials: int) -> list[Event]:
    """Return the events of a study with `n_trials` ended trials with random results; about half were stopped early."""
    events: list[Event] = []
    log = StudyLog(events.extend)
    gate = lambda values: Verdict(json.dumps(values), -0.5)  # noqa: E731
    sampler = FeasibleSampler(load_space("kd_prune"), gate, sampler="random")
    log.attach(sampler)
    session, rng = SearchSession(log, sampler, None, "fifo"), random.Random(0)
    for _ in range(n_trials):
        trial = session.next_trial()
        assert trial is not None
        accuracy, complete = rng.uniform(0.3, 0.6), rng.random() < 0.5
        steps = range(len(trial.values["prune.ratios"]) + 1 if complete else 1)
        points = [{"step": k, "val_macro_avg_acc": accuracy - k / 50, "macs": 4e6 / (k + 1)} for k in steps]
        for k in steps:
            ends = k == steps[-1]
            position = {"stage": k, "epoch": 1, "epochs": 8 + 3 * k, "done": ends, "finished": complete}
            session.report(trial.name, {**points[k], **position, "points": points[: k + 1]})
    return events


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5_000, help="number of ended trials (default: 5000)")
    parser.add_argument("--draws", type=int, default=100, help="number of measured draws (default: 100)")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    earlier = history(options.trials)
    space = load_space("kd_prune")
    base = compose(space.base).flat()
    for name in ("tpe", "nsga2", "random"):
        started = time.process_time()
        log, sampler = StudyLog(), FeasibleSampler(space, NetworkGate(base), sampler=name)
        log.attach(sampler)
        log.replay(earlier)
        resumed, times = time.process_time() - started, []
        for _ in range(options.draws):
            started = time.process_time()
            sampler.draw(log)
            times.append(time.process_time() - started)
        median, late, most = (1e3 * float(np.quantile(times, q)) for q in (0.5, 0.95, 1))
        print(
            f"sampler {name}: {options.trials} trials replayed in {resumed:.1f} s; CPU time of a draw: "
            f"median {median:.0f} ms, 95th percentile {late:.0f} ms, maximum {most:.0f} ms",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
