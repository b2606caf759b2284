"""Write a study folder with invented results in the format of `tune/`, for the tests of `analysis/`.

python tests/support/example_study.py FOLDER [SEEDS]       # SEEDS: number of replicates (default: no replicates)
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

SCENES = ("airport", "bus", "metro", "metro_station", "park")
SCENES += ("public_square", "shopping_mall", "street_pedestrian", "street_traffic", "tram")
DEVICES = ("a", "b", "c", "s1", "s2", "s3")
LIMITS = {"macs": 30_000_000, "bytes": 128_000, "precision": "fp16"}
BRANCHES = ("[]", '["3x3", "1x1"]', '["3x3", "3x1", "1x3"]', '["3x3", "3x1", "1x3", "1x1", "identity"]')


def manifest(**changes: Any) -> dict[str, Any]:
    """Return the content of a study.json (format 1); an argument replaces the value of a key, None removes it."""
    parameters = {
        "distill.kd_alpha": {"uniform": [0.1, 0.9]},
        "distill.kd_temp": {"uniform": [1.0, 8.0]},
        "train.lr": {"loguniform": [0.0005, 0.02]},
        "student.base_channels": {"choice": [8, 16, 24, 32, 48]},
        "student.branches": {"choice": [json.loads(branches) for branches in BRANCHES]},
        "prune.ratios": {"each": "prune.steps", "item": {"uniform": [0.1, 0.5]}},
    }
    space = {"name": "kd_prune", "description": "distillation, then pruning", "base": [], "parameters": parameters}
    values = {
        "name": "example",
        "space": space | {"auxiliary": {"prune.steps": {"int": [0, 2]}}},
        "limits": LIMITS,
        "objectives": {"val_macro_avg_acc": "max", "macs": "min"},
        "status": "complete",
        "seed": 7,
        "num_samples": 18,
        "created": "2026-01-05T09:30:00+00:00",
        "finished": "2026-01-05T09:38:12+00:00",
        "wall_s": 492.0,
        "versions": {"python": "3.11.2", "torch": "2.11.0", "ray": "2.60.0", "torch-pruning": "1.6.1"},
        "command": "python tune/run.py --space kd_prune --num-samples 18 --seed 7",
        "dataset": {
            "dataset_dir": "/data/tau",
            "subset": 100,
            "n_train": 1600,
            "n_validation": 420,
            "n_classes": 10,
            "holdout": "one recording location of each scene, all its devices",
        },
        "frontend": {"sample_rate": 32000, "n_fft": 4096, "win": 3072, "hop": 500, "n_mels": 256},
        "deployed_form": "fused, pruned, float32, [1, 1, 256, 65]",
        "baseline": {
            "name": "logistic regression on log-mel means and deviations",
            "val_macro_avg_acc": 0.552,
            "test_macro_avg_acc": None,
        },
        "teachers": [{"name": "small AST from a config", "val_macro_avg_acc": 0.741}],
        "trials": {"complete": 12, "stopped early": 4, "failed": 2, "rejected": 3},
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def rows(seed: int = 0, trials: int = 18) -> list[dict[str, Any]]:
    """Return rows of points.csv for `trials` trials, one row per network.

    The last two trials failed, the four before them were stopped early, the others are complete. Some networks exceed a
    limit.
    """
    rng = np.random.default_rng(seed)
    made = []
    for trial in range(trials):
        status = "failed" if trial >= trials - 2 else "stopped early" if trial >= trials - 6 else "complete"
        width, branches = rng.choice([8, 16, 24, 32, 48]), str(rng.choice(BRANCHES))
        ratios = rng.uniform(0.1, 0.5, size=rng.integers(0, 3) if status == "complete" else 0)
        config = {
            "config/distill.kd_alpha": round(rng.uniform(0.1, 0.9), 3),
            "config/distill.kd_temp": round(rng.uniform(1, 8), 2),
            "config/train.lr": float(f"{np.exp(rng.uniform(np.log(0.0005), np.log(0.02))):.3g}"),
            "config/student.base_channels": width,
            "config/student.branches": branches,
            "config/prune.ratios": json.dumps([round(ratio, 3) for ratio in ratios]),
        }
        kept, skill = 1.0, rng.normal(0, 0.02) - (0.08 if status == "stopped early" else 0)
        for step in range(len(ratios) + 1):
            kept *= 1.0 if step == 0 else (1 - ratios[step - 1]) ** 1.6
            macs, params = int(28_500 * width**1.85 * kept), int(62 * width**1.95 * kept)
            share = 0.46 + 0.09 * np.log10(macs / 2e5) + skill + rng.normal(0, 0.008)
            accuracy = float("nan") if status == "failed" else float(np.clip(share, 0.1, 0.95))
            made.append(
                {
                    "trial_id": f"{trial:05d}",
                    "step": step,
                    "epochs": 12 + 4 * step if status == "complete" else 3,
                    "val_macro_avg_acc": round(accuracy, 4),
                    "val_loss": round(2.3 - 2 * accuracy, 4),
                    "macs": macs,
                    "params": params,
                    "bytes_fp32": 4 * params,
                    "bytes_fp16": 2 * params,
                    "bytes_int8": params,
                    "sparsity": round(1 - kept, 4),
                    "feasible": macs <= LIMITS["macs"] and 2 * params <= LIMITS["bytes"],
                    "status": status,
                    "checkpoint": f"checkpoints/{trial:05d}/step{step}",
                    **{f"val_acc/{s}": round(float(np.clip(accuracy + rng.normal(0, 0.1), 0, 1)), 4) for s in SCENES},
                    **{
                        f"val_device_acc/{d}": round(float(np.clip(accuracy - 0.02 * i, 0, 1)), 4)
                        for i, d in enumerate(DEVICES)
                    },
                    **config,
                }
            )
    return made


def replicated_rows(seeds: int = 3, configurations: int = 18, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of points.csv for a study with replicates: `seeds` seeds of each complete configuration of `rows`.

    There are two exceptions. One configuration (`lucky`) has a single seed, with the best accuracy of all points. The
    second seed of another configuration (`partial`) was stopped early after its dense network was measured.
    """
    rng = np.random.default_rng(seed)
    table = rows(seed, configurations)
    complete = list(dict.fromkeys(r["trial_id"] for r in table if r["status"] == "complete"))
    lucky, partial = complete[1], complete[4]
    made = []
    for row in table:
        name = row["trial_id"]
        n = seeds if name in complete and name != lucky else 1
        for replicate in range(n):
            one = row | {"trial_id": name + (f"r{replicate}" if replicate else "")}
            one |= {"config_id": name, "replicate": replicate, "checkpoint": f"{row['checkpoint']}/{replicate}"}
            for column in [c for c in row if "_acc" in c and np.isfinite(row[c])]:
                one[column] = round(float(np.clip(row[column] + rng.normal(0, 0.015), 0, 1)), 4)
            if name == lucky:
                one["val_macro_avg_acc"] = 0.95
            if name == partial and replicate == 1:
                one["status"] = "stopped early"
                if row["step"] > 0:
                    continue
            made.append(one)
    return made


