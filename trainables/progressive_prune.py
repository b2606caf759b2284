"""Prune a trained student step by step, retraining after each, beside the controls that such pruning has to beat.

    python trainables/progressive_prune.py --config cubic --base_ckpt last.ckpt
    python trainables/progressive_prune.py --config schedule.yaml --base_ckpt <run id or folder> --controls dense
    python trainables/progressive_prune.py --base_ckpt last.ckpt --n_steps=3 --target_macs=8e6 --criterion=taylor
    python trainables/progressive_prune.py --resume <id>        the same as giving its command again

A schedule is a YAML file of `prune` keys (trainables/config/groups/prune/ has some, known by name), perhaps with other
sections (`train:`, `distill:`); what is typed wins. Architecture, front-end, recipe, validation clips are the base's.

    one_shot    the base pruned once to the same size, retrained for as many epochs as all steps together
    dense       a network of the final widths trained from scratch for as many epochs as base and retraining together
    random      the same schedule with channels drawn by lot

A command that was killed goes on from its last epoch when it is given again. prune_steps.csv and .json have a row for
each measured network. What is deployed after a step: the pruned, retrained training form with its branches fused into
one convolution with bias, batch normalisation kept, parameters rounded to fp16 (unless limits.precision=fp32).
"""

import hashlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).with_name("checkout.py")))

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ascmodels.checkpoint import CheckpointError, load_student, save_student
from ascmodels.compress.plan import GOALS, schedule_sizes
from ascmodels.students import Student
from data import tau
from data.features import FrontEndConfig
from trainables.config.compose import CONFIG_DIR
from trainables.config.flags import flags_to_overrides
from trainables.config.schema import ConfigError, TrialConfig, key_types
from trainables.engine.loop import TrainingDiverged
from trainables.outputs.records import now, point_dict
from trainables.outputs.tracking import PROJECT, Tracker
from trainables.run_training import distils, figures
from trainables.single.command import configure, drive, guarded, parser, prepare
from trainables.single.controls import CONTROLS, PROGRESSIVE, rows_of, trial_of, write_steps
from trainables.single.run_folder import Run, RunError, find_checkpoint, shown
from trainables.teachers.logits import folder_hash
from trainables.trial.trial import Trial

KIND = "prune"
BASE = "base.ckpt"  # the run's own copy of what it started from
SHIPPED = CONFIG_DIR / "prune"
DEPLOYED = "branches pruned together, then fused into one convolution with bias; BN kept; parameters rounded to "


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0, 2 on bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    p = parser(__doc__ or "")
    p.add_argument("--config", help="a schedule: a YAML file, or " + ", ".join(f.stem for f in SHIPPED.glob("*.yaml")))
    p.add_argument("--base_ckpt", help="a run's id, a checkpoint's folder, or last.ckpt: the newest training run's")
    p.add_argument("--controls", default="", help=f"any of {','.join(CONTROLS)}")
    p.add_argument("--resume", metavar="ID", help="go on with a run that was killed")
    p.add_argument("--new", action="store_true", help="start again, though the same command was given before")
    options, rest = p.parse_known_args(words)

    def work(console: Console) -> int:
        if options.resume:
            if rest or options.config or options.base_ckpt or options.controls or options.new:
                raise RunError(f"--resume {options.resume} goes on as it was started: give nothing else")
            run = Run.find(options.storage, options.resume)
            if run.info["kind"] != KIND:
                raise RunError(f"run {run.id} is no pruning run but of kind {run.info['kind']}")
        else:
            run = started(options, rest, words, console)
        with run.lock():
            if run.info["status"] == "complete":
                console.print(f"run {run.id} is complete already; --new starts it again", highlight=False)
            else:
                work_on(run, console)
            tell(run, console)
        return 0

    return guarded(work)


