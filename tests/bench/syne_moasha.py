"""Syne Tune's MOASHA behind a pipe, for tests/bench/search_quality.py, in an environment of its own:

    python -m venv FOLDER && FOLDER/bin/pip install syne-tune

A JSON line a question on stdin, a JSON line an answer on stdout. The first one sets everything up:

    {"space": {name: ["choice", [...]] | ["uniform", [low, high]] | ["int", [low, high]]}, "seed", "max_t", ...}
    {"ask": name} -> configuration;  {"told": name, "result": {...}} -> true: go on;  {"ended": name, "result": {...}}
"""

import datetime
import json
import sys

import numpy as np
from syne_tune.backend.trial_status import Trial  # pyright: ignore[reportMissingImports]
from syne_tune.config_space import choice, randint, uniform  # pyright: ignore[reportMissingImports]
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA  # pyright: ignore[reportMissingImports]

KINDS = {"choice": lambda members: choice(members), "uniform": lambda r: uniform(*r), "int": lambda r: randint(*r)}


def main() -> None:
    start = json.loads(sys.stdin.readline())
    np.random.seed(start.pop("seed"))  # what MOASHA draws from
    space = {name: KINDS[kind](arguments) for name, (kind, arguments) in start.pop("space").items()}
    scheduler = MOASHA(space, metrics=["error", "macs"], time_attr="epochs", **start)
    trials: dict[str, Trial] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if name := asked.get("ask"):
            config = scheduler.suggest().config
            trials[name] = Trial(trial_id=len(trials), config=config, creation_time=datetime.datetime.now())
            scheduler.on_trial_add(trials[name])
            answer = config
        elif name := asked.get("told"):
            answer = scheduler.on_trial_result(trials[name], asked["result"]) == "CONTINUE"
        else:
            trial = trials[asked["ended"]]
            if asked["result"] is None:
                scheduler.on_trial_remove(trial)
            else:
                scheduler.on_trial_complete(trial, asked["result"])
            answer = None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
