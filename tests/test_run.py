"""The command `tune/run.py` before anything is searched: what it refuses and in which words; it leaves nothing."""

import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tau
from rich.console import Console

from trainables.clips import with_enough_epochs
from trainables.config import ConfigError, TrialConfig
from tune.journal import Journal
from tune.options import DEFAULTS, limit_overrides, open_study, parser
from tune.run import main
from tune.study import StudyError, lock, write_manifest
from tune.writer import Hopeless, StudyWriter

ROOT = Path(__file__).parents[1]
SMALL = ("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "teacher.train.epochs=1")


@pytest.fixture
def run(tiny_tau: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Type the command with `words`; its exit status and what it said. The storage folder stays without a study."""

    def type_command(*words: str, dataset: Path | None = None) -> str:
        storage = tmp_path / "runs"
        given = [f"--dataset_dir={dataset or tiny_tau}", f"--cache_dir={tmp_path / 'cache'}", *SMALL]
        storing = [] if "--storage" in words else ["--storage", str(storage)]
        assert main([*words, *storing, *given]) == 2
        assert not list(storage.glob("*/*")), "something was written"
        return " ".join(capsys.readouterr().out.split())

    return type_command


@pytest.fixture
def own_tau(tiny_tau: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may break."""
    return Path(shutil.copytree(tiny_tau, tmp_path / "tau"))


def write_space(folder: Path, text: str) -> str:
    path = folder / "space.yaml"
    path.write_text(text)
    return str(path)


def test_unknown_space(run) -> None:
    said = run("--space", "kd_prun")
    assert "unknown search space 'kd_prun'" in said
    assert "kd, kd_prune, pbt, prune, rep" in said


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
        ("train.lr=fast", "train.lr"),
        ("student=resnet", "resnet"),
    ],
)
def test_bad_configuration(run, flag: str, words: str) -> None:
    assert words in run("--space", "kd", flag)


def result(epochs: int, **more) -> dict:
    figures = {"stage": 0, "epoch": epochs, "val_macro_avg_acc": 0.5, "macs": 2_000_000, "done": False}
    return {"epochs": epochs, "finished": False, "points": [], **figures, **more}


def studied(folder: Path, n_trials: int) -> tuple[StudyWriter, StringIO, list[Any]]:
    """A writer of a study with `n_trials` drawn trials, what it tells, and the trials as Ray has them."""
    told, journal, trials = StringIO(), Journal(folder), []
    for i in range(n_trials):
        name = f"t{i:04d}"
        journal.add("trial", trial=name, config_id=name, replicate=0, params={}, values={"prune.ratios": [0.3, 0.2]})
        trials.append(SimpleNamespace(config={"trial": name, "prune.ratios": [0.3, 0.2]}, error_file=None))
    return StudyWriter(folder, journal, n_trials, Console(file=told, width=200)), told, trials


