"""How long the searcher takes for a draw, gate included, when thousands of trials have ended.

python tests/bench/ask_time.py              # CPU seconds of 100 draws after 5,000 finished trials, on one thread
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
from trainables.config import compose
from tune.gate import NetworkGate
from tune.journal import Events
from tune.search import FeasibleOptunaSearch, Verdict


def history(n_trials: int) -> list[dict]:
    """The events of a study whose `n_trials` trials have ended, half of them early, with invented figures."""
    events = Events()
    written: list[dict] = []
    search = FeasibleOptunaSearch(
        load_space("kd_prune"), {}, lambda values: Verdict(json.dumps(values), -0.5), sampler="random", events=events
    )
    rng = random.Random(0)
    add = events.add
    events.add = lambda event, **values: written.append(add(event, **values)) or written[-1]  # type: ignore[method-assign]
    for i in range(n_trials):
        config = search.suggest(str(i))
        assert isinstance(config, dict)
        accuracy, complete = rng.uniform(0.3, 0.6), rng.random() < 0.5
        steps = range(len(config["prune.ratios"]) + 1 if complete else 1)
        points = [{"step": k, "val_macro_avg_acc": accuracy - k / 50, "macs": 4e6 / (k + 1)} for k in steps]
        for point in points:
            ends = point is points[-1]
            fields = {"stage": point["step"], "epochs": 8 + 3 * point["step"], "done": ends, "finished": complete}
            events.add("result", trial=config["trial"], point=point, **fields)
        search.on_trial_complete(str(i), points[-1] | {"points": points, "finished": complete})
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5_000)
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    earlier = history(options.trials)
    space = load_space("kd_prune")
    base = compose(space.base).flat()
    for sampler in ("tpe", "nsga2", "random"):
        started = time.process_time()
        search = FeasibleOptunaSearch(space, base, NetworkGate(base), sampler=sampler, events=Events(earlier))
        resumed, times = time.process_time() - started, []
        for i in range(options.draws):
            started = time.process_time()
            search.suggest(str(i))
            times.append(time.process_time() - started)
        median, late, most = (1e3 * float(np.quantile(times, q)) for q in (0.5, 0.95, 1))
        print(
            f"{sampler}: {options.trials} trials told in {resumed:.1f} s; a draw takes {median:.0f} ms (median), "
            f"{late:.0f} ms (95 %), {most:.0f} ms (most)",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
