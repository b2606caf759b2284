"""The Trainables without a Ray cluster: restores, checkpoints, reused actors, private folders, failures."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.tune as rt
import torch

from data.seals import seal
from tests.support.power_loss import is_private
from trainables.config.compose import compose
from trainables.outputs.storage import TrialCheckpoints
from trainables.ray_trainables import KDTrainable, PruneTrainable
from trainables.trial.stages import run_trial


@pytest.fixture(scope="module")
def ray_config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    cache = tmp_path_factory.mktemp("cache")
    config = compose(
        [
            f"data.dataset_dir='{tiny_tau}'",
            f"data.cache_dir='{cache}'",
            *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
            *("student.base_channels=16", "train.epochs=2", "train.batch_size=16", "prune.epochs=1"),
            *("prune.ratios=[0.3]", "distill.kd_alpha=1", "train.device=cpu"),
        ]
    )
    return config.flat() | {"trial": "t0000", "study_dir": str(tmp_path_factory.mktemp("study"))}


def figures(result: dict) -> dict:
    return {k: v for k, v in result.items() if k in ("stage", "epochs", "train_loss", "val_macro_avg_acc", "points")}


@pytest.mark.slow
def test_trainable_saves_restores_and_reports(ray_config: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    through = PruneTrainable(dict(ray_config))
    assert repr(through) == f"{Path(ray_config['study_dir']).name}/t0000"
    expected = [through.train() for _ in range(3)]
    assert [r["done"] for r in expected] == [False, False, True]
    assert [len(r["points"]) for r in expected] == [0, 1, 2]
    through.stop()
    for stop_after in (1, 2, 3):
        first = PruneTrainable(dict(ray_config))
        for _ in range(stop_after):
            first.train()
        folder = tmp_path / str(stop_after)
        folder.mkdir()
        first.save_checkpoint(str(folder))
        first.stop()
        second = PruneTrainable(dict(ray_config))
        gone = rt.Checkpoint.from_directory(str(tmp_path / "gone"))  # its trial has deleted it since
        second.restore(SimpleNamespace(checkpoint=gone))
        second.load_checkpoint(str(folder))
        rest = [second.train() for _ in range(max(1, 3 - stop_after))]
        assert [figures(r) for r in rest] == [figures(r) for r in expected[min(stop_after, 2) :]]
        assert rest[-1]["done"]
        assert [r.get("restored_epochs") for r in rest] == [stop_after, *[None] * (len(rest) - 1)]
        # including epochs that a lost driver may not have recorded
        assert [row["epochs"] for row in rest[0]["curve"]] == list(range(1, min(stop_after + 1, 3) + 1))
        assert [row["val_loss"] for row in rest[0]["curve"][:3]] == [r["val_loss"] for r in expected][: stop_after + 1]
        second.stop()


@pytest.mark.slow
def test_a_kill_costs_at_most_the_interval_between_checkpoints(ray_config: dict, tmp_path: Path, monkeypatch) -> None:
    """Epochs take 3 s here. With an interval of 7 s, two of them share a checkpoint."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("trainables.ray_trainables.time", clock)

    def checkpoints(**interval: float) -> list[bool]:
        trainable = PruneTrainable(ray_config | {"train.epochs": 4, "wandb": "disabled", **interval})

        def records():
            for record in run_trial(trainable._trial):
                clock.now += 3
                yield record

        trainable._records, found = records(), []
        for i in range(5):
            found.append(trainable.train()["should_checkpoint"])
            if found[-1]:
                trainable.save_checkpoint(str(tmp_path / f"{interval} {i}"))
        trainable.stop()
        return found

    assert checkpoints(checkpoint_interval=7.0) == [
        False,
        True,
        False,
        True,
        True,
    ]  # the last one: after the last epoch
    assert checkpoints(checkpoint_interval=60.0) == [False, False, False, False, True]
    assert checkpoints(checkpoint_interval=0.0) == checkpoints() == [True] * 5


