"""The arms of a run of progressive_prune.py: progressive pruning, and the control trainings to compare it with.

An arm is one of the trainings of the run. The base is the trained student that the run prunes. Each control answers a
question:

    dense       Is pruning better than training a network of the final widths from scratch? (Liu et al. 2019,
                "Rethinking the Value of Network Pruning")
    random      Does the pruning criterion choose better channels than chance?
    one_shot    Are several prune steps better than a single one?
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ascmodels.config.limits import size_bytes
from ascmodels.config.prune import PruneConfig
from ascmodels.students import Student, Widths
from data.files import replace_text
from trainables.config.schema import TrialConfig
from trainables.outputs.records import write_rows
from trainables.single.run_folder import Run
from trainables.trial.data import TrialData
from trainables.trial.start import Start
from trainables.trial.trial import Trial

PROGRESSIVE = "progressive"


def trial_of(
    arm: str, run: Run, config: TrialConfig, data: TrialData, base: Student, progressive: Trial | None
) -> Trial:
    """Return the trial of one arm of `run`; the caller trains the trial.

    `arm` is progressive, one_shot, dense or random. `config` is the configuration of the run, and `base` the trained
    student to prune. For a control, `progressive` is the finished trial of the arm progressive: one_shot and dense must
    reach the size of its last network. For the arm progressive itself, `progressive` is None.
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
    # with scope global or isomorphic, the importance of the channels decides the widths: remove the least important
    # ones until the MACs are at most those of the progressive arm's last network
    once = replace(
        once,
        **{"ratios": (), "total_ratio": None, "target_bytes": None, "target_macs": float(last.macs), "n_steps": 1},
        max_ratio=1 - (1 - p.max_ratio) ** p.rounds,
    )
    return Trial(replace(config, prune=once), data, folder, Start(base), validate_pruned=True)


def rows_of(arm: str, trial: Trial, run: Run) -> list[dict[str, Any]]:
    """Return one row of prune_steps.csv for each measured network of `trial`, which is the trial of `arm` in `run`.

    `arm` is progressive, one_shot, dense or random. The first measured network of progressive, one_shot and random is
    the unpruned base. Only the rows of the arm progressive include it, so that the file has it once.
    """
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
    """Write `rows` to prune_steps.csv and prune_steps.json in the folder of `run`.

    There is one row for each measured network of progressive pruning and of each control (see `rows_of`).
    """
    write_rows(run.folder / "prune_steps.csv", rows)
    replace_text(run.folder / "prune_steps.json", json.dumps(rows, indent=1))