def started(options: Any, rest: list[str], words: list[str], console: Console) -> Run:
    """The run that this command means: the one it began before, else a new one with its copy of the base."""
    controls = [name.strip() for name in options.controls.split(",") if name.strip()]
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown or len(set(controls)) != len(controls):
        raise ConfigError(f"--controls {options.controls}: expected any of {','.join(CONTROLS)}, each once")
    if not options.base_ckpt:
        raise RunError("--base_ckpt is missing: a run's id, a checkpoint's folder, or last.ckpt")
    folder = find_checkpoint(options.storage, options.base_ckpt)
    base, extra = load_base(folder)
    config, parent = configured(options, rest, folder, base, extra)
    if not config.prune.rounds:
        raise ConfigError("no prune step is asked for: give --config, --ratios, or --n_steps with a target")
    told = json.dumps([config.flat(), folder_hash(folder), controls], sort_keys=True)
    run_id = "" if options.new else f"prune-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    console.print(f"base: {escape(shown(folder))}", highlight=False, soft_wrap=True)
    for key in (o.split("=")[0] for o in flags_to_overrides(rest)):
        if key in ("train.epochs", "train.lr"):
            console.print(f"  note: {key} is dense training's; retraining has prune.{key[6:]}", highlight=False)
    if parent is None:
        console.print(
            "  note: nothing tells what this base was trained on; validation clips may be among what it learnt",
            highlight=False,
            soft_wrap=True,
        )
    run = Run.new(options.storage, KIND, config, ["python", "trainables/progressive_prune.py", *words], run_id)
    if (run.folder / "info.json").is_file():
        return Run.find(options.storage, run.id)
    shape = config.frontend.n_mels, config.frontend.frames  # a schedule that cannot be met leaves no folder behind
    schedule_sizes(config.student, config.prune, *shape, config.limits.precision, base.widths)
    epochs = (extra.get("point") or {}).get("epochs") or (parent.config if parent else config).train.epochs
    epochs += parent.info.get("base_epochs", 0) if parent else 0  # of a base that was pruned before
    save_student(run.folder / BASE, base, extra)
    precision = "fp32" if config.limits.precision == "fp32" else "fp16"
    run.update(base=str(folder), base_epochs=epochs, controls=controls, deployed_form=DEPLOYED + precision)
    return run


def load_base(folder: Path) -> tuple[Student, dict[str, Any]]:
    """A student that can be pruned; CheckpointError says why one cannot."""
    base, extra = load_student(folder)
    if base.fused:
        raise CheckpointError(f"{folder} is a deployed network, its branches fused: prune the training form, last.ckpt")
    if list(extra.get("classes", tau.SCENES)) != list(tau.SCENES):
        raise CheckpointError(f"{folder} was trained on other classes: {', '.join(extra['classes'])}")
    if "frontend" not in extra:
        raise CheckpointError(f"{folder} does not say which front-end it was trained with")
    return base, extra


def configured(
    options: Any, rest: list[str], folder: Path, base: Student, extra: dict[str, Any]
) -> tuple[TrialConfig, Run | None]:
    """The base's configuration, then the schedule file, then what is typed; and the base's run, where there is one."""
    parent, trained_by, inherited = None, None, {}
    if (folder.parent / "info.json").is_file():
        parent = Run.find(options.storage, str(folder.parent))
    if parent or "config" in extra:  # a checkpoint that was copied away carries its configuration
        trained_by = parent.config if parent else TrialConfig.from_flat(extra["config"])
        typed_profile = any(word.startswith("profile=") for word in rest)
        kept = ("data.", "seed") if typed_profile else ("",)
        inherited = {k: v for k, v in trained_by.flat().items() if k.startswith(kept) and k not in AIMS}
    alone = {} if inherited or distils(rest) else {"distill.kd_alpha": 1.0}
    own = TrialConfig(student=base.config, frontend=FrontEndConfig(**extra["frontend"])).flat()
    own = {k: v for k, v in own.items() if k.startswith(("student.", "frontend."))}
    schedule = read_schedule(options.config) if options.config else {}
    typed = {o.split("=")[0] for o in flags_to_overrides(rest)}
    if typed & AIMS - {"prune.n_steps"}:  # another aim than the file's
        dropped = AIMS if "prune.ratios" in typed else AIMS - {"prune.n_steps"}
        schedule = {k: v for k, v in schedule.items() if k not in dropped}
    default = [o for k, v in {"train.min_steps": 0, **inherited, **alone, **own}.items() for o in override(k, v)]
    chosen = [f"--{k}={text(v)}" for k, v in schedule.items()]
    config = configure([*chosen, *rest], options.storage, default)
    for key, value in own.items():
        if config.flat()[key] != value:
            raise ConfigError(f"{key}={config.flat()[key]}: the base has {value}, and pruning does not change it")
    for key in ("seed", "data.subset", "data.validation_share"):
        if trained_by and config.flat()[key] != trained_by.flat()[key]:
            raise ConfigError(
                f"{key}={config.flat()[key]}, but the base was trained with {trained_by.flat()[key]}: it would be "
                "validated on clips that it has learnt"
            )
    return config, parent