def timed_rows(table: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Return `table`, rows of points.csv, with the moments at which the networks were measured, in a random order."""
    order = np.random.default_rng(seed).permutation(len(table))
    return [
        row | {"search_s": 60.0 + 30 * int(i), "search_epochs": 12 + 4 * int(i)}
        for row, i in zip(table, order, strict=True)
    ]


def trial_rows(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of trials.csv for the trials of `table`, the result of `timed_rows`, in the order of their creation.

    Each trial began 30 s before its first measurement and ended with the last one. The reason of all failures is that
    the loss is not finite.
    """
    made = {}
    for row in sorted(table, key=lambda row: row["search_s"]):
        stopped, failed = row["status"] == "stopped early", row["status"] == "failed"
        first = made.get(row["trial_id"], {"created_s": row["search_s"] - 30.0})
        made[row["trial_id"]] = {
            "trial_id": row["trial_id"],
            "config_id": row.get("config_id", row["trial_id"]),
            "replicate": row.get("replicate", 0),
            "status": row["status"],
            "stopped_by": "mo_asha" if stopped else "",
            "reason": "the loss is nan" if failed else "",
            "epochs": row["epochs"],
            "planned_epochs": 20 if stopped or failed else row["epochs"],
            "stage": row["step"],
            "restores": 0,
            "created_s": first["created_s"],
            "ended_s": row["search_s"],
        }
    return list(made.values())


def write_table(file: Path, table: list[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def write_study(folder: Path, table: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(manifest(**changes), indent=1), encoding="utf-8")
    write_table(folder / "points.csv", rows() if table is None else table)
    return folder


def write_timed_study(folder: Path, table: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """Write a study like `write_study`, with the moments of its measurements and with trials.csv."""
    timed = timed_rows(rows() if table is None else table)
    write_study(folder, timed, **changes)
    write_table(folder / "trials.csv", trial_rows(timed))
    return folder


if __name__ == "__main__":
    print(write_timed_study(Path(sys.argv[1]), replicated_rows(int(sys.argv[2])) if len(sys.argv) > 2 else None))
