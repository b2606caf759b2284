"""Open the test split, once, for the points of a study's front.

    # or s3://bucket/path/<study>
    python tune/evaluate.py runs/<study>

The deployed network of each front point is loaded from its checkpoint and
measured on the clips of the test split. In a study with replicates these are
the networks of every complete replicate. `<study>/test.csv` has a row for each
network; front.csv, table and report show the mean over replicates, its
standard deviation and interval. A network is measured once.
"""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: use the packages of this checkout
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "trainables" / "checkout.py"))

from rich.console import Console
from rich.markup import escape

from analysis.front import pareto_points
from analysis.manifest import Baseline, ResultsError
from analysis.replicates import networks
from analysis.report import print_front, write_report
from analysis.results import load_study
from ascmodels.checkpoint import CheckpointError
from data.tau import DatasetError
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.baseline import NAME as BASELINE
from trainables.engine.baseline import cached_baseline
from trainables.engine.evaluation import Deployed, open_test_clips
from trainables.inputs.clips import Clips, load_clips
from trainables.outputs.records import now, write_rows
from trainables.outputs.storage import Store
from tune.ray_start import treat_sigterm_as_ctrl_c
from tune.reporting.tables import rebuild_tables
from tune.study.hold import Held, hold
from tune.study.journal import JournalError
from tune.study.lease import StudyLost
from tune.study.manifest import StudyError, read_manifest, write_manifest
from tune.study.store import is_uri, working_folder

USER_ERRORS = (
    *(CheckpointError, ConfigError, DatasetError, JournalError, ResultsError, StudyError, StudyLost),
    OSError,  # a full or read-only disk, or an unreachable object store
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return exit status 0, 2 on bad input, or 130 after an interrupt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="folder of a complete study, or its URI in an object store")
    text = parser.parse_args(argv).study
    console = Console()
    treat_sigterm_as_ctrl_c()
    try:
        folder, uri = place_of(text)
        with hold(folder, uri) as held:
            evaluate(held, console)
            held.push(last=True)
    except USER_ERRORS as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; repeat the command to restart the evaluation")
        return 130
    return 0


def place_of(text: str) -> tuple[Path, str | None]:
    """Return the study's folder and None, or for a study in an object store its working folder and its URI."""
    if is_uri(text):
        storage, _, name = text.rstrip("/").rpartition("/")
        if "study.json" not in Store(text).names(""):
            raise StudyError(f"{text}: no study there (study.json is missing); expected s3://bucket/path/<study>")
        return working_folder(storage) / name, text.rstrip("/")
    folder = Path(text).expanduser().resolve()
    remote = read_manifest(folder).resolved.remote
    ours = remote is not None and working_folder(remote.rpartition("/")[0]) / remote.rpartition("/")[2] == folder
    return folder, remote if ours else None  # a copy of a study from an object store is evaluated in place


def evaluate(held: Held, console: Console) -> None:
    """Measure the front's networks and the baseline on the test split; write test.csv and the report, print the table.

    Networks that were measured before are skipped. Missing tables and reports are written again.
    """
    folder = held.folder
    manifest = read_manifest(folder)
    if manifest.progress.status != "complete":
        raise StudyError(
            f"study {folder.name} is {manifest.progress.status}: only a complete study may open the test split; finish "
            f"the search first (tune/run.py --resume --name {folder.name})"
        )
    if manifest.resolved.code:  # studies of older versions have no journal
        rebuild_tables(folder, manifest.resolved.config, held.ended_elsewhere())
    config, study = TrialConfig.from_flat(manifest.resolved.config), load_study(folder)
    rows: list[dict[str, Any]] = [] if study.raw_test is None else study.raw_test.to_dict("records")
    done = {(row["trial_id"], row["step"]) for row in rows}
    front = pareto_points(study)
    ids = zip(front["trial_id"].tolist(), front["step"].tolist(), strict=True)
    members = [row for trial, step in ids for row in networks(study.raw, trial, step).to_dict("records")]
    chosen = [network for network in members if (network["trial_id"], network["step"]) not in done]
    if not rows and not chosen:
        raise StudyError(
            f"study {folder.name} has no point on its front, so there is nothing to measure on the test split; widen "
            "the limits or extend the study"
        )
    baseline = manifest.prepared.baseline
    if not chosen:
        console.print("every point of the front was measured on the test split before", highlight=False)
    if chosen or (baseline and baseline.test_macro_avg_acc is None):
        test = open_test_clips(config, config.frontend.sample_rate)
        console.print(
            f"test split: {len(test.rows)} clips, opened for {len(chosen)} network(s) of {len(front)} point(s)",
            highlight=False,
        )
        if held.mirror:
            held.mirror.pull_networks(network["checkpoint"] for network in chosen)
        rows += [test_row(folder, network, test) for network in chosen]
        if chosen:
            write_rows(folder / "test.csv", rows)
        train = load_clips(config, config.frontend.sample_rate).train
        accuracy = cached_baseline(train, test, config.frontend, Path(config.data.cache_dir))
        measured = {"name": baseline.name if baseline else BASELINE, "test_macro_avg_acc": accuracy}
        if baseline:
            measured["val_macro_avg_acc"] = baseline.val_macro_avg_acc
        opened = (*manifest.progress.test_opened, now())
        write_manifest(folder, manifest.changed(baseline=Baseline(**measured), test_opened=opened))
    print_front(load_study(folder))
    for path in write_report(folder).values():
        console.print(f"  {escape(str(path))}", highlight=False, soft_wrap=True)


def test_row(folder: Path, network: dict[Any, Any], test: Clips) -> dict[str, Any]:
    """Return the row of test.csv of one network, measured from its checkpoint."""
    metrics = Deployed(folder / network["checkpoint"], "auto", (network["macs"], network["params"])).measure(test)
    row: dict[str, Any] = {
        "trial_id": network["trial_id"],
        "step": network["step"],
        "test_macro_avg_acc": metrics.macro_avg_acc,
        "test_loss": metrics.loss,
    }
    for kind, values in (
        ("group", metrics.group_acc),
        ("scene", metrics.class_acc),
        ("device", metrics.device_acc),
    ):
        prefix = {"group": "test_acc", "scene": "test_class_acc", "device": "test_device_acc"}[kind]
        row |= {f"{prefix}/{name}": accuracy for name, accuracy in values.items()}
    return row


if __name__ == "__main__":
    sys.exit(main())