AIMS = {f"prune.{name}" for name in (*GOALS, "n_steps")}


def read_schedule(name: str) -> dict[str, Any]:
    """Dotted key -> value of a schedule file; `prune` keys may stand bare."""
    path = next((p for p in (Path(name), SHIPPED / f"{name}.yaml") if p.is_file()), None)
    if path is None:
        there = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
        raise ConfigError(f"--config {name}: no such file, and no shipped schedule ({there})")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys of `prune`, such as ratios: [0.3, 0.3]")
    flat: dict[str, Any] = {}

    def walk(part: dict[Any, Any], prefix: str) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    walk(content, "")
    known = key_types()
    flat = {k if k in known or f"prune.{k}" not in known else f"prune.{k}": v for k, v in flat.items()}
    for key in flat:
        if key not in known:
            bare = ", ".join(k.removeprefix("prune.") for k in known if k.startswith("prune."))
            raise ConfigError(f"{path}: unknown key {key}; expected {bare}, or a dotted key such as train.lr")
    return flat


def override(key: str, value: Any) -> list[str]:
    return flags_to_overrides([f"--{key}={text(value)}"])


def text(value: Any) -> str:
    """A value as it would be typed after a flag."""
    if value is None:
        return "null"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def work_on(run: Run, console: Console) -> None:
    """Every arm from wherever it stands; rows and info.json as they come."""
    console.print(f"[bold]asc-tune[/bold] run {run.id} in {escape(shown(run.folder))}", highlight=False)
    base, _ = load_base(run.folder / BASE)
    config, data = prepare(run.config, console)
    run.info.pop("failure", None)
    run.update(config=config.flat(), status="running", notes=list(data.notes))
    rows: list[dict[str, Any]] = []
    progressive: Trial | None = None
    try:
        for arm in (PROGRESSIVE, *run.info["controls"]):
            trial = trial_of(arm, run, config, data, base, progressive)
            progressive = progressive or trial
            name = run.id if arm == PROGRESSIVE else f"{run.id}-{arm}"
            tracker = Tracker(trial.folder, name, name, KIND, trial.config.flat(), PROJECT)
            try:
                drive(trial, arm, tracker, lambda: write_steps(run, [*rows, *rows_of(arm, trial, run)]))  # noqa: B023
            finally:
                tracker.finish()
            rows += rows_of(arm, trial, run)
            write_steps(run, rows)
            if arm == PROGRESSIVE:
                run.update(base_params=trial.points[0].params, points=[point_dict(p) for p in trial.points])
    except TrainingDiverged as error:
        run.update(status="failed", failure=str(error))
        raise TrainingDiverged(f"{error}; what was saved before is in {shown(run.folder)}") from error
    run.update(**figures(run, data.validation, open_test=False), status="complete", finished=now())


def tell(run: Run, console: Console) -> None:
    """The rows as a table, and where everything is."""
    rows = json.loads((run.folder / "prune_steps.json").read_text())
    table = Table("arm", "step", "M MACs", "params", "gone", "pruned", "retrained", "epochs", title=run.id)
    for row in rows:
        shares = [row["sparsity"], row["val_acc_pruned"], row["val_macro_avg_acc"]]
        cells = [f"{row['step']}", f"{row['macs'] / 1e6:.2f}", f"{row['params']:,}"]
        cells += ["-" if share is None else f"{share:.1%}" for share in shares]
        table.add_row(row["arm"], *cells, f"{row['total_epochs']}")
    console.print(table)
    console.print("gone: of the base's parameters; pruned, retrained: validation accuracy", highlight=False)
    console.print(f"deployed: {run.info['deployed_form']}", highlight=False, soft_wrap=True)
    for name in ("prune_steps.csv", "prune_steps.json", "points.csv", "last.ckpt"):
        console.print(f"  {escape(shown(run.folder / name))}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