@pytest.mark.slow
def test_reused_actor_leaves_nothing_of_the_last_trial(ray_config: dict, monkeypatch) -> None:
    """A trial on a reused actor gives the results of one on a new actor."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    other = ray_config | {
        "trial": "t0001",
        "student.base_channels": 24,
        "seed": 0,
        "train.lr": 0.02,
        "wandb": "disabled",
    }
    fresh = PruneTrainable(dict(ray_config))
    expected = [figures(fresh.train()) for _ in range(3)]
    fresh.stop()
    reused = PruneTrainable(dict(other))
    reused.train()
    assert reused.reset(dict(ray_config))
    assert reused._tracker and reused._tracker.mode == "disabled"  # what the driver chose, not WANDB_MODE; kept
    loaded = reused._data
    assert [figures(reused.train()) for _ in range(3)] == expected
    assert reused._data is loaded  # the read-only clips are kept
    assert reused.reset(ray_config | {"train.lr": -1.0})
    assert "train.lr" in reused.train()["crash"]
    reused.stop()


@pytest.mark.slow
def test_an_actor_works_in_a_private_folder_of_its_own_for_a_study_in_a_store(
    ray_config: dict, tmp_path: Path, monkeypatch
) -> None:
    """Files of other users or buckets are not read, followed or deleted; networks are sent to the store."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    temporary, elsewhere = tmp_path / "temporary", tmp_path / "elsewhere"
    (elsewhere / "step0").mkdir(parents=True)
    planted = temporary / "asc-tune" / "x" / "experiments"
    planted.mkdir(parents=True)
    (planted / "t0000").symlink_to(elsewhere)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    config = {k: v for k, v in ray_config.items() if k != "study_dir"} | {"train.epochs": 1}
    first = PruneTrainable(config | {"remote": str(tmp_path / "one" / "x")})
    folder = first._trial.folder
    assert first.train()["points"][0]["checkpoint"] == "step0"
    assert (tmp_path / "one" / "x" / "experiments" / "t0000" / "step0" / "student.json").is_file()
    assert first.reset(config | {"remote": str(tmp_path / "one" / "x"), "trial": "t0001"})
    assert first._trial.folder == folder.with_name("t0001")
    assert (folder / "step0" / "student.json").is_file()
    second = PruneTrainable(config | {"remote": str(tmp_path / "two" / "x")})  # same names, another place
    assert repr(second) == "x/t0000"
    private = [trial_folder.relative_to(temporary).parts[0] for trial_folder in (folder, second._trial.folder)]
    assert private[0] != private[1]
    assert all(is_private(temporary / name) for name in private)
    first.stop()
    second.stop()
    assert [p.name for p in temporary.glob("asc-tune*")] == ["asc-tune"]
    assert [p.name for p in elsewhere.iterdir()] == ["step0"]
    assert len(list((tmp_path / "one" / "x" / "wandb").iterdir())) == 2