def test_a_point_is_told_and_written(tmp_path: Path) -> None:
    writer, told, (trial,) = studied(tmp_path, 1)
    point = {"feasible": True, "step": 0, "val_macro_avg_acc": 0.5, "macs": 2_000_000, "params": 3_000}
    point |= {"checkpoint": "step0", "class_acc": {"bus": 0.5}, "device_acc": {"a": 0.5}, "group_acc": {}}
    writer.on_trial_result(0, [], trial, result(1))
    writer.on_trial_result(0, [], trial, result(2, points=[point]))
    assert "t0000 step 0/2:  50.0% validation,   2.00 M MACs" in told.getvalue()
    writer.write_table()
    assert (tmp_path / "points.csv").read_text().splitlines()[1].startswith("t0000,t0000,0,0,")
    curve = (tmp_path / "experiments" / "t0000" / "results.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in curve] == ["epochs", "1", "2"]


def test_a_study_whose_first_trials_fail_for_one_reason_is_hopeless(tmp_path: Path) -> None:
    """Numbers in the reason do not make it another; a reason of its own does, and so does one point."""
    for reasons, hopeless in (
        (["stage 0, epoch 1: loss is nan", "stage 0, epoch 2: loss is nan", "stage 0, epoch 1: loss is nan"], True),
        (["loss is nan", "out of GPU memory", "loss is nan"], False),
    ):
        writer, told, trials = studied(tmp_path / str(hopeless), 5)
        for trial, reason in zip(trials, reasons, strict=False):
            writer.on_trial_result(0, [], trial, {"done": True, "finished": False, "failure": reason})
        assert Hopeless(writer).stop_all() == hopeless
        assert told.getvalue().count("failed after 0 epochs") == 3


def test_bad_limits(run) -> None:
    assert "expected macs=NUMBER,bytes=NUMBER" in run("--space", "kd", "--limits", "mac=3")
    assert "limits.precision='int4'" in run("--space", "kd", "--limits", "precision=int4")
    assert limit_overrides("macs=1e6, bytes=10") == ["limits.macs=1e6", "limits.bytes=10"]


def test_no_data_set(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run("--space", "kd", dataset=tmp_path / "nowhere")
    assert all(words in said for words in ("--dataset_dir", "TAU24_PATH", "6337421"))


def test_missing_split(run, own_tau: Path) -> None:
    said = run("--space", "kd", "--subset=25", "--split_dir", str(own_tau / "empty"))
    assert "split25.csv is in none of" in said


def test_csv_names_a_clip_that_is_not_there(run, own_tau: Path) -> None:
    name = (own_tau / "split_setup" / "split100.csv").read_text().splitlines()[1].split("\t")[0]
    (own_tau / name).unlink()
    said = run("--space", "kd", dataset=own_tau)
    assert "clips are not in" in said
    assert name in said


@pytest.mark.parametrize(("channels", "rate", "words"), [(2, 44_100, "2 channel(s)"), (1, 8000, "at 8000 Hz")])
def test_wrong_wav(run, own_tau: Path, channels: int, rate: int, words: str) -> None:
    name = (own_tau / "split_setup" / "split100.csv").read_text().splitlines()[1].split("\t")[0]
    soundfile.write(own_tau / name, np.zeros((rate, channels)), rate, subtype="PCM_24")
    said = run("--space", "kd", dataset=own_tau)
    assert words in said
    assert name.rsplit("/", 1)[-1] in said


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
    assert "PyTorch on this machine has 0 GPU(s)" in run("--space", "kd", "--gpus-per-trial", "1")


@pytest.mark.slow
def test_teacher_that_is_none(run, tmp_path: Path) -> None:
    assert "no teacher checkpoint" in run("--space", "kd", "--teacher_ckpts", str(tmp_path))


def test_nothing_to_resume(run) -> None:
    assert "no study X in" in run("--resume", "--name", "X")
    assert "no unfinished study" in run("--resume")


def test_more_cpus_than_there_are(run) -> None:
    assert "--cpus-per-trial 4096, but this machine has" in run("--space", "kd", "--cpus-per-trial", "4096")


@pytest.mark.parametrize("key", ["seed", "data.subset", "limits.macs", "teacher.train.lr"])
def test_what_all_trials_share_is_not_searched(run, tmp_path: Path, key: str) -> None:
    said = run("--space", write_space(tmp_path, f"parameters:\n  {key}: {{int: [1, 2]}}"))
    assert f"{key} is one for all trials of a study" in said


def test_every_choice_is_built(run, tmp_path: Path) -> None:
    said = run("--space", write_space(tmp_path, "parameters:\n  prune.criterion: {choice: [l1, magnitude, l2]}"))
    assert "prune.criterion='magnitude': expected one of" in said


def test_bad_name(run) -> None:
    assert "it names a folder" in run("--space", "kd", "--name", "a/b")


@pytest.mark.slow
def test_what_is_typed_wins(tiny_tau: Path, tmp_path: Path) -> None:
    def opened(*words: str) -> dict:
        options, rest = parser("").parse_known_args(
            ["--space", "kd", "--storage", str(tmp_path), *words, f"--dataset_dir={tiny_tau}", *SMALL]
        )
        return open_study(options, rest, list(words))[1]

    assert opened("--cpus-per-trial", "2")["config"]["train.threads"] == 2
    typed = opened("--cpus-per-trial", "2", "train.threads=1", "seed=7")
    assert typed["config"]["train.threads"] == 1
    assert typed["config"]["seed"] == typed["seed"] == 7
    assert opened("--seed", "9")["config"]["seed"] == 9
    assert opened()["config"]["data.cache_dir"] == str(tmp_path / "cache")
    assert opened("--gpus-per-trial", "0")["config"]["train.device"] == "cpu"
    assert not list(tmp_path.glob("*/study.json"))


def test_resume_takes_the_same_command_and_refuses_another(tiny_tau: Path, tmp_path: Path, monkeypatch) -> None:
    words = ["--space", "kd", "--name", "X", "--storage", str(tmp_path), "--limits", "macs=2e7", "--subset=25"]
    words += [f"--dataset_dir={tiny_tau}", *SMALL]

    def opened(*more: str) -> tuple[Path, dict]:
        options, rest = parser("").parse_known_args([*words, "--resume", *more])
        return open_study(options, rest, [])

    folder, manifest = opened()
    folder.mkdir()
    write_manifest(folder, manifest)
    assert opened() == (folder, manifest | {"changes": []})
    with pytest.raises(ConfigError, match=r"drop .*train\.lr=0\.1"):
        opened("train.lr=0.1")
    with pytest.raises(ConfigError, match="drop --num-samples"):
        opened("--num-samples", "99")
    moved = folder.rename(tmp_path / "Y")
    words[3] = "Y"
    assert opened()[1]["folder"] == str(moved)
    write_manifest(moved, manifest | {"overrides": [], "folder": str(moved)})
    monkeypatch.setenv("TAU24_PATH", str(make_tau(tmp_path / "other")))
    options, rest = parser("").parse_known_args(["--name", "Y", "--storage", str(tmp_path), "--resume"])
    with pytest.raises(StudyError, match="but TAU24_PATH is"):
        open_study(options, rest, [])


def test_two_drivers_of_one_study(tmp_path: Path) -> None:
    with (
        lock(tmp_path / "study"),
        pytest.raises(StudyError, match="being run by another process"),
        lock(tmp_path / "study"),
    ):
        pass
    with lock(tmp_path / "study"):  # free again
        pass


@pytest.mark.slow
def test_help_lists_every_flag() -> None:
    done = subprocess.run(
        [sys.executable, "tune/run.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for word in ("--space", "--num-samples", "--kd_alpha", "--dataset_dir", "--scheduler", "--limits", "profile="):
        assert word in done.stdout
    options = parser("").parse_args([])
    assert all(getattr(options, name) is None for name in DEFAULTS), "a default would hide what was typed"


@pytest.mark.slow
def test_small_data_sets_get_more_epochs_unless_epochs_are_typed(tiny_tau: Path, tmp_path: Path) -> None:
    def config(*words: str) -> TrialConfig:
        given = ["--space", "kd", "--storage", str(tmp_path), f"--dataset_dir={tiny_tau}", *words]
        options, rest = parser("").parse_known_args(given)
        return with_enough_epochs(TrialConfig.from_flat(open_study(options, rest, [])[1]["config"]), 100)

    quick = config()
    assert quick.train.epochs == 105  # 420 steps of 4 batches
    assert quick.prune.epochs == 27  # 2 * 105 / 8, rounded up
    assert quick.teacher.train.epochs == 154  # 2000 steps of 13 batches
    assert config("--epochs=3").train.epochs == 3
    assert config("--epochs=3").prune.epochs == 2
    assert config("teacher.train.epochs=1").teacher.train.epochs == 1
    assert config("profile=full").train.epochs == 150
