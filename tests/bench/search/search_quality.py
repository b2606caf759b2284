"""Compare the search of tune/run.py with other search methods: hypervolume over trained epochs, in simulated studies.

    python tests/bench/search/search_quality.py --seeds 20 [--problems recorded,concave,convex,gaps] [--out FILE.csv]
    python -m venv SYNE && SYNE/bin/pip install syne-tune       # for the MOASHA arms: --syne SYNE/bin/python

Arms (search methods):

    ours           the defaults of tune/run.py: Optuna's TPE with the feasibility check, early stopping with mo_asha
    ours_shared    ours, but trials that differ only in pruning share their dense epochs, which are counted once
    stock          Ray's OptunaSearch (two objectives) with Ray's ASHAScheduler on accuracy, default settings
    stock_tuned    stock with the grace period and the reduction factor of ours
    random         random configurations, trained to the end
    moasha         Syne Tune's MOASHA with default settings
    moasha_tuned   moasha with the grace period and the reduction factor of ours
    gate_fifo      ours without early stopping
    gate_asha      ours with early stopping on accuracy alone
    gate_random    ours with random sampling instead of TPE

Every measured point counts, also if its trial is stopped at a later stage. If all networks of a configuration exceed
the limits, its epochs are counted, but it adds nothing to the hypervolume. There are four workers. An arm ends after
`--epochs` epochs.

Columns of the printed table, one row per arm:

    trials, stopped          mean number of trials, and of trials that were stopped early
    infeasible               mean number of trials whose networks all exceed the limits; infeasible_epochs: their epochs
    hv@25%, hv@50%, hv@100%  mean hypervolume after this share of the epochs, divided by that of the best possible front
    sd                       standard deviation of the final hypervolume over seeds
    x_stock                  speed-up over stock: number of epochs until stock reaches its final mean hypervolume,
                             divided by the number until the arm reaches it; with a 95 % bootstrap interval over seeds.
                             nan: the arm never reaches it (counts as 0 in the interval)
    w_stock                  x_stock with each epoch weighted by its MACs
    x_/w_stock_tuned         the same against stock_tuned

tests/bench/search/data/search_quality.csv contains the results for 20 seeds (those of moasha are older, with equal
settings; moasha_tuned was not run with the present rungs).
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
POINTS = 2000  # number of steps of a curve


@cache
def problem_of(name: str) -> Problem:
    return recorded() if name == "recorded" else synthetic(name)


def measure(seed: int, problem: str, arm: str, budget: int, syne: str | None) -> Trace:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", message="Define-by-run")  # Ray warns that a suggestion took long
    made = arms(syne)[arm](problem_of(problem), seed)
    trace = simulate(problem_of(problem), made, budget, shared=arm == "ours_shared")
    if isinstance(made, SyneArm):
        made.close()
    return trace


def curves_of(traces: Sequence[Trace], cost: str, budget: float) -> np.ndarray:
    """Return the hypervolumes [seeds, POINTS + 1] at equal steps of a cost from 0 to `budget`.

    `cost` is a field of `Trace`: "epochs" or "work". There is one trace per seed.
    """
    curves = np.zeros((len(traces), POINTS + 1))
    for curve, trace in zip(curves, traces, strict=True):
        for spent, value in zip(getattr(trace, cost), trace.hypervolume, strict=True):
            curve[int(np.ceil(spent / budget * POINTS)) :] = value
    return curves


def speed_up(stock: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return the speed-up of `other` over `stock`, and the low and high end of its 95 % bootstrap interval over seeds.

    `stock` and `other` are hypervolume curves [seeds, POINTS + 1]. The speed-up is NaN if the mean of `other` never
    reaches the final mean of `stock`.
    """

    def ratio(chosen: np.ndarray) -> float:
        reference, mean = stock[chosen].mean(axis=0), other[chosen].mean(axis=0)
        target = reference[-1]
        return np.argmax(reference >= target) / np.argmax(mean >= target) if mean[-1] >= target else np.nan

    rng, n = np.random.default_rng(0), len(stock)
    drawn = np.nan_to_num([ratio(rng.integers(n, size=n)) for _ in range(1000)])
    return float(ratio(np.arange(n))), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def table_of(problem: str, traces: dict[str, list[Trace]], budget: int) -> pd.DataFrame:
    """Return the table of results of one problem, with one row per arm; `traces` has one trace per arm and seed."""
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
    p.add_argument("--syne", help="Python with syne-tune; needed for the arms moasha and moasha_tuned")
    p.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of processes (default: one per core)")
    p.add_argument("--out", type=Path, help="csv file to write, with the tables of all problems")
    options = p.parse_args(argv)
    if not options.syne:
        print("--syne is not set: moasha and moasha_tuned are omitted; --help shows how to install Syne Tune")
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
            print(f"\nproblem {name}, {options.seeds} seeds, {budget} epochs per arm\n{shown}", flush=True)
            if options.out:
                pd.concat(tables).round(4).to_csv(options.out, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