@pytest.mark.slow
def test_nan_is_a_failed_result_and_not_a_crash(ray_config: dict, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    trainable = PruneTrainable(dict(ray_config))
    first = trainable.train()
    with torch.no_grad():
        trainable._trial.model.state_dict()["classifier.0.weight"].fill_(float("nan"))
    last = trainable.train()
    assert last["done"]
    assert not last["finished"]
    assert "stage 0, epoch 2" in last["failure"]
    assert "nan" in last["failure"]
    assert last["val_macro_avg_acc"] == first["val_macro_avg_acc"]
    trainable.stop()


@pytest.mark.slow
def test_nan_in_the_first_epoch_is_a_failed_result_too(ray_config: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    trainable = PruneTrainable(ray_config | {"train.lr": 1e30})
    results = [trainable.train()]
    while not results[-1]["done"]:
        results.append(trainable.train())
    assert "not finite" in results[-1]["failure"] or "nan" in results[-1]["failure"] or "inf" in results[-1]["failure"]
    trainable.stop()


@pytest.mark.slow
def test_out_of_gpu_memory_is_a_failed_result_and_the_actor_lives(ray_config: dict, monkeypatch) -> None:
    """A layer raises PyTorch's out-of-memory error."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    message = "CUDA out of memory. Tried to allocate 2.00 GiB.\nProcess 1 has 79 GiB in use."

    def full(*arguments) -> None:
        raise torch.OutOfMemoryError(message)

    trainable = PruneTrainable(ray_config | {"trial": "t0003"})
    trainable._trial.model.register_forward_hook(full)
    failed = trainable.train()
    assert failed["done"]
    assert not failed["finished"]
    assert failed["failure"].startswith(f"out of GPU memory: {message.splitlines()[0]}")
    assert "\n" not in failed["failure"] and "--gpus-per-trial" in failed["failure"]
    assert trainable.reset(ray_config | {"trial": "t0004"})
    assert "failure" not in trainable.train()
    trainable.stop()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_that_is_full_fails_the_trial_and_not_the_actor(ray_config: dict, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    on_gpu = ray_config | {"train.device": "cuda", "trial": "t0005"}
    trainable = PruneTrainable(on_gpu)
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        failed = trainable.train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert failed["done"]
    assert "out of GPU memory: CUDA out of memory" in failed["failure"]
    assert trainable.reset(on_gpu | {"trial": "t0006"})
    assert "failure" not in trainable.train()
    trainable.stop()


def test_kd_trainable_refuses_to_prune(ray_config: dict) -> None:
    refused = KDTrainable(dict(ray_config))
    result = refused.train()
    assert result["done"] and not result["finished"] and "PruneTrainable" in result["crash"]
    refused.stop()


@pytest.mark.slow
def test_data_that_are_gone_end_the_trial_without_a_retry_and_the_actor_lives(ray_config: dict, tmp_path: Path) -> None:
    """Ray would start four processes for an exception; the result ends the trial, and the next one begins as usual."""
    gone = ray_config | {"data.dataset_dir": str(tmp_path / "gone"), "trial": "t0007"}
    trainable = PruneTrainable(dict(gone))
    for _ in range(2):
        result = trainable.train()
        assert result["done"] and not result["finished"] and str(tmp_path / "gone") in result["crash"]
        trainable.save_checkpoint(str(tmp_path))  # Ray saves a checkpoint after the last result
        assert trainable.reset(dict(gone))
    assert not list(tmp_path.iterdir())
    assert trainable.reset(ray_config | {"trial": "t0008"})
    assert trainable._trial.folder.name == "t0008"
    trainable.stop()


def test_half_written_checkpoints_never_displace_whole_ones(tmp_path: Path) -> None:
    for i in range(5):
        folder = tmp_path / "run000" / "t0000" / f"checkpoint_{i:06d}"
        (folder / "student").mkdir(parents=True)
        (folder / "student" / "weights").write_text("w" * 10)
        seal(folder)
        if i > 2:  # incomplete, as after a full disk
            (folder / "student" / "weights").write_text("w")
    checkpoints = TrialCheckpoints(str(tmp_path), "t0000")
    checkpoints.clear(1)
    assert [name[-1] for name in checkpoints.newest_first()] == ["4", "3", "2"]
    assert checkpoints.load_newest(lambda folder: folder.name, lambda message: None) == "checkpoint_000002"


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    """Checkpoints of a study's 1000th driver come after those of the 999th."""
    for run, epoch in (("run002", 3), ("run999", 4), ("run1000", 5)):
        (tmp_path / run / "t0000" / f"checkpoint_{epoch:06d}").mkdir(parents=True)
    found = TrialCheckpoints(str(tmp_path), "t0000").newest_first()
    assert [name.partition("/")[0] for name in found] == ["run1000", "run999", "run002"]
