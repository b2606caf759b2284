"""Prune a trained student step by step as a single run: the work of the command progressive_prune.py."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ascmodels.checkpoint import CheckpointError, load_student, save_student
from ascmodels.compress.plan import plan_sizes
from ascmodels.config.prune import GOALS
from ascmodels.students import Student
from data import tau
from data.config.frontend import FrontEndConfig
from trainables.config.flags import flags_to_overrides
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.loop import TrainingDiverged
from trainables.outputs.records import PROJECT, now, point_dict
from trainables.outputs.tracking import Tracker
from trainables.single.arguments import BASES, CONTROLS
from trainables.single.command import configure, drive, guarded, prepare, resumed_by
from trainables.single.controls import PROGRESSIVE, rows_of, trial_of, write_steps
from trainables.single.plan_file import read_plan
from trainables.single.run_folder import Run, RunError, find_checkpoint, shown
from trainables.single.training import distils, figures
from trainables.teachers.logits import folder_hash
from trainables.trial.trial import Trial

KIND = "prune"
BASE = "base.ckpt"  # folder of the run's own copy of its base, the student that it prunes
DEPLOYED = "branches pruned together, then fused into one convolution with bias; BN kept; parameters rounded to "


def command(options: argparse.Namespace, rest: list[str], words: Sequence[str]) -> int:
    """Prune a student, or continue a run, as the command line asks; return the exit status.

    `options` are the options of the command, `rest` its other arguments (flags of configuration keys and Hydra
    overrides), and `words` all arguments, which the run records.
    """

    def work(console: Console) -> int:
        if options.resume:
            if rest or options.config or options.base_ckpt or options.controls or options.new:
                raise RunError(
                    f"--resume {options.resume} was given with other options; expected only --storage, because a run "
                    "continues with its stored configuration: leave out the other options"
                )
            run = Run.find(options.storage, options.resume)
            if run.info["kind"] != KIND:
                raise RunError(
                    f"run {run.id} is of kind {run.info['kind']}, expected {KIND}: continue it with "
                    f"python trainables/run_training.py --ckpt_id={run.id}"
                )
        else:
            run = find_or_create_run(options, rest, words, console)
        again = f"python trainables/progressive_prune.py --storage {options.storage} --resume {run.id}"
        with run.lock(), resumed_by(again):
            if run.info["status"] == "complete":
                console.print(f"run {escape(run.id)} is complete already; --new starts a new run", highlight=False)
            else:
                run_arms(run, console)
            print_summary(run, console)
        return 0

    return guarded(work)


def find_or_create_run(options: Any, rest: list[str], words: Sequence[str], console: Console) -> Run:
    """Return the earlier run with the same configuration, base (student to prune) and --controls, else a new run.

    `words` are all command-line arguments, `rest` those that are not in `options` (flags and Hydra overrides). A new
    run gets a copy of the base. With --new, the run is always new. --controls lists the trainings (dense, ...) with
    which progressive pruning is compared.
    """
    controls = [name.strip() for name in options.controls.split(",") if name.strip()]
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown or len(set(controls)) != len(controls):
        raise ConfigError(
            f"--controls {options.controls}: expected any of {','.join(CONTROLS)}, each once at most; correct the list"
        )
    if not options.base_ckpt:
        raise RunError(f"--base_ckpt is missing; expected the student to prune: give {BASES}")
    folder = find_checkpoint(options.storage, options.base_ckpt)
    base, extra = load_base(folder)
    config, parent = compose_config(options, rest, folder, base, extra)
    if not config.prune.rounds:
        raise ConfigError(
            "the configuration has 0 prune steps; expected at least 1: give a plan with --config, or --ratios, or "
            "--n_steps with --total_ratio, --target_macs or --target_bytes"
        )
    identity = json.dumps([config.flat(), folder_hash(folder), controls], sort_keys=True)
    run_id = "" if options.new else f"prune-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    console.print(f"base: {escape(shown(folder))}", highlight=False, soft_wrap=True)
    for key in (o.split("=")[0] for o in flags_to_overrides(rest)):
        if key in ("train.epochs", "train.lr"):
            console.print(f"  note: {key} is for dense training; for retraining, set prune.{key[6:]}", highlight=False)
    if parent is None:
        console.print(
            "  note: the training clips of the base are unknown; some may be validation clips of this run",
            highlight=False,
            soft_wrap=True,
        )
    run = Run.new(options.storage, KIND, config, ["python", "trainables/progressive_prune.py", *words], run_id)
    if (run.folder / "info.json").is_file():
        return Run.find(options.storage, run.id)
    shape = config.frontend.n_mels, config.frontend.frames  # raise for an impossible plan before a file is written
    plan_sizes(config.student, config.prune, *shape, config.limits.precision, base.widths)
    epochs = (extra.get("point") or {}).get("epochs") or (parent.config if parent else config).train.epochs
    epochs += parent.info.get("base_epochs", 0) if parent else 0  # if the base is itself a pruned network
    save_student(run.folder / BASE, base, extra)
    precision = "fp32" if config.limits.precision == "fp32" else "fp16"
    run.update(base=str(folder), base_epochs=epochs, controls=controls, deployed_form=DEPLOYED + precision)
    return run


def load_base(folder: Path) -> tuple[Student, dict[str, Any]]:
    """Return the student in the checkpoint `folder` and the metadata that was saved with the student.

    Raise CheckpointError if the student has fused branches, other classes than `tau.SCENES`, or no stored front-end.
    """
    base, extra = load_student(folder)
    if base.fused:
        raise CheckpointError(
            f"{folder} is a deployed network with fused branches; expected a network in training form: give the folder "
            "last.ckpt of the run"
        )
    if list(extra.get("classes", tau.SCENES)) != list(tau.SCENES):
        raise CheckpointError(
            f"{folder} was trained on the classes {', '.join(extra['classes'])}; expected {', '.join(tau.SCENES)}: "
            "give the checkpoint of a student with these classes"
        )
    if "frontend" not in extra:
        raise CheckpointError(
            f"{folder}/student.json has no key 'frontend'; expected the front-end of the student: give a checkpoint "
            "that run_training.py wrote"
        )
    return base, extra


def compose_config(
    options: Any, rest: list[str], folder: Path, base: Student, extra: dict[str, Any]
) -> tuple[TrialConfig, Run | None]:
    """Return the configuration of a pruning run, and the run that trained the student to prune (None: unknown).

    `base` is the student to prune, and `extra` its metadata in the checkpoint `folder`. The value of a key comes from
    the flags `rest`, else from the pruning plan `options.config`, else from the training of `base`. Raise ConfigError
    if a key that pruning cannot change has another value than in the training of `base`.
    """
    parent, trained_by, inherited = None, None, {}
    if (folder.parent / "info.json").is_file():
        parent = Run.find(options.storage, str(folder.parent))
    if parent or "config" in extra:  # a checkpoint copied out of its run has a configuration
        trained_by = parent.config if parent else TrialConfig.from_flat(extra["config"])
        typed_profile = any(word.startswith("profile=") for word in rest)
        kept = ("data.", "seed") if typed_profile else ("",)
        inherited = {k: v for k, v in trained_by.flat().items() if k.startswith(kept) and k not in AIMS}
    alone = {} if inherited or distils(rest) else {"distill.kd_alpha": 1.0}
    own = TrialConfig(student=base.config, frontend=FrontEndConfig(**extra["frontend"])).flat()
    own = {k: v for k, v in own.items() if k.startswith(("student.", "frontend."))}
    schedule = read_plan(options.config) if options.config else {}
    typed = {o.split("=")[0] for o in flags_to_overrides(rest)}
    if typed & AIMS - {"prune.n_steps"}:  # a flag replaces the goal of the plan
        dropped = AIMS if "prune.ratios" in typed else AIMS - {"prune.n_steps"}
        schedule = {k: v for k, v in schedule.items() if k not in dropped}
    default = [o for k, v in {"train.min_steps": 0, **inherited, **alone, **own}.items() for o in override(k, v)]
    chosen = [f"--{k}={text(v)}" for k, v in schedule.items()]
    config = configure([*chosen, *rest], options.storage, default)
    for key, value in own.items():
        if config.flat()[key] != value:
            raise ConfigError(
                f"{key}={config.flat()[key]}; expected {value}, the value of the network to be pruned, which cannot be "
                f"changed: remove {key} from the command line and from the plan file"
            )
    for key in ("seed", "data.subset", "data.validation_share"):
        if trained_by and config.flat()[key] != trained_by.flat()[key]:
            raise ConfigError(
                f"{key}={config.flat()[key]}; expected {trained_by.flat()[key]}, as in the training of the network; "
                "otherwise, the validation clips could include clips that it was trained on: remove "
                f"{key} from the command and the plan file"
            )
    return config, parent


# keys that define how much a pruning plan removes
AIMS = {f"prune.{name}" for name in (*GOALS, "n_steps")}


def override(key: str, value: Any) -> list[str]:
    """Return the Hydra overrides that set `key` to `value`."""
    return flags_to_overrides([f"--{key}={text(value)}"])


def text(value: Any) -> str:
    """Return the configuration value `value` as text for a command-line flag: `a,b` for a list, `null` for None."""
    if value is None:
        return "null"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def run_arms(run: Run, console: Console) -> None:
    """Train the arms of `run`: progressive pruning, then each control (a training to compare it with, e.g. one_shot).

    Each arm continues from its last saved epoch. prune_steps.csv and .json are rewritten after each measured network.
    """
    console.print(f"[bold]asc-tune[/bold] run {escape(run.id)} in {escape(shown(run.folder))}", highlight=False)
    base, _ = load_base(run.folder / BASE)
    config, data = prepare(run.config, console)
    run.info.pop("failure", None)
    run.update(config=config.flat(), status="running", notes=list(data.notes))
    rows: list[dict[str, Any]] = []
    progressive: Trial | None = None
    for arm in (PROGRESSIVE, *run.info["controls"]):
        trial = trial_of(arm, run, config, data, base, progressive)
        progressive = progressive or trial
        name = run.id if arm == PROGRESSIVE else f"{run.id}-{arm}"
        tracker = Tracker(trial.folder, name, name, KIND, trial.config.flat(), PROJECT)
        try:
            drive(trial, arm, tracker, lambda: write_steps(run, [*rows, *rows_of(arm, trial, run)]))  # noqa: B023
        except TrainingDiverged as error:
            run.update(status="failed", failure=f"{arm}: {error}")
            raise TrainingDiverged(
                f"{arm}: {error}. The last saved state is in {shown(trial.folder)}; start a new run with this change"
            ) from error
        finally:
            tracker.finish()
        rows += rows_of(arm, trial, run)
        write_steps(run, rows)
        if arm == PROGRESSIVE:
            run.update(base_params=trial.points[0].params, points=[point_dict(p) for p in trial.points])
    run.update(**figures(run, data.validation, open_test=False), status="complete", finished=now())


def print_summary(run: Run, console: Console) -> None:
    """Print the rows of prune_steps.json as a table, and the paths of the result files."""
    rows = json.loads((run.folder / "prune_steps.json").read_text())
    table = Table("arm", "step", "M MACs", "params", "removed", "pruned", "retrained", "epochs", title=escape(run.id))
    for row in rows:
        shares = [row["sparsity"], row["val_acc_pruned"], row["val_macro_avg_acc"]]
        cells = [f"{row['step']}", f"{row['macs'] / 1e6:.2f}", f"{row['params']:,}"]
        cells += ["-" if share is None else f"{share:.1%}" for share in shares]
        table.add_row(escape(row["arm"]), *cells, f"{row['total_epochs']}")
    console.print(table)
    console.print(
        "removed: share of the base's parameters; pruned, retrained: validation accuracy before and after retraining",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"deployed: {escape(run.info['deployed_form'])}", highlight=False, soft_wrap=True)
    for name in ("prune_steps.csv", "prune_steps.json", "points.csv", "last.ckpt"):
        console.print(f"  {escape(shown(run.folder / name))}", highlight=False, soft_wrap=True)
