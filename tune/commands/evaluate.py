"""Measure the front of a complete study on the test split: the work of the command tune/evaluate.py."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from analysis.csv_table import NETWORK, REFITTED, SEARCH
from analysis.front import pareto_points
from analysis.manifest import Baseline
from analysis.outputs import print_front, write_report
from analysis.replicates import networks
from analysis.results import load_study
from analysis.typed_json import ResultsError
from ascmodels.checkpoint import CheckpointError
from data.signals import INTERRUPTED, STORAGE_S, interruptible
from data.tau import DatasetError
from data.untrusted import Terminal
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.baseline import NAME as BASELINE
from trainables.engine.baseline import cached_baseline
from trainables.engine.device import out_of_memory
from trainables.engine.evaluation import Deployed, open_test_clips
from trainables.inputs.clips import Clips, load_clips
from trainables.outputs.disk import disk_message
from trainables.outputs.records import REFIT, now, write_rows
from trainables.outputs.storage import Store
from tune.cli import typed_command
from tune.planning.checks import is_own_cache
from tune.reporting.tables import rebuild_tables
from tune.study.access import StudyAccess, open_study
from tune.study.journal import JournalError
from tune.study.lease import StudyLost
from tune.study.manifest import NAME, StudyError, read_manifest, write_manifest
from tune.study.store import is_uri, work_root, working_folder

USER_ERRORS = (
    *(CheckpointError, ConfigError, DatasetError, JournalError, ResultsError, StudyError, StudyLost),
    OSError,  # a full or read-only disk, or an unreachable object store
)


def command(text: str) -> int:
    """Measure the study at `text`, a path or a URI; return the exit status (`tune.evaluate.main`)."""
    console = Terminal()
    try:
        with interruptible(STORAGE_S) as interrupts:
            interrupts.advice = f"repeat the command:\n  {typed_command('evaluate')} {text}"
            folder, uri = place_of(text)
            with open_study(folder, uri) as access, ExitStack() as stack:
                refit = None
                if has_refit(folder, uri):
                    refit = stack.enter_context(open_study(folder / REFIT, f"{uri}/{REFIT}" if uri else None))
                evaluate(access, console, refit)
                access.push(last=True)
    except (*USER_ERRORS, MemoryError, RuntimeError) as error:
        message = out_of_memory(error) or disk_message(error)
        if message == str(error) and not isinstance(error, USER_ERRORS):
            raise
        console.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        again = escape(f"{typed_command('evaluate')} {text}")
        console.print(f"interrupted; to continue, repeat the command:\n  {again}", highlight=False, soft_wrap=True)
        return INTERRUPTED
    return 0


def place_of(text: str) -> tuple[Path, str | None]:
    """Return (local folder, URI) of the study at `text`, which is a path or the URI of a study in an object store.

    For a URI, the local folder is the one in which drivers keep a copy of the study while they work on it. It may be
    empty or missing: `open_study` downloads the study. For a path, the URI is None, whatever study.json contains.
    StudyError if there is no study at `text`, or if the path is that of such a copy.
    """
    if is_uri(text):
        storage, _, name = text.rstrip("/").rpartition("/")
        if "study.json" not in Store(text).names(""):
            raise StudyError(f"{text} has no study.json; expected a study, s3://bucket/path/<study>: correct the URI")
        return working_folder(storage) / name, text.rstrip("/")
    folder = Path(text).expanduser().resolve()
    read_manifest(folder)
    if folder.is_relative_to(work_root()):
        raise StudyError(
            f"{folder} is the local copy of a study in an object store; expected the URI of the study, because the "
            "store has the valid files: repeat the command with s3://bucket/path/<study>"
        )
    return folder, None


def has_refit(folder: Path, uri: str | None) -> bool:
    """Return whether the study in `folder`, or at `uri` in an object store, has a refit (tune/refit.py)."""
    return NAME in Store(uri).names(REFIT) if uri else (folder / REFIT / NAME).is_file()


def evaluate(access: StudyAccess, console: Console, refit: StudyAccess | None = None) -> None:
    """Measure the networks of the front, those of its refit, and the baseline, on the test split. Write test.csv and
    the report, and print the front.

    `access` and `refit` are the exclusive access to the study and to its refit (None: it has none). Networks that have
    a row in test.csv are not measured again. Lost tables and reports are written again. StudyError if the study is not
    complete or has no front.
    """
    folder = access.folder
    manifest = read_manifest(folder)
    if manifest.progress.status != "complete":
        raise StudyError(
            f"study {folder.name} is {manifest.progress.status}; expected a complete study, because a search must not "
            f"see the test split: finish it first with tune/run.py --resume --name {folder.name} and its --storage"
        )
    if manifest.resolved.code:  # studies of older versions have no journal
        rebuild_tables(folder, manifest.resolved.config, access.ended_elsewhere())
    config, study = TrialConfig.from_flat(manifest.resolved.config), load_study(folder)
    if not is_own_cache(folder, config.data.cache_dir):
        cache = str(folder.parent / "cache")
        console.print(
            f"data.cache_dir={escape(config.data.cache_dir)} in study.json is neither in the storage nor a cache of "
            f"asc-tune; using {escape(cache)}",
            highlight=False,
            soft_wrap=True,
        )
        config = replace(config, data=replace(config.data, cache_dir=cache))
    rows: list[dict[str, Any]] = []
    for network, table in ((SEARCH, study.raw_test), (REFITTED, study.raw_refitted)):
        if table is not None:
            rows += [{NETWORK: network} | row for row in table.to_dict("records")]
    done = {(row[NETWORK], row["trial_id"], row["step"]) for row in rows}
    front = pareto_points(study)
    ids = zip(front["trial_id"].tolist(), front["step"].tolist(), strict=True)
    members = [row for trial, step in ids for row in networks(study.raw, trial, step).to_dict("records")]
    chosen = [network for network in members if (SEARCH, network["trial_id"], network["step"]) not in done]
    if not rows and not chosen:
        raise StudyError(
            f"study {folder.name} has no point on its front; expected a network to measure: add trials with "
            f"tune/run.py --extend N --name {folder.name}, or start another study with wider --limits"
        )
    picked = refitted_networks(refit, console) if refit else []
    refits = [network for network in picked if (REFITTED, network["trial_id"], network["step"]) not in done]
    baseline = manifest.prepared.baseline
    if not chosen and not refits:
        console.print("all networks of the front were measured on the test split before", highlight=False)
    if chosen or refits or (baseline and baseline.test_macro_avg_acc is None):
        test = open_test_clips(config, config.frontend.sample_rate)
        console.print(
            f"test split: {len(test.rows)} clips, opened for {len(chosen)} network(s) of {len(front)} point(s)"
            + (f" and {len(refits)} refitted network(s)" if refits else ""),
            highlight=False,
        )
        for kind, place, found in ((SEARCH, access, chosen), (REFITTED, refit, refits)):
            if place and place.mirror:
                place.mirror.pull_networks(network["checkpoint"] for network in found)
            rows += [{NETWORK: kind} | test_row(place.folder, network, test) for network in found if place]
        if chosen or refits:
            write_rows(folder / "test.csv", rows, ["trial_id", "step", NETWORK])
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


def refitted_networks(refit: StudyAccess, console: Console) -> list[dict[Any, Any]]:
    """Return the rows of points.csv for the picked networks of a complete refit.

    If the refit is not complete, a line on `console` informs the user, and the list is empty.
    """
    manifest = read_manifest(refit.folder)
    if manifest.progress.status != "complete":
        console.print(
            f"the refit is {manifest.progress.status}, so its networks are not measured: finish it with "
            f"{escape(typed_command('refit'))}, then repeat this command",
            highlight=False,
            soft_wrap=True,
        )
        return []
    rebuild_tables(refit.folder, manifest.resolved.config, refit.ended_elsewhere())
    picked = {(given.config_id, step) for given in manifest.requested.refit for step in given.steps}
    points = load_study(refit.folder).raw.to_dict("records")
    return [point for point in points if (point["config_id"], point["step"]) in picked]


def test_row(folder: Path, network: dict[Any, Any], test: Clips) -> dict[str, Any]:
    """Measure one network on the clips `test` and return its row of test.csv.

    `network` is the row of points.csv that describes the network. Its `checkpoint` is a path relative to `folder`, the
    folder of the study.
    """
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
