"""Open the test split, once, for the points of a study's front.

    python tune/evaluate.py runs/<study>                      or s3://bucket/path/<study>

Each front point's deployed network (loaded from its checkpoint) is measured on the test split's clips; in a study with
replicates, the network of every complete seed. `<study>/test.csv` has a row for each network; front.csv, table and
report show the mean over seeds, its deviation and interval. What has been measured is not measured again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from analysis.front import pareto_points
from analysis.replicates import networks
from analysis.report import print_front, write_report
from analysis.results import ResultsError, load_study
from ascmodels.checkpoint import CheckpointError
from data.tau import DatasetError
from trainables.baseline import baseline_accuracy
from trainables.clips import load_clips
from trainables.config import TrialConfig
from trainables.evaluation import Deployed, open_test_clips
from trainables.loop import Clips
from trainables.records import now, write_rows
from tune.mirror import Mirror, working_folder
from tune.resume import bring
from tune.study import StudyError, lock, read_manifest, write_manifest


def main(argv: list[str] | None = None) -> int:
    """The command; exit status 0, or 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="folder of a finished study, or its place in an object store")
    text = parser.parse_args(argv).study
    console = Console()
    try:
        folder, mirror = local_folder(text)
        manifest = read_manifest(folder)
        if manifest["status"] != "complete":
            raise StudyError(f"{folder.name} is {manifest['status']}: finish the search before opening the test split")
        with lock(folder):
            if mirror:
                mirror.pull_networks()
            evaluate(folder, manifest, console)
            if mirror:
                mirror.push(last=True)
    except (CheckpointError, ResultsError, StudyError, DatasetError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    return 0


def local_folder(text: str) -> tuple[Path, Mirror | None]:
    """The study's folder, named by itself or by its place in an object store; where it has one, the driver's working
    folder is brought up to date, and what keeps both alike comes with it."""
    if "://" in text:
        uri = text.rstrip("/")
        storage, _, name = uri.rpartition("/")
        folder = working_folder(storage) / name
    else:
        folder = Path(text).resolve()
        uri = read_manifest(folder).get("remote")
    if not uri:
        return folder, None
    try:
        bring(folder, uri)
        return folder, Mirror(folder, uri)
    except (OSError, ValueError) as error:  # pyarrow's are kinds of both
        raise StudyError(f"{uri} cannot be reached: {error}") from error


def evaluate(folder: Path, manifest: dict[str, Any], console: Console) -> None:
    """Measure the front's networks and the baseline on test; write test.csv and the report, print the table."""
    config = TrialConfig.from_flat(manifest["config"])
    study = load_study(folder)
    rows: list[dict[str, Any]] = [] if study.raw_test is None else study.raw_test.to_dict("records")
    done = {(row["trial_id"], row["step"]) for row in rows}
    front = pareto_points(study)
    ids = zip(front["trial_id"].tolist(), front["step"].tolist(), strict=True)
    wanted = [row for trial, step in ids for row in networks(study.raw, trial, step).to_dict("records")]
    chosen = [network for network in wanted if (network["trial_id"], network["step"]) not in done]
    if not chosen:
        if not rows:
            raise StudyError(f"{folder.name} has no point on its front: there is nothing to measure on the test split")
        console.print("every point of the front was measured on the test split before", highlight=False)
        print_front(study)
        return
    test = open_test_clips(config, config.frontend.sample_rate)
    console.print(
        f"test split: {len(test.rows)} clips, opened for {len(chosen)} network(s) of {len(front)} point(s)",
        highlight=False,
    )
    rows += [test_row(folder, network, test) for network in chosen]
    write_rows(folder / "test.csv", rows)
    train = load_clips(config, config.frontend.sample_rate).train
    manifest["baseline"]["test_macro_avg_acc"] = baseline_accuracy(train, test, config.frontend)
    write_manifest(folder, manifest | {"test_opened": [*manifest.get("test_opened", []), now()]})
    print_front(load_study(folder))
    for path in write_report(folder).values():
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def test_row(folder: Path, network: dict[Any, Any], test: Clips) -> dict[str, Any]:
    """One network's test figures, from its checkpoint."""
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
