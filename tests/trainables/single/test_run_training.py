"""`trainables/run_training.py`: its files, equal results from equal seeds, resuming, refusals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from data.tau import SCENES
from tests.support.paths import ROOT
from trainables.config.schema import TrialConfig
from trainables.run_training import main
from trainables.single.run_folder import Run, RunError, find_checkpoint, newest_runs

SMALL = ("frontend.n_fft=1024", "frontend.win_length=1024", "--n_mels=32", "--base_channels=8", "augment.freq_mask=4")


@pytest.fixture
def words(tiny_tau: Path, tmp_path: Path) -> list[str]:
    return [f"--storage={tmp_path / 'runs'}", f"--dataset_dir={tiny_tau}", *SMALL, "--n_epochs=3", "--batch_size=8"]


def only_run(tmp_path: Path) -> Run:
    (run,) = newest_runs(tmp_path / "runs")
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.folder / "last.ckpt" / "weights.safetensors")


@pytest.mark.slow
def test_a_run_is_written_down_and_evaluated_to_the_same_figures(words, tmp_path, capsys) -> None:
    assert main([*words, "--subset=50", "--num_workers=0", "--repconv", "True"]) == 0
    assert "everything is in" in capsys.readouterr().out
    run = only_run(tmp_path)
    info = run.info
    assert info["status"] == "complete"
    assert info["config"]["distill.kd_alpha"] == 1
    assert info["config"]["student.branches"] == ["3x3", "3x1", "1x3", "1x1", "identity"]
    assert set(info["test"]["class_acc"]) == set(SCENES)
    assert 0 <= info["validation"]["macro_avg_acc"] <= 1
    assert info["validation"]["macro_avg_acc"] == info["points"][-1]["val_macro_avg_acc"]
    assert info["validation"]["loss"] == info["points"][-1]["val_loss"]
    curves = pd.read_csv(run.folder / "results.csv")
    assert list(curves.epochs) == [1, 2, 3]
    assert {"train_loss", "val_loss", "val_macro_avg_acc"} <= set(curves)
    (point,) = pd.read_csv(run.folder / "points.csv").to_dict("records")
    assert (info["MACs"], info["Params"]) == (point["macs"], point["params"])
    assert list((run.folder / "wandb").glob(f"offline-run-*-{run.id}"))

    assert main([words[0], "--evaluate", f"--ckpt_id={run.id}"]) == 0
    assert "to the last digit" in capsys.readouterr().out
    output = pd.read_csv(run.folder / "output.csv", sep="\t")
    assert list(output) == ["filename", "scene_label", *SCENES]
    assert list(output.filename) == ["0.wav", "1.wav", "2.wav"]
    assert output[list(SCENES)].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert list(output.scene_label) == [SCENES[i] for i in output[list(SCENES)].to_numpy().argmax(axis=1)]

    run.update(test=info["test"] | {"loss": 0.5})  # a wrong figure
    assert main([words[0], "--evaluate", f"--ckpt_id={run.id}"]) == 1
    assert "test differs from info.json" in capsys.readouterr().out

    assert find_checkpoint(tmp_path / "runs", "last.ckpt") == run.folder / "last.ckpt"
    assert find_checkpoint(tmp_path / "runs", run.id) == run.folder / "last.ckpt"


@pytest.mark.slow
def test_killed_run_goes_on_and_ends_with_the_weights_of_an_uninterrupted_one(words, tmp_path) -> None:
    words = [*words, "--n_epochs=6", "--no_test"]
    command = [sys.executable, "trainables/run_training.py", *words]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        found = newest_runs(tmp_path / "runs")
        if found and (found[0].folder / "results.csv").is_file():
            curves = (found[0].folder / "results.csv").read_text()
            if curves.count("\n") > 2:  # at least the state after the first epoch is saved
                process.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    assert process.returncode == -signal.SIGKILL
    killed = only_run(tmp_path)
    assert killed.info["status"] == "running"
    assert main([words[0], f"--ckpt_id={killed.id}", "--no_test"]) == 0
    assert main([*words, "--seed=1"]) == 0
    assert main(words) == 0
    runs = {(run.id == killed.id, run.config.seed): run for run in newest_runs(tmp_path / "runs")}
    killed, again, other = runs[True, 0], runs[False, 0], runs[False, 1]
    assert killed.info["status"] == again.info["status"] == "complete"
    assert list(pd.read_csv(killed.folder / "results.csv").epochs) == [1, 2, 3, 4, 5, 6]
    one, same, different = weights(killed), weights(again), weights(other)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], different[name]) for name in one)
    assert "test" not in killed.info


@pytest.mark.slow
def test_divergence_stops_the_run_and_keeps_what_was_saved(words, tmp_path, capsys) -> None:
    assert main([*words, "--lr=1e30", "--warmup=0.9"]) == 2
    output = " ".join(capsys.readouterr().out.split())
    assert "step" in output
    assert only_run(tmp_path).info["status"] == "failed"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--evaluate"], "--evaluate needs --ckpt_id"),
        (["--ckpt_id=nothing"], "no run 'nothing'"),
        (["--kd_alpha=1.5"], "kd_alpha=1.5: expected a weight in [0, 1]"),
        (["--kd_temp=0"], "kd_temp=0.0: expected a finite temperature above 0"),
        (["--teacher_ckpts=no-such.ckpt,t2.ckpt"], "no-such.ckpt does not exist"),
        (["--subset=7"], "data.subset=7"),
        (["--repconv=maybe"], "--repconv maybe: expected True"),
        (["--n_classes=11"], "--n_classes 11: only 10"),
        (["--bach_size=8"], "did you mean batch_size"),
        (["--num_workers=-1"], "data.num_workers=-1"),
    ],
)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(typed, message, words, tmp_path, capsys) -> None:
    base_words = words if typed[0][2:9] != "ckpt_id" else words[:1]
    assert main([*base_words, *typed]) == 2
    assert message in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "runs" / "experiments").exists()


def test_a_run_keeps_its_configuration_and_its_lock(tmp_path, capsys) -> None:
    run = Run.new(tmp_path, "train", TrialConfig(), ["python"], "abc")
    run.update()
    assert main([f"--storage={tmp_path}", "--ckpt_id=abc", "--lr=1"]) == 2
    assert "drop --lr=1" in capsys.readouterr().out
    with run.lock():
        assert main([f"--storage={tmp_path}", "--ckpt_id=abc"]) == 2
    assert "run abc" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("kind", "hint"),
    [("train", "--ckpt_id=abc and without --evaluate"), ("prune", "progressive_prune.py --resume abc")],
)
def test_an_unfinished_run_is_continued_by_the_command_of_its_kind(kind, hint, tmp_path, capsys) -> None:
    Run.new(tmp_path, kind, TrialConfig(), ["python"], "abc").update()
    assert main([f"--storage={tmp_path}", "--evaluate", "--ckpt_id=abc"]) == 2
    assert hint in " ".join(capsys.readouterr().out.split())


def test_no_checkpoint_to_be_found(tmp_path) -> None:
    with pytest.raises(RunError, match=r"last\.ckpt"):
        find_checkpoint(tmp_path, "last.ckpt")
    with pytest.raises(RunError, match="no run 'abc'"):
        find_checkpoint(tmp_path, "abc")
