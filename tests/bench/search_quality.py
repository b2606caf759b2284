"""Quality of the search: hypervolume over trained epochs, ours and others, for many seeds, in simulated studies.

    python tests/bench/search_quality.py --seeds 20 [--problems recorded,concave,convex,gaps] [--out FILE.csv]
    python -m venv SYNE && SYNE/bin/pip install syne-tune       # for the MOASHA arms: --syne SYNE/bin/python

    ours           FeasibleSampler with the feasibility check, mo_asha: the defaults of `python tune/run.py`
    ours_shared    the same with shared dense parents, whose epochs are counted once
    stock          Ray's OptunaSearch (two objectives) with Ray's ASHAScheduler on accuracy, default settings
    stock_tuned    the same with our grace period and reduction factor
    random         random configurations, trained to the end
    moasha         Syne Tune's MOASHA with default settings;  moasha_tuned: with our grace period and reduction factor
    gate_...       ours with another scheduler or sampler, to measure the effect of each part

The points of all stages count for every arm, also those of a trial that it stops later. A configuration that exceeds
the limits at every stage costs its epochs and adds nothing. There are four workers. An arm ends after `--epochs`.

    hv@25%         mean hypervolume after a quarter of the epochs, divided by that of the best possible front
    x_stock        speed-up over stock: epochs until stock reaches its final mean hypervolume, divided by the epochs
                   until the arm reaches it, with a 95 % bootstrap interval over seeds; nan: never reached, which counts
                   as 0 in the interval
    w_stock        the same, with each epoch weighted by its MACs

tests/bench/data/search_quality.csv contains the tables of 20 seeds.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from arms import SyneArm, arms
from problems import BOUNDS, Problem, recorded, synthetic
from simulate import Trace, simulate

COUNTS = ("trials", "stopped", "infeasible", "infeasible_epochs")
POINTS = 2000  # number of points of a curve


@cache
def problem_of(name: str) -> Problem:
    return recorded() if name == "recorded" else synthetic(name)


def measure(seed: int, problem: str, arm: str, budget: int, syne: str | None) -> Trace:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", message="Define-by-run")  # warning of Ray that a suggestion took long
    made = arms(syne)[arm](problem_of(problem), seed)
    trace = simulate(problem_of(problem), made, budget, shared=arm == "ours_shared")
    if isinstance(made, SyneArm):
        made.close()
    return trace


def curves_of(traces: Sequence[Trace], cost: str, budget: float) -> np.ndarray:
    """Return the hypervolume at POINTS equal steps of a cost up to `budget`: `[seeds, POINTS + 1]`."""
    curves = np.zeros((len(traces), POINTS + 1))
    for curve, trace in zip(curves, traces, strict=True):
        for spent, value in zip(getattr(trace, cost), trace.hypervolume, strict=True):
            curve[int(np.ceil(spent / budget * POINTS)) :] = value
    return curves


def speed_up(stock: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return the speed-up of `other` over `stock` (both `[seeds, POINTS + 1]`) and the ends of its interval."""

    def ratio(chosen: np.ndarray) -> float:
        reference, mean = stock[chosen].mean(axis=0), other[chosen].mean(axis=0)
        target = reference[-1]
        return np.argmax(reference >= target) / np.argmax(mean >= target) if mean[-1] >= target else np.nan

    rng, n = np.random.default_rng(0), len(stock)
    drawn = np.nan_to_num([ratio(rng.integers(n, size=n)) for _ in range(1000)])
    return float(ratio(np.arange(n))), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def table_of(problem: str, traces: dict[str, list[Trace]], budget: int) -> pd.DataFrame:
    """Return the table of results, with one row per arm."""
    work = max(t.spent_work for ts in traces.values() for t in ts)
    by_epochs = {arm: curves_of(ts, "epochs", budget) for arm, ts in traces.items()}
    by_work = {arm: curves_of(ts, "work", work) for arm, ts in traces.items()}
    rows: list[dict[str, Any]] = []
    for arm, own in traces.items():
        curve = by_epochs[arm]
        row: dict[str, Any] = {"problem": problem, "arm": arm, "seeds": len(own)}
        row |= {count: np.mean([getattr(t, count) for t in own]) for count in COUNTS}
        row |= {f"hv@{share}%": curve[:, share * POINTS // 100].mean() for share in (25, 50, 100)}
        row["sd"] = curve[:, -1].std(ddof=1) if len(own) > 1 else np.nan
        for stock in ("stock", "stock_tuned"):
            for letter, curves in (("x", by_epochs), ("w", by_work)):
                if stock in curves:
                    found = speed_up(curves[stock], curves[arm])
                    row[f"{letter}_{stock}"] = "{:.2f} ({:.2f} to {:.2f})".format(*found)
        rows.append(row)
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=20, help="number of seeds (default: 20)")
    p.add_argument("--epochs", type=int, help="number of epochs per arm (default: 300 for recorded, else 600)")
    p.add_argument("--problems", default=",".join(["recorded", *BOUNDS]), help="problems (default: %(default)s)")
    p.add_argument("--arms", help="arms to run, separated by commas (default: all that can run)")
    p.add_argument("--syne", help="Python of an environment with syne-tune; without it, its arms are omitted")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of processes (default: one per core)")
    p.add_argument("--out", type=Path, help="csv file for all tables")
    options = p.parse_args(argv)
    if not options.syne:
        print("--syne is not set: the arms of Syne Tune's MOASHA are omitted (--help shows how to install it)")
    chosen = options.arms.split(",") if options.arms else list(arms(options.syne))
    tables = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for name in options.problems.split(","):
            traces, budget = {}, options.epochs or (300 if name == "recorded" else 600)
            for arm in chosen:
                one = partial(measure, problem=name, arm=arm, budget=budget, syne=options.syne)
                traces[arm] = list(pool.map(one, range(options.seeds)))
            tables.append(table_of(name, traces, budget))
            shown = tables[-1].drop(columns=["problem", "seeds"]).to_string(index=False, float_format="{:.3f}".format)
            print(f"\n{name}, {options.seeds} seeds, {budget} epochs\n{shown}", flush=True)
            if options.out:
                pd.concat(tables).round(4).to_csv(options.out, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
