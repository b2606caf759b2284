"""Paths and names that look like rich's markup are printed as they are by a driver and by the commands for one run."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from analysis.manifest import Requested, Resolved, StudyManifest
from data.untrusted import Terminal
from trainables.single import pruning, training
from trainables.single.run_folder import Run
from tune.commands.search import print_end
from tune.reporting.front import RunningFront
from tune.reporting.progress import ProgressLines
from tune.study.events import PointMeasured, TrialCreated, TrialEnded
from tune.study.state import StudyState

EVIL = "\x1b[2J[/red][bold]"
SHOWN = r"\x1b[2J[/red][bold]"


def console() -> tuple[Terminal, io.StringIO]:
    stream = io.StringIO()
    return Terminal(file=stream, width=200), stream


def test_an_interrupted_search_shows_its_storage(tmp_path: Path) -> None:
    terminal, stream = console()
    folder = tmp_path / "runs[" / "bold]" / "x"
    manifest = StudyManifest(Requested("x"), Resolved(folder=str(folder))).changed(status="running")
    search: Any = SimpleNamespace(log=SimpleNamespace(state=StudyState()), session=None)
    print_end(SimpleNamespace(folder=folder), manifest, search, None, terminal)  # type: ignore[arg-type]
    assert f"--storage {folder.parent}" in stream.getvalue()


def test_names_of_trials_and_reasons_of_their_ends_are_shown(tmp_path: Path) -> None:
    terminal, stream = console()
    state, front = StudyState(), RunningFront()
    lines = ProgressLines(terminal, state, front, 1, {}, tmp_path / "log")
    point = {"step": 0, "val_macro_avg_acc": 0.5, "macs": 1, "params": 1, "feasible": False}
    for event in (
        TrialCreated(trial="t[bold]", config_id="t[bold]", replicate=0, params={}, values={}),
        PointMeasured(trial="t[bold]", point=point),
        TrialEnded(trial="t[bold]", outcome="failed", reason=EVIL),
    ):
        state.apply(event)
        lines.apply(event)
    text = stream.getvalue()
    assert text.count("t[bold] ") == 2 and SHOWN in text and "\x1b" not in text


def test_texts_in_the_files_of_a_run_are_shown(tmp_path: Path) -> None:
    terminal, stream = console()
    folder = tmp_path / "run[bold]"
    folder.mkdir()
    metrics = {"macro_avg_acc": 0.5, "loss": 1.0, "group_acc": {}, "device_acc": {EVIL: 0.5}, "class_acc": {}}
    run = Run(folder, {"MACs": 1, "Params": 1, "validation": metrics, "deployed_form": EVIL})
    training.print_summary(run, terminal)
    row = {"arm": EVIL, "step": 0, "macs": 1, "params": 1, "sparsity": None, "val_acc_pruned": None}
    steps = [row | {"val_macro_avg_acc": 0.5, "total_epochs": 1}]
    (folder / "prune_steps.json").write_text(json.dumps(steps))
    pruning.print_summary(run, terminal)
    text = stream.getvalue()
    assert text.count(SHOWN) == 3 and "\x1b" not in text
    assert "  run[bold]  " in text  # the title of the table
