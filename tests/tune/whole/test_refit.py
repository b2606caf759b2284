"""tune/refit.py: the networks of a front are trained again on all clips, killed, resumed, extended and measured."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from analysis import report
from analysis.results import load_study
from ascmodels.teachers import read_extra
from data.tau import read_split
from tests.support.machines import PATIENCE_S
from tests.support.paths import ROOT
from tests.support.tune.typed_studies import Studies
from trainables.config.schema import TrialConfig
from trainables.inputs.clips import filenames, load_clips
from tune import evaluate, refit, status
from tune.study.journal import read_state
from tune.study.manifest import read_manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def study(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a complete search, whose test split is closed."""
    studies = Studies(tiny_tau, tmp_path_factory.mktemp("studies"))
    words = ("--max-concurrent", "1", "--scheduler", "fifo", "--num-samples", "2")
    process = studies.start(
        "--space", "kd_prune", "--name", "x", *words, *studies.config, "train.epochs=2", "prune.epochs=1"
    )
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return studies.folder / "x"


def started(study: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "tune/refit.py", str(study), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"WANDB_MODE": "offline", "COLUMNS": "160"},
        start_new_session=True,
    )


def finished(study: Path, *words: str) -> str:
    process = started(study, *words)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return output


def weights(study: Path) -> dict[str, bytes]:
    found = (study / "refit" / "experiments").glob("*/step*/weights.safetensors")
    return {str(path.relative_to(study)): path.read_bytes() for path in found}


def test_a_killed_refit_resumes_to_the_same_networks_and_test_opens_once_for_them(
    study: Path, tiny_tau: Path, tmp_path: Path, capsys
) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(study, killed)
    options = ("--max-concurrent", "1")
    output = finished(study, *options)
    manifest, state = read_manifest(study / "refit"), read_state(study / "refit")
    picked = {(given.config_id, step) for given in manifest.requested.refit for step in given.steps}
    assert picked and manifest.requested.n_trials == len(manifest.requested.refit) == len(state.trials)
    assert {t.outcome for t in state.trials.values()} == {"completed"}
    n_clips = len(read_split(tiny_tau, "split100"))
    assert (manifest.prepared.dataset.n_train, manifest.prepared.dataset.n_validation) == (n_clips, 0)
    assert f"refit on all {n_clips} clips" in output and "tune/evaluate.py" in output
    config = TrialConfig.from_flat(manifest.resolved.config)
    assert filenames(load_clips(config, config.frontend.sample_rate).train) == list(
        read_split(tiny_tau, "split100").filename
    )
    (teacher,) = config.distill.teacher_ckpts  # the study's own teacher had fewer clips
    assert read_extra(Path(teacher))["n_train"] == n_clips
    assert teacher not in read_manifest(study).resolved.config["distill.teacher_ckpts"]
    measured = set(load_study(study).points[["trial_id", "step", "macs", "params"]].itertuples(index=False, name=None))
    for trial in state.trials.values():  # the sizes that the search has measured
        for point in trial.points:
            found = (trial.config_id, point["step"], point["macs"], point["params"])
            assert found in measured and point["val_macro_avg_acc"] is None
    assert not (study / "test.csv").exists() and not read_manifest(study).progress.test_opened

    process = started(killed, *options)
    until = time.monotonic() + PATIENCE_S
    while not list((killed / "refit").glob("experiments/*/step0/student.json")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(weights(killed)) < len(weights(study))
    finished(killed, *options)
    assert weights(killed) == weights(study)
    assert refit.main([str(killed)]) == 0
    assert "trained already" in capsys.readouterr().out

    assert evaluate.main([str(study)]) == 0
    table = pd.read_csv(study / "test.csv")
    assert set(table["network"]) == {"search", "refitted"}
    refitted = table[table["network"] == "refitted"]
    found = {(name.partition("r")[0], step) for name, step in zip(refitted["trial_id"], refitted["step"], strict=True)}
    assert found == picked
    assert len(refitted) == len(picked)
    assert len(read_manifest(study).progress.test_opened) == 1
    tested = load_study(study)
    assert tested.raw_test is not None and tested.refitted is not None
    assert len(tested.refitted) == len(picked) and set(tested.refitted["refitted_test_n_seeds"]) == {1}
    assert status.main([str(study / "refit")]) == 0 and "refit of study x" in capsys.readouterr().out
    assert report.main([str(study / "refit")]) == 2 and str(study) in capsys.readouterr().err
    page = (study / "report.html").read_text()
    assert '<table id="refitted"' in page and "refitted, test %" in page
    assert "refitted_test_macro_avg_acc" in (study / "front.csv").read_text()
    before = (study / "test.csv").read_bytes()
    assert evaluate.main([str(study)]) == 0 and (study / "test.csv").read_bytes() == before


def test_what_cannot_be_refitted_is_refused(study: Path, tmp_path: Path, capsys) -> None:
    for pick in ("t0099/0", "t0000", "t0000/7", "../x/0"):
        assert refit.main([str(study), "--pick", pick]) == 2
        assert pick in capsys.readouterr().out
    other = tmp_path / "open"
    shutil.copytree(study, other, ignore=shutil.ignore_patterns("refit"))
    content = json.loads((other / "study.json").read_text())
    (other / "study.json").write_text(json.dumps(content | {"status": "interrupted"}))
    assert refit.main([str(other)]) == 2
    assert "interrupted" in capsys.readouterr().out and not (other / "refit").exists()
