"""How good the search is: hypervolume against epochs trained, ours against others, over many seeds. Nothing is trained.

    python tests/bench/search_quality.py --seeds 20 [--problems recorded,concave,convex,gaps] [--out FOLDER]
    python -m venv SYNE && SYNE/bin/pip install syne-tune       # for the MOASHA arms: --syne SYNE/bin/python

    ours           FeasibleOptunaSearch behind the gate, mo_asha: what `python tune/run.py` does by default
    ours_shared    the same where trials share dense parents: their epochs are counted once
    stock          Ray's OptunaSearch (two objectives) with Ray's ASHAScheduler on accuracy, as they come
    stock_tuned    the same with the grace period and factor of ours
    random         random configurations, trained to the end
    moasha         Syne Tune's MOASHA as it comes;  moasha_tuned: with the grace period and factor of ours

Every arm gets the points of all stages. A configuration that fits the limits at no stage costs its epochs and adds
nothing. Four workers; an arm ends when it has trained `--epochs`. `speed-up`: epochs the stock arm needs to its final
mean hypervolume over those an arm needs to the same, with a 95 % bootstrap interval over seeds; `work` counts an epoch
by its MACs.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pandas as pd
from problems import BOUNDS, Problem, key_of, recorded, synthetic
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from simulate import Arm, Trace, simulate

from tune.schedulers import build_scheduler
from tune.search import OBJECTIVES, FeasibleOptunaSearch, Verdict

WIDER = 1  # times the budget that ours may train, to see when it gets there


class RayArm:
    """A searcher and a scheduler of Ray's kind."""

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

    def told(self, name: str, result: dict[str, Any]) -> bool:
        decision = self.scheduler.on_trial_result(None, self._trials[name], result)  # type: ignore[arg-type]
        return decision == TrialScheduler.CONTINUE

    def ended(self, name: str, result: dict[str, Any]) -> None:
        if result["done"]:
            self.scheduler.on_trial_complete(None, self._trials[name], result)  # type: ignore[arg-type]
        self.searcher.on_trial_complete(name, result)


