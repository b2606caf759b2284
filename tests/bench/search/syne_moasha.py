"""Run Syne Tune's MOASHA as a child process of tests/bench/search/search_quality.py, in its own Python environment.

    python -m venv FOLDER && FOLDER/bin/pip install syne-tune

Each request is a JSON line on stdin, each answer a JSON line on stdout. The first request sets up MOASHA (search space,
seed, arguments of MOASHA) and has no answer:

    {"space": {KEY: RANGE, ...}, "seed": ..., "max_t": ..., ...}

RANGE is ["choice", [value, ...]], ["uniform", [low, high]] or ["int", [low, high]].

Further requests, where NAME is the name of a trial, and their answers:

    {"ask": NAME}                                  the configuration of the new trial
    {"report": NAME, "result": {...}}              true: the trial continues; false: stop it
    {"end": NAME, "result": {...}}                 null; the trial is complete
    {"end": NAME, "result": null}                  null; the trial was stopped
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
    np.random.seed(start.pop("seed"))  # MOASHA uses the global random generator of NumPy
    space = {name: KINDS[kind](arguments) for name, (kind, arguments) in start.pop("space").items()}
    scheduler = MOASHA(space, metrics=["error", "macs"], time_attr="epochs", **start)
    trials: dict[str, Trial] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if name := request.get("ask"):
            config = scheduler.suggest().config
            trials[name] = Trial(trial_id=len(trials), config=config, creation_time=datetime.datetime.now())
            scheduler.on_trial_add(trials[name])
            answer = config
        elif name := request.get("report"):
            answer = scheduler.on_trial_result(trials[name], request["result"]) == "CONTINUE"
        else:
            trial = trials[request["end"]]
            if request["result"] is None:
                scheduler.on_trial_remove(trial)
            else:
                scheduler.on_trial_complete(trial, request["result"])
            answer = None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
