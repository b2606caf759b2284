"""The command `tune/run.py` before a search: what it refuses, naming key and value, without writing anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from search_spaces import FOLDER, load_space, space_from_dict
from tests.support.driven_study import Commands
from tests.support.paths import ROOT
from tune.arguments import DEFAULTS, limit_overrides, parser
from tune.driver import shares_dense
from tune.options import read_request
from tune.run import main
from tune.study.access import lock
from tune.study.manifest import StudyError


@pytest.fixture
def own_tau(tiny_tau: Path, tmp_path: Path) -> Path:
    """Return a copy of the data set that a test may damage."""
    return Path(shutil.copytree(tiny_tau, tmp_path / "tau"))


def write_space(folder: Path, text: str) -> str:
    path = folder / "space.yaml"
    path.write_text(text)
    return str(path)


def test_unknown_space(run) -> None:
    output = run("--space", "kd_prun")
    assert "unknown search space 'kd_prun'" in output
    assert "kd, kd_prune, pbt, prune, rep" in output


def test_space_is_required(run) -> None:
    assert "--space is missing" in run()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parameters:\n  train.lr: {uniform: [0.1, 0.01]}", "low 0.1 is above high 0.01"),
        ("parameters:\n  distill.kd_alhpa: {uniform: [0.1, 0.2]}", "did you mean distill.kd_alpha"),
        ("parameters:\n  train.lr: {uniform: [0.1, 0.2], lo: 3}", "unknown key 'lo'"),
        ("paramters:\n  train.lr: {uniform: [0.1, 0.2]}", "did you mean parameters?"),
        ("parameters:\n  distill.kd_alpha: {uniform: [0.5, 2]}", "distill.kd_alpha=2.0: expected a weight in [0, 1]"),
        ("parameters:\n  prune.ratios: {choice: [[0.97]]}", "would empty a layer"),
        ("parameters: [", "is not YAML"),
    ],
)
def test_bad_space(run, tmp_path: Path, text: str, words: str) -> None:
    assert words in run("--space", write_space(tmp_path, text))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--subset=7", "data.subset=7: expected one of 5, 10, 25, 50, 100"),
        ("--kd_alfa=0.5", "did you mean kd_alpha?"),
        ("distill.kd_temp=0", "distill.kd_temp=0.0: expected a finite temperature above 0"),
        ("train.weight_decay=fast", "train.weight_decay"),
        ("student=resnet", "resnet"),
    ],
)
def test_bad_configuration(run, flag: str, words: str) -> None:
    assert words in run("--space", "families", flag)


def test_bad_limits(run) -> None:
    assert "'mac=3'" in run("--space", "kd", "--limits", "mac=3")
    assert "limits.precision='int4'" in run("--space", "kd", "--limits", "precision=int4")
    assert limit_overrides("macs=1e6, bytes=10") == ["limits.macs=1e6", "limits.bytes=10"]


def test_no_data_set(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = run("--space", "kd", dataset=tmp_path / "nowhere")
    assert all(words in output for words in ("--dataset_dir", "TAU24_PATH", "6337421"))


def test_missing_split(run, own_tau: Path) -> None:
    output = run("--space", "kd", "--subset=25", "--split_dir", str(own_tau / "empty"))
    assert "split25.csv is in none of" in output


def test_csv_names_a_clip_that_is_not_there(run, own_tau: Path) -> None:
    name = (own_tau / "split_setup" / "split100.csv").read_text().splitlines()[1].split("\t")[0]
    (own_tau / name).unlink()
    output = run("--space", "kd", dataset=own_tau)
    assert "clips are not in" in output
    assert name in output


@pytest.mark.parametrize(("channels", "rate", "words"), [(2, 44_100, "2 channel(s)"), (1, 8000, "at 8000 Hz")])
def test_wrong_wav(run, own_tau: Path, channels: int, rate: int, words: str) -> None:
    name = (own_tau / "split_setup" / "split100.csv").read_text().splitlines()[1].split("\t")[0]
    soundfile.write(own_tau / name, np.zeros((rate, channels)), rate, subtype="PCM_24")
    output = run("--space", "kd", dataset=own_tau)
    assert words in output
    assert name.rsplit("/", 1)[-1] in output


def test_empty_class(run, own_tau: Path) -> None:
    table = own_tau / "split_setup" / "split100.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(keepends=True) if "\ttram" not in line))
    assert "no clip of scene tram" in run("--space", "kd", dataset=own_tau)


def test_unwritable_storage(run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in run("--space", "kd", "--storage", str(tmp_path / "file" / "runs"))
    assert "s9://bucket/x cannot be reached" in run("--space", "kd", "--storage", "s9://bucket/x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(run) -> None:
    assert "has 0 GPU(s)" in run("--space", "kd", "--gpus-per-trial", "1")


@pytest.mark.parametrize("text", ["inf", "nan", "-1", "0"])
@pytest.mark.parametrize("option", ["--cpus-per-trial", "--gpus-per-trial"])
def test_impossible_resources(option: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    if (option, text) == ("--gpus-per-trial", "0"):
        return  # a trial without a GPU
    with pytest.raises(SystemExit) as ended:
        read_request(["--space", "kd", option, text])
    assert ended.value.code == 2
    assert f"{option}: {text!r}" in capsys.readouterr().err


PRUNED: dict[str, Any] = {"prune.ratios": {"each": "prune.steps", "item": {"uniform": [0.1, 0.4]}}}


@pytest.mark.parametrize(
    ("dense", "expected"),
    [
        ({"student.base_channels": {"int": [8, 32], "step": 8}}, True),
        ({"student.branches": {"subset": ["3x3", "1x1"]}}, True),
        ({"student.n_blocks": {"each": "blocks", "item": {"int": [1, 3]}}}, True),
        ({"train.lr": {"uniform": [0.1, 0.2]}}, False),
        ({"train.lr": {"loguniform": [0.1, 0.2]}}, False),
        ({"distill.teacher_weights": {"each": "blocks", "item": {"uniform": [0.1, 0.9]}}}, False),
        ({"distill.teacher_weights": {"each": "blocks", "item": {"loguniform": [0.1, 0.9]}}}, False),
        ({"train.lr": {"choice": [0.1, 0.2]}, "train.weight_decay": {"uniform": [0.1, 0.2]}}, False),
    ],
)
def test_dense_phases_are_shared_where_they_can_be_equal(dense: dict[str, Any], expected: bool) -> None:
    """A range of real numbers anywhere in the space gives each sample a different dense phase."""
    auxiliary = {"prune.steps": {"int": [1, 2]}, "blocks": {"int": [3, 3]}}
    pruned = {"name": "s", "auxiliary": auxiliary, "parameters": PRUNED | dense}
    assert shares_dense(space_from_dict(pruned)) == expected
    unpruned = {"name": "s", "auxiliary": {"blocks": auxiliary["blocks"]}, "parameters": dense}
    assert not shares_dense(space_from_dict(unpruned))


def test_which_shipped_spaces_share_dense_phases() -> None:
    found = {path.stem for path in FOLDER.glob("*.yaml") if shares_dense(load_space(path.stem))}
    assert found == {"prune"}


def test_nothing_to_resume(run) -> None:
    assert "no study X in" in run("--resume", "--name", "X")
    assert "no unfinished study" in run("--resume")


def test_more_cpus_than_there_are(run) -> None:
    assert "--cpus-per-trial 4096, but this machine has" in run("--space", "kd", "--cpus-per-trial", "4096")


@pytest.mark.parametrize("key", ["seed", "data.subset", "limits.macs", "teacher.train.lr"])
def test_what_all_trials_share_is_not_searched(run, tmp_path: Path, key: str) -> None:
    output = run("--space", write_space(tmp_path, f"parameters:\n  {key}: {{int: [1, 2]}}"))
    assert f"searches {key};" in output


def test_every_choice_is_built(run, tmp_path: Path) -> None:
    output = run("--space", write_space(tmp_path, "parameters:\n  prune.criterion: {choice: [l1, magnitude, l2]}"))
    assert "prune.criterion='magnitude': expected one of" in output


def test_bad_name(run) -> None:
    assert "--name 'a/b'" in run("--space", "kd", "--name", "a/b")


def test_two_drivers_of_one_study(tmp_path: Path) -> None:
    with lock(tmp_path / "study"), pytest.raises(StudyError) as error, lock(tmp_path / "study"):
        pass
    assert f"process {os.getpid()}" in str(error.value)
    with lock(tmp_path / "study"):  # the lock is free again
        pass


def test_a_name_that_is_taken(typed: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    folder = typed.start("X")
    before = (folder / "study.json").read_bytes()
    assert main(["--space", "kd", "--name", "X", "--storage", str(typed.storage), *typed.arguments]) == 2
    printed = capsys.readouterr().out
    assert str(folder) in printed and "--resume --name X" in printed
    assert (folder / "study.json").read_bytes() == before


@pytest.mark.slow
def test_help_lists_every_flag() -> None:
    done = subprocess.run(
        [sys.executable, "tune/run.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for word in ("--space", "--num-samples", "--kd_alpha", "--dataset_dir", "--scheduler", "--limits", "profile="):
        assert word in done.stdout
    options = parser("").parse_args([])
    assert all(getattr(options, name) is None for name in DEFAULTS), "a default would hide what was typed"
