"""The arms of a pruning run: the progressive one, and controls of the same final size and number of epochs.

    trial = trial_of("dense", run, config, data, base, progressive)     # driven by trainables/progressive_prune.py

Pruning has to beat a dense network of equal size that is trained from scratch (Liu et al. 2019, "Rethinking the Value
of Network Pruning"). The control `random` shows the gain by the pruning criterion, `one_shot` that by several steps.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ascmodels.compress.plan import PruneConfig
from ascmodels.nessi import size_bytes
from ascmodels.students import Student, Widths
from data.files import replace_text
from trainables.config.schema import TrialConfig
from trainables.outputs.records import write_rows
from trainables.single.run_folder import Run
from trainables.trial.data import TrialData
from trainables.trial.start import Start
from trainables.trial.trial import Trial

CONTROLS = ("one_shot", "dense", "random")
PROGRESSIVE = "progressive"


def trial_of(
    arm: str, run: Run, config: TrialConfig, data: TrialData, base: Student, progressive: Trial | None
) -> Trial:
    """Return the trial of one arm. A control has the final size and the number of epochs of the `progressive` trial.

    `progressive` is None for the progressive arm itself.
    """
    p, folder = config.prune, run.folder / arm
    if progressive is None:
        return Trial(config, data, run.folder, Start(base), validate_pruned=True)
    last, epochs = progressive.points[-1], p.rounds * p.epochs
    widths = Widths(**last.widths)  # type: ignore[arg-type]
    if arm == "random":
        return Trial(
            replace(config, prune=replace(p, criterion="random")), data, folder, Start(base), validate_pruned=True
        )
    if arm == "dense":
        train = replace(config.train, epochs=run.info["base_epochs"] + epochs)
        return Trial(replace(config, train=train, prune=PruneConfig()), data, folder, Start(widths=widths))
    once = replace(p, epochs=epochs)
    if p.exact:
        return Trial(replace(config, prune=once), data, folder, Start(base, widths), validate_pruned=True)
    # the weights determine the widths: aim at the largest network in the ranking with at most the last point's MACs
    once = replace(
        once,
        **{"ratios": (), "total_ratio": None, "target_bytes": None, "target_macs": float(last.macs), "n_steps": 1},
        max_ratio=1 - (1 - p.max_ratio) ** p.rounds,
    )
    return Trial(replace(config, prune=once), data, folder, Start(base), validate_pruned=True)


def rows_of(arm: str, trial: Trial, run: Run) -> list[dict[str, Any]]:
    """Return a row for each measured network of one arm; the base has a row in the progressive arm only."""
    c, rows = trial.config, []
    targets: Sequence[float] = ()
    if c.prune.goal and not trial.start.widths:
        dense = {"macs": trial.points[0].macs, "bytes": size_bytes(trial.points[0].params, c.limits.precision)}
        targets = c.prune.targets(dense[c.prune.goal[0]])
    params = run.info.get("base_params", trial.points[0].params)  # recorded by the progressive arm
    channels = [sum(sum(widths) for widths in point.widths.values()) for point in trial.points]
    for i, point in enumerate(trial.points):
        if not i and arm in ("one_shot", "random"):
            continue
        retrained, dense = i > 0, arm == "dense"
        rows.append(
            {
                "arm": arm,
                "step": point.step,
                "ratio": 1 - channels[i] / channels[i - 1] if retrained else None,  # share of the channels removed
                "target": targets[i - 1] if retrained and targets else None,
                "macs": point.macs,
                "params": point.params,
                "bytes": size_bytes(point.params, c.limits.precision),
                "sparsity": 1 - point.params / params,
                "val_acc_pruned": point.val_acc_pruned,
                "val_macro_avg_acc": point.val_macro_avg_acc,
                "epochs": trial.stage_epochs(i),
                "total_epochs": point.epochs + (0 if dense else run.info["base_epochs"]),
                "lr": c.prune.lr if retrained and c.prune.lr_mode == "finetune" else c.train.lr,
                "kd": c.distill.taught and (c.prune.retrain_kd or not retrained),
                "checkpoint": str((trial.folder / point.checkpoint).relative_to(run.folder)),
            }
        )
    return rows


def write_steps(run: Run, rows: list[dict[str, Any]]) -> None:
    """Write the rows of all arms to prune_steps.csv and prune_steps.json in the folder of `run`."""
    write_rows(run.folder / "prune_steps.csv", rows)
    replace_text(run.folder / "prune_steps.json", json.dumps(rows, indent=1))