class SyneArm:
    """MOASHA in another interpreter (tests/bench/syne_moasha.py)."""

    def __init__(self, problem: Problem, python: str, seed: int, **options: Any):
        self.problem = problem
        script = Path(__file__).parent / "syne_moasha.py"
        self._child = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        space: dict[str, Any] = {}
        for key, spec in (problem.space.parameters | problem.space.auxiliary).items():
            if "each" in spec:
                most = problem.space.auxiliary[spec["each"]]["int"][1]
                space |= {f"{key}[{i}]": next(iter(spec["item"].items())) for i in range(most)}
            else:
                kind, arguments = next(iter(spec.items()))
                space[key] = kind, [json.dumps(v) for v in arguments] if kind == "choice" else arguments
        self._say({"space": space, "seed": seed, "max_t": problem.max_epochs, **options}, answered=False)

    def _say(self, question: dict[str, Any], answered: bool = True) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        return json.loads(self._child.stdout.readline()) if answered else None

    def ask(self, name: str) -> dict[str, Any] | None:
        drawn, values = self._say({"ask": name}), {}
        for key, spec in self.problem.space.parameters.items():
            if "each" in spec:
                values[key] = [drawn[f"{key}[{i}]"] for i in range(drawn[spec["each"]])]
            else:
                values[key] = json.loads(drawn[key]) if "choice" in spec else drawn[key]
        return values

    def told(self, name: str, result: dict[str, Any]) -> bool:
        return self._say({"told": name, "result": self._figures(result)})

    def ended(self, name: str, result: dict[str, Any]) -> None:
        self._say({"ended": name, "result": self._figures(result) if result["done"] else None})

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

    searcher = FeasibleOptunaSearch(problem.space, {}, gate, sampler=sampler, seed=seed)
    return RayArm(problem, searcher, build_scheduler(scheduler, problem.dense_epochs, problem.space))


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
        return {"grace_period": max(4, problem.dense_epochs // 8), "reduction_factor": 2}

    found: dict[str, Callable[[Problem, int], Arm]] = {
        "ours": ours,
        "ours_shared": ours,
        "stock": stock,
        "stock_tuned": lambda problem, seed: stock(problem, seed, **tuned(problem)),
        "random": random,
        # what each part of ours brings
        "gate_fifo": lambda problem, seed: ours(problem, seed, "fifo"),
        "gate_asha": lambda problem, seed: ours(problem, seed, "asha"),
        "gate_random": lambda problem, seed: ours(problem, seed, "mo_asha", "random"),
    }
    if syne:
        found["moasha"] = lambda problem, seed: SyneArm(problem, syne, seed)
        found["moasha_tuned"] = lambda problem, seed: SyneArm(problem, syne, seed, **tuned(problem))
    return found


def measure(problem: Problem, make: Callable[[Problem, int], Arm], seed: int, budget: int, shared: bool) -> Trace:
    arm = make(problem, seed)
    trace = simulate(problem, arm, budget, shared=shared)
    if isinstance(arm, SyneArm):
        arm.close()
    return trace


def steps(traces: list[Trace], budget: int) -> np.ndarray:
    """Hypervolume after 0, 1, ..., `budget` epochs: `[seeds, budget + 1]`."""
    curves = np.zeros((len(traces), budget + 1))
    for row, trace in zip(curves, traces, strict=True):
        for epochs, value in zip(trace.epochs, trace.hypervolume, strict=True):
            row[int(epochs) :] = value
    return curves


def speed_up(stock: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Of `other` over `stock` (`[seeds, epochs]` both), with its interval."""

    def ratio(chosen: np.ndarray) -> float:
        reference, mean = stock[chosen].mean(axis=0), other[chosen].mean(axis=0)
        target = reference[-1]
        if mean[-1] < target:
            return float("nan")  # not within the budget
        return float(np.argmax(reference >= target) / np.argmax(mean >= target))

    n = len(stock)
    drawn = [ratio(rng.integers(n, size=n)) for _ in range(1000)]
    drawn = [0.0 if np.isnan(r) else r for r in drawn]
    return ratio(np.arange(n)), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=20)
    p.add_argument("--epochs", type=int, default=600, help="that an arm trains (default 600)")
    p.add_argument("--problems", default=",".join(["recorded", *BOUNDS]))
    p.add_argument("--arms", help="default: all that can run")
    p.add_argument("--syne", help="Python of an environment with syne-tune; without it its arms are left out")
    options = p.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not options.syne:
        print(
            "without --syne PYTHON: no arm of Syne Tune's MOASHA (pip install syne-tune in an environment of its own)"
        )
    makers = arms(options.syne)
    chosen = options.arms.split(",") if options.arms else list(makers)
    for name in options.problems.split(","):
        problem = recorded() if name == "recorded" else synthetic(name)
        rows, curves = [], {}
        for arm in chosen:
            traces = [
                measure(problem, makers[arm], s, options.epochs, arm == "ours_shared") for s in range(options.seeds)
            ]
            curves[arm] = steps(traces, options.epochs)
            row = {"arm": arm} | {
                k: np.mean([getattr(t, k) for t in traces])
                for k in ("trials", "stopped", "infeasible", "infeasible_epochs")
            }
            row |= {f"hv@{f:.0%}": curves[arm][:, int(f * options.epochs)].mean() for f in (0.25, 0.5, 1)}
            row["sd"] = curves[arm][:, -1].std(ddof=1)
            rows.append(row)
        table = pd.DataFrame(rows).set_index("arm")
        for against in ("stock", "stock_tuned"):
            if against in curves:
                table[f"x_{against}"] = [
                    "{:.2f} ({:.2f}-{:.2f})".format(*speed_up(curves[against], curves[arm], np.random.default_rng(0)))
                    for arm in chosen
                ]
        print(f"\n{name}\n{table.to_string(float_format='{:.3f}'.format)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
