"""Measure how long the report on a large study takes, how much memory it needs, and how large the page is.

    python -m tests.bench.report --trials 1000 --points 10

The study is invented: `--points` networks per trial, a learning curve for each trial and a confusion matrix for each
network. The last line is JSON: seconds to write all files, peak memory of the process in MB, size of the page in MB.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from analysis.outputs import write_report
from tests.support.example_study import rows, write_study, write_table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="number of trials (default: 1000)")
    parser.add_argument("--points", type=int, default=10, help="networks of each trial (default: 10)")
    parser.add_argument("--out", type=Path, help="folder in which the study is kept (default: a temporary one)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="report-") as temporary:
        folder = write(options.out or Path(temporary) / "study", options.trials, options.points)
        before = time.perf_counter()
        paths = write_report(folder)
        figures = {
            "points": options.trials * options.points,
            "seconds": round(time.perf_counter() - before, 1),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "page_mb": round(paths["html"].stat().st_size / 1e6, 2),
        }
    print(json.dumps(figures))
    return 0


def write(folder: Path, trials: int, points: int, epochs: int = 30) -> Path:
    """Write a study with `points` networks of each of `trials` trials; their accuracies and sizes are random."""
    rng = np.random.default_rng(0)
    dense = [row for row in rows(0, trials) if row["step"] == 0]
    made = []
    for row in dense:
        place = folder / "experiments" / row["trial_id"]
        place.mkdir(parents=True)
        ratios = json.dumps([round(float(r), 3) for r in rng.uniform(0.1, 0.4, points - 1)])
        networks = []
        for step in range(points):
            kept = 0.8**step
            share = float(np.clip(0.3 + 0.06 * np.log10(row["macs"] * kept / 1e5) + rng.normal(0, 0.03), 0, 1))
            sizes = {
                key: int(row[key] * kept) + 1 for key in ("macs", "params", "bytes_fp32", "bytes_fp16", "bytes_int8")
            }
            small = sizes["macs"] <= 30e6 and sizes["bytes_fp16"] <= 128e3
            network = row | sizes | {"step": step, "val_macro_avg_acc": round(share, 4), "feasible": small}
            network |= {"status": "complete", "val_loss": 1.0, "sparsity": round(1 - kept, 4)}
            made.append(
                network
                | {"config/prune.ratios": ratios, "checkpoint": f"experiments/{row['trial_id']}/step{step}"}
                | {key: round(float(rng.uniform(0, 1)), 4) for key in row if key.startswith(("val_acc", "val_device"))}
            )
            networks.append({"step": step, "confusion": rng.integers(0, 40, (10, 10)).tolist()})
        (place / "info.json").write_text(json.dumps({"points": networks}))
        curve = np.linspace(0.1, 0.6, epochs) + rng.normal(0, 0.02, epochs)
        table = [{"stage": 0, "epoch": i + 1, "val_macro_avg_acc": round(float(a), 4)} for i, a in enumerate(curve)]
        write_table(place / "results.csv", table)
    return write_study(folder, made)


if __name__ == "__main__":
    sys.exit(main())
