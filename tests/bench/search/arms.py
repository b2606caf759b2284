"""The search methods that search_quality.py in this folder compares; each is an `Arm` of simulate.py.

make = arms(syne=None)["ours"]      # "ours" is the search of tune/run.py, "stock" that of Ray Tune, ...
arm = make(problem, seed)
"""

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from problems import Problem, key_of
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from simulate import Arm

from tune.search.feasibility import Verdict
from tune.search.halving import RUNG, build_rungs
from tune.search.optuna_study import OBJECTIVES
from tune.search.sampler import FeasibleSampler
from tune.search.session import SearchSession
from tune.study.log import StudyLog


class SessionArm:
    """Arm that searches like tune/run.py: a `SearchSession` with feasibility check, sampler and rungs."""

    def __init__(self, problem: Problem, session: SearchSession):
        self.problem, self.session = problem, session
        self._names: dict[str, str] = {}  # name in the simulation -> name in the study

    def ask(self, name: str) -> dict[str, Any] | None:
        trial = self.session.next_trial()
        if trial is None:
            return None
        self._names[name] = trial.name
        return {key: trial.values[key] for key in self.problem.space.parameters}

    def report(self, name: str, result: dict[str, Any]) -> bool:
        return not self.session.report(self._names[name], result)

    def end(self, name: str, result: dict[str, Any]) -> None:
        self.session.report(self._names[name], result)  # no effect if the session has already stopped the trial


class RayArm:
    """Arm that consists of a Ray Tune searcher and a Ray Tune scheduler."""

    def __init__(self, problem: Problem, searcher: Any, scheduler: TrialScheduler):
        self.problem, self.searcher, self.scheduler = problem, searcher, scheduler
        self._trials: dict[str, Any] = {}

    def ask(self, name: str) -> dict[str, Any] | None:
        config = self.searcher.suggest(name)
        if not isinstance(config, dict):
            return None
        self._trials[name] = SimpleNamespace(trial_id=name, config=config | {"trial": config.get("trial", name)})
        self.scheduler.on_trial_add(None, self._trials[name])  # type: ignore[arg-type]
        return {key: config[key] for key in self.problem.space.parameters}

    def report(self, name: str, result: dict[str, Any]) -> bool:
        self.searcher.on_trial_result(name, result)
        decision = self.scheduler.on_trial_result(None, self._trials[name], result)  # type: ignore[arg-type]
        return decision == TrialScheduler.CONTINUE

    def end(self, name: str, result: dict[str, Any]) -> None:
        if result["done"]:
            self.scheduler.on_trial_complete(None, self._trials[name], result)  # type: ignore[arg-type]
        self.searcher.on_trial_complete(name, result)


class SyneArm:
    """Arm that runs MOASHA of Syne Tune in another Python interpreter, as a child process (syne_moasha.py)."""

    def __init__(self, problem: Problem, python: str, seed: int, **options: Any):
        self.problem = problem
        script = Path(__file__).parent / "syne_moasha.py"
        self._child = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        space: dict[str, Any] = {}
        for key, spec in {**problem.space.parameters, **problem.space.auxiliary}.items():
            if "each" in spec:
                most = problem.space.auxiliary[spec["each"]]["int"][1]
                space |= {f"{key}[{i}]": next(iter(spec["item"].items())) for i in range(most)}
            else:
                kind, arguments = next(iter(spec.items()))
                space[key] = kind, [json.dumps(v) for v in arguments] if kind == "choice" else arguments
        self._send({"space": space, "seed": seed, "max_t": problem.max_epochs, **options}, has_answer=False)

    def _send(self, request: dict[str, Any], has_answer: bool = True) -> Any:
        """Send a request to the child process; return its answer, or None if the request has no answer."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return json.loads(self._child.stdout.readline()) if has_answer else None

    def ask(self, name: str) -> dict[str, Any] | None:
        drawn, values = self._send({"ask": name}), {}
        for key, spec in self.problem.space.parameters.items():
            if "each" in spec:
                values[key] = [drawn[f"{key}[{i}]"] for i in range(drawn[spec["each"]])]
            else:
                values[key] = json.loads(drawn[key]) if "choice" in spec else drawn[key]
        return values

    def report(self, name: str, result: dict[str, Any]) -> bool:
        return self._send({"report": name, "result": self._figures(result)})

    def end(self, name: str, result: dict[str, Any]) -> None:
        self._send({"end": name, "result": self._figures(result) if result["done"] else None})

    @staticmethod
    def _figures(result: dict[str, Any]) -> dict[str, float]:
        return {"error": 1 - result["val_macro_avg_acc"], "macs": result["macs"], "epochs": result["epochs"]}

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def ours(problem: Problem, seed: int, scheduler: str = "mo_asha", sampler: str = "tpe") -> Arm:
    def gate(values: dict[str, Any]) -> Verdict:
        excess = problem.excess(values)
        return Verdict(key_of(values), excess, "over the limits at every stage" if excess > 0 else "")

    log, rungs = StudyLog(), build_rungs(scheduler, problem.dense_epochs)
    made = FeasibleSampler(problem.space, gate, sampler=sampler, seed=seed)
    log.attach(made, *([rungs] if rungs else []))
    return SessionArm(problem, SearchSession(log, made, rungs, scheduler))


def stock(problem: Problem, seed: int, **options: Any) -> Arm:
    scheduler = ASHAScheduler("training_iteration", "val_macro_avg_acc", "max", max_t=problem.max_epochs, **options)
    return RayArm(problem, _optuna(problem, optuna.samplers.TPESampler(seed=seed)), scheduler)


def _optuna(problem: Problem, sampler: optuna.samplers.BaseSampler) -> OptunaSearch:
    draw: Any = problem.space.sample
    return OptunaSearch(draw, metric=list(OBJECTIVES), mode=list(OBJECTIVES.values()), sampler=sampler)


def random(problem: Problem, seed: int) -> Arm:
    return RayArm(problem, _optuna(problem, optuna.samplers.RandomSampler(seed=seed)), FIFOScheduler())


def arms(syne: str | None) -> dict[str, Callable[[Problem, int], Arm]]:
    def tuned(problem: Problem) -> dict[str, Any]:
        return {"grace_period": math.ceil(RUNG * problem.dense_epochs), "reduction_factor": 2}

    found: dict[str, Callable[[Problem, int], Arm]] = {
        "ours": ours,
        "ours_shared": ours,
        "stock": stock,
        "stock_tuned": lambda problem, seed: stock(problem, seed, **tuned(problem)),
        "random": random,
        # our search with one part replaced, to measure the effect of each part
        "gate_fifo": lambda problem, seed: ours(problem, seed, "fifo"),
        "gate_asha": lambda problem, seed: ours(problem, seed, "asha"),
        "gate_random": lambda problem, seed: ours(problem, seed, "mo_asha", "random"),
    }
    if syne:
        found["moasha"] = lambda problem, seed: SyneArm(problem, syne, seed)
        found["moasha_tuned"] = lambda problem, seed: SyneArm(problem, syne, seed, **tuned(problem))
    return found
