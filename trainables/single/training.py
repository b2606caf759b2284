"""Train or evaluate one student as a single run: the work of the command run_training.py."""

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.tau import DatasetError
from trainables.config.compose import settings_of
from trainables.engine.device import set_up_process
from trainables.engine.evaluation import Deployed, open_test_clips, predict_evaluation_set
from trainables.engine.loop import TrainingDiverged
from trainables.engine.metrics import Metrics
from trainables.inputs.clips import Clips, load_clips
from trainables.outputs.records import now, point_dict
from trainables.outputs.tracking import Tracker
from trainables.single.command import configure, drive, guarded, prepare, resumed_by
from trainables.single.run_folder import Run, RunError, shown
from trainables.trial.trial import Trial

KIND = "train"


def command(options: argparse.Namespace, rest: list[str], words: Sequence[str]) -> int:
    """Train or evaluate a run as the command line asks; return the exit status (`trainables/run_training.py`).

    `options` are the options of the command, `rest` its other arguments (flags of configuration keys and Hydra
    overrides), and `words` all arguments, which the run records.
    """

    def work(console: Console) -> int:
        if options.ckpt_id == "" or (options.evaluate and not options.ckpt_id):
            found = "--evaluate needs --ckpt_id, which is missing" if options.evaluate else "--ckpt_id is empty"
            folder = f"{shown(options.storage)}/experiments"
            raise RunError(f"{found}; expected the id of a run: give --ckpt_id=<name of a folder in {folder}>")
        if options.evaluate and options.no_test:
            raise RunError("--evaluate measures on the test split, but --no_test forbids it: drop one of them")
        if options.ckpt_id:
            run = Run.find(options.storage, options.ckpt_id)
            if rest:
                raise RunError(
                    f"run {run.id} has a stored configuration; expected no other configuration keys with --ckpt_id: "
                    f"drop {' '.join(rest)}"
                )
            if not options.evaluate and run.info["kind"] != KIND:
                raise RunError(
                    f"run {run.id} is of kind {run.info['kind']}, expected {KIND}: continue a pruning run with "
                    f"python trainables/progressive_prune.py --resume {run.id}"
                )
        else:
            default = ["student=cp_mobile"] if distils(rest) else ["student=cp_mobile", "distill.kd_alpha=1"]
            config = configure(rest, options.storage, default)
            run = Run.new(options.storage, KIND, config, ["python", "trainables/run_training.py", *words])
            run.info |= {"name": options.experiment_name or run.id, "project": options.project_name}
            run.info["open_test"] = not options.no_test  # kept for a resume of this run
        with run.lock():
            if options.evaluate:
                return evaluate(run, console)
            with resumed_by(f"python trainables/run_training.py --storage {options.storage} --ckpt_id={run.id}"):
                train(run, console, open_test=run.info.get("open_test", True) and not options.no_test)
        return 0

    return guarded(work)


def distils(words: list[str]) -> bool:
    """Return whether the command-line arguments `words` set kd_alpha, kd_lambda or teacher_ckpts, or use recipe=kd.

    If they do not, run_training.py uses no teacher, although distillation is the default of the configuration.
    """
    return "recipe=kd" in words or any(
        re.match(r"(--|\+\+)?(distill\.)?(kd_alpha|kd_lambda|teacher_ckpts)\b", word) for word in words
    )


def train(run: Run, console: Console, open_test: bool) -> None:
    """Train `run` from its last saved epoch, then measure its network on validation, and on test if `open_test`.

    info.json is written before the training, after it, and after the measurement. Raise RunError for a complete run.
    """
    if run.info["status"] == "complete":
        raise RunError(
            f"run {run.id} in {shown(run.folder)} is complete; expected an unfinished run: to measure its network "
            "again, add --evaluate"
        )
    run.info.pop("failure", None)
    run.update()  # so that a run that is killed in `prepare` can be continued
    console.print(
        f"[bold]asc-tune[/bold] run {escape(run.id)} in {escape(shown(run.folder))}, "
        f"{escape(settings_of(shlex.split(run.info.get('command', ''))))}",
        highlight=False,
        soft_wrap=True,
    )
    config, data = prepare(run.config, console)
    run.update(config=config.flat(), status="running", notes=list(data.notes))
    trial = Trial(config, data, run.folder)
    macs, params = trial.sizes[0]
    verdict = "within" if config.limits.allow(macs, params) else "above"
    console.print(
        f"student: {config.student.name}, {macs:,} MACs, {params:,} parameters; {verdict} the limits of "
        f"{config.limits.macs:,.0f} MACs and {config.limits.bytes:,.0f} bytes at {config.limits.precision}",
        highlight=False,
        soft_wrap=True,
    )
    tracker = Tracker(run.folder, run.id, run.info["name"], KIND, config.flat(), run.info["project"])
    try:
        drive(trial, f"run {run.id}", tracker)
    except TrainingDiverged as error:
        run.update(status="failed", failure=str(error))
        raise TrainingDiverged(
            f"{error}. The last saved state is in {shown(run.folder)}; start a new run with this change"
        ) from error
    finally:
        tracker.finish()
    run.update(points=[point_dict(p) for p in trial.points])
    run.update(**figures(run, data.validation, open_test), status="complete", finished=now())
    print_summary(run, console)


