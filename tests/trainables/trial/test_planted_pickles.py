"""Pickles in the checkpoints of a trial, in its shared dense phase and in its caches: none is ever loaded."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.tune as rt
import torch

from ascmodels.checkpoint import CheckpointError
from data.seals import SealError, check_seal, seal
from tests.support.data.planted import NAMES, Bomb, bomb, plant
from tests.support.trainables.small_trials import small_trial
from trainables.outputs.storage import TrialCheckpoints
from trainables.ray_trainables import PruneTrainable
from trainables.trial.dense_phase import Parent


@pytest.fixture
def study(tiny_tau: Path, tmp_path: Path) -> dict:
    sizes = ("student.base_channels=16", "train.epochs=3", "prune.ratios=[0.3]")
    config = small_trial(tiny_tau, tmp_path / "cache", *sizes)
    places = {"study_dir": str(tmp_path / "x"), "checkpoints": str(tmp_path / "x" / "ray")}
    return config.flat() | places | {"trial": "t0000", "parents": str(tmp_path / "cache" / "parents")}


def saved(trainable: PruneTrainable, study: dict, run: str, number: int) -> Path:
    """Save a checkpoint of `trainable` where Ray keeps it, and return its folder."""
    folder = Path(study["checkpoints"]) / run / study["trial"] / f"checkpoint_{number:06d}"
    folder.mkdir(parents=True)
    trainable.save_checkpoint(str(folder))
    return folder


def chosen(folder: Path) -> SimpleNamespace:
    """Return what Ray passes to `restore`."""
    return SimpleNamespace(checkpoint=rt.Checkpoint.from_directory(str(folder)), metrics={"training_iteration": 2})


@pytest.mark.slow
def test_no_pickle_in_a_study_runs_when_a_trial_is_restored(study: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    mark, first = tmp_path / "exploded", PruneTrainable(dict(study))
    first.train()
    older = saved(first, study, "run001", 0)
    assert len([*(tmp_path / "cache" / "parents").rglob("state-*")]) == 1
    first.train()
    newer = saved(first, study, "run001", 1)
    second = PruneTrainable(dict(study))
    second.restore(chosen(newer))
    assert second._trial.epochs == 2
    assert second.train()["restored_epochs"] == 2
    (tmp_path / "x" / "ray" / "run004" / "t0000" / "checkpoint_000000").mkdir(parents=True)
    assert plant([tmp_path / "x", tmp_path / "cache"], mark) > 10
    for name in NAMES:
        (older / name).unlink()
        (older / "student" / name).unlink()
    third = PruneTrainable(dict(study))
    third.restore(chosen(newer))
    assert not mark.exists()
    assert third._trial.epochs == 1
    assert third.train()["epochs"] == 2
    assert not mark.exists()
    for trainable in (first, second, third):
        trainable.stop()
    pickle.loads(bomb(mark))  # loading one does run it
    assert mark.exists()


@pytest.mark.slow
def test_a_file_of_a_checkpoint_that_is_replaced_by_a_pickle_does_not_run(
    study: dict, tmp_path: Path, monkeypatch
) -> None:
    """Whoever replaces a file can write a new seal, too."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    first, mark = PruneTrainable(study | {"parents": None}), tmp_path / "exploded"
    first.train()
    valid = saved(first, study, "run000", 0)
    files = ("trial.pt", "result.pt", "student/student.json", "student/weights.safetensors")
    for number, name in enumerate(files):
        for run in ("run001", "run002"):
            folder = valid.parents[2] / run / "t0000" / f"checkpoint_{number:06d}"
            shutil.copytree(valid, folder)
            (folder / name).write_bytes(bomb(mark))
            if run == "run002":
                torch.save({"state": Bomb(mark)}, folder / name)
            seal(folder)
    second = PruneTrainable(study | {"parents": None})
    assert second._trial.epochs == 1  # from the only checkpoint without a pickle
    malformed(first, valid)
    for trainable in (first, second):
        trainable.stop()
    assert not mark.exists()


def malformed(trainable: PruneTrainable, folder: Path) -> None:
    """Check that a trial loads no state whose values do not fit it."""
    state = torch.load(folder / "trial.pt", weights_only=True)
    point = json.loads(state["points"])[:1] or [{}]
    shapes = {i: {k: torch.zeros(1, 1) for k in v} for i, v in state["optimizer"]["state"].items()}
    moments = {0: state["optimizer"]["state"][0]}
    odd = [{k: v for k, v in moments[0].items() if k != "step"}, moments[0] | {"exp_avg": "x"}]
    odd += [moments[0] | {"exp_avg_sq": torch.zeros(())}, moments[0] | {"more": torch.zeros(())}]
    for values in (
        *({"optimizer": state["optimizer"] | {"state": state["optimizer"]["state"] | {0: one}}} for one in odd),
        {"weights": "shared", "position": [0, 9, 9]},
        {"sizes": [["x", 1], [1, 1]]},
        {"position": [99, 0, 0]},
        {"position": [0, -1, 1]},
        {"position": "abc"},
        {"config": "[" * 100_000},
        {"config": "3"},
        {"points": json.dumps([point[0] | {"checkpoint": "../../outside"}])},
        {"points": '{"step": 0}'},
        {"optimizer": state["optimizer"] | {"state": shapes}},
        {"optimizer": [3]},
        {"weights": "unknown"},
    ):
        torch.save(state | values, folder / "trial.pt")
        with pytest.raises(CheckpointError) as error:
            trainable._trial.load(folder)
        assert str(folder) in str(error.value), values
    torch.save(state, folder / "trial.pt")
    trainable._trial.load(folder)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"records": None},
        {"records": [{}]},
        {"records": ["x"]},
        {"records": []},
        {"records": {"epochs": 1}},
    ],
)
def test_a_state_of_a_shared_dense_phase_without_its_records_is_not_used(tmp_path: Path, facts: dict) -> None:
    (tmp_path / "state-0001").mkdir()
    seal(tmp_path / "state-0001", **facts)
    parent = Parent(tmp_path)
    assert (parent.read(), parent.state, parent.records) == (0, None, [])


def test_a_checkpoint_with_another_file_is_not_kept_in_place_of_a_valid_one(tmp_path: Path) -> None:
    folders = [tmp_path / "run000" / "t0000" / f"checkpoint_{i:06d}" for i in range(3)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "trial.pt").write_text("w")
        seal(folder)
    (folders[-1] / "_dict_checkpoint.pkl").write_bytes(bomb(tmp_path / "exploded"))
    with pytest.raises(SealError):
        check_seal(folders[-1])
    checkpoints = TrialCheckpoints(str(tmp_path), "t0000")
    checkpoints.clear(1)
    assert [name[-1] for name in checkpoints.newest_first()] == ["2", "1"]
    assert checkpoints.load_newest(lambda found: found.name, lambda message: None) == "checkpoint_000001"