def figures(run: Run, validation: Clips, open_test: bool) -> dict[str, Any]:
    """Load the last deployed network of `run` from its checkpoint, measure it, and return entries for info.json.

    The entries are `MACs`, `Params` (number of parameters), `validation` (metrics on the clips `validation`, if there
    are any) and, with `open_test`, `test` (metrics on the test split).
    """
    point, config = run.info["points"][-1], run.config
    set_up_process(config.train.threads)
    deployed = Deployed(run.folder / point["checkpoint"], config.train.device, (point["macs"], point["params"]))
    found = {"MACs": point["macs"], "Params": point["params"]}
    if len(validation.rows):
        found["validation"] = deployed.measure(validation)
    if open_test:
        found["test"] = deployed.measure(open_test_clips(config, config.frontend.sample_rate, progress=True))
    return {k: asdict(v) if isinstance(v, Metrics) else v for k, v in found.items()}


def evaluate(run: Run, console: Console) -> int:
    """Measure the last network of `run` on validation and test, and predict the evaluation set (output.csv).

    Return the exit status: 1 if a metric differs from the one in info.json, else 0. A metric that info.json lacks is
    added to it.
    """
    if not run.info.get("points"):
        again = f"--ckpt_id={run.id} and without --evaluate"
        if run.info["kind"] != KIND:
            again = f"python trainables/progressive_prune.py --resume {run.id}"
        raise RunError(
            f"run {run.id} has status {run.info['status']} and no measured network; expected a run that was trained to "
            f"its end: continue the run first, with {again}"
        )
    config = run.config
    again = figures(run, load_clips(config, config.frontend.sample_rate).validation, open_test=True)
    again = json.loads(json.dumps(again))
    before = {part: run.info.get(part) for part in again}
    different = [part for part in again if before[part] not in (None, again[part])]
    run.update(**{part: again[part] for part in again if before[part] is None})
    print_summary(run, console)
    for part in different:
        console.print(f"[yellow]{part} differs from info.json: {escape(str(again[part]))}[/yellow]", highlight=False)
    if not different:
        console.print("all metrics equal those of info.json to the last digit", highlight=False)
    path = run.folder / "output.csv"
    try:
        deployed = Deployed(run.folder / run.info["points"][-1]["checkpoint"], config.train.device)
        count = predict_evaluation_set(deployed, config, path, progress=True)
        console.print(f"evaluation set: {count} clips predicted in {escape(shown(path))}", highlight=False)
    except DatasetError as error:
        console.print(f"evaluation set not predicted: {escape(str(error))}", highlight=False, soft_wrap=True)
    return 1 if different else 0


def print_summary(run: Run, console: Console) -> None:
    """Print the metrics in info.json as a table, and the folder of the result files."""
    parts = [part for part in ("validation", "test") if run.info.get(part)]
    table = Table("", *parts, title=f"{run.info['MACs']:,} MACs, {run.info['Params']:,} parameters (fused)")
    rows = [("macro_avg_acc", "macro_avg_acc", None), ("loss", "loss", None)]
    for kind in ("group_acc", "device_acc", "class_acc"):
        names = dict.fromkeys(name for part in parts for name in run.info[part][kind])
        rows += [(name, kind, name) for name in names]
    for label, key, name in rows:
        cells = [run.info[part][key] if name is None else run.info[part][key].get(name) for part in parts]
        shape = "{:.3f}" if key == "loss" else "{:.1%}"
        table.add_row(escape(label), *("-" if c is None else shape.format(c) for c in cells))
    console.print(table)
    console.print(f"everything is in {escape(shown(run.folder))}", highlight=False, soft_wrap=True)
