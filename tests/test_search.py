"""The searcher, the scheduler and the Trainables, without a Ray cluster."""

from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import load_space, space_from_dict
from trainables.config import ConfigError, TrialConfig, compose
from trainables.ray_trainables import KDTrainable, PruneTrainable
from tune.search import MAX_REJECTIONS, FeasibleOptunaSearch, read_searcher, stage_sizes, violation


def searcher(folder: Path, overrides: list[str], seed: int = 0, space=None) -> FeasibleOptunaSearch:
    space = space or load_space("kd_prune")
    return FeasibleOptunaSearch(space, compose([*space.base, *overrides]).flat(), str(folder), seed)


def suggested(search: FeasibleOptunaSearch, trial_id: str) -> dict:
    config = search.suggest(trial_id)
    assert isinstance(config, dict)
    return config


def cost(config: dict) -> tuple[TrialConfig, list[tuple[int, int]]]:
    c = TrialConfig.from_flat({k: v for k, v in config.items() if k not in ("trial", "study_dir")})
    return c, list(stage_sizes(c.student, c.prune, c.frontend.n_mels, c.frontend.frames))


@pytest.mark.slow
def test_every_suggestion_fits_the_limits_at_some_stage(tmp_path: Path) -> None:
    search = searcher(tmp_path, ["limits.macs=1e6"])
    for i in range(4):
        config, sizes = cost(suggested(search, f"ray-{i}"))
        assert any(config.limits.allow(macs, params) for macs, params in sizes)
    rejected = read_searcher(tmp_path)["rejected"]
    assert rejected == dict(search.rejected)
    assert set(rejected) == {"over the limits at every stage"}  # a tight limit rejects some of any draws
    told = [t for t in search._study.get_trials() if t.state == TrialState.PRUNED]
    assert len(told) == sum(rejected.values())
    assert all(t.constraints["limits"] > 0 for t in told)


def test_violation_is_the_cheapest_stages_excess() -> None:
    limits = compose(["limits.macs=100", "limits.bytes=100", "limits.precision=int8"]).limits
    assert violation(((200, 90), (150, 10)), limits) == pytest.approx(0.5)
    assert violation(((200, 90), (90, 110)), limits) == pytest.approx(0.1)
    assert violation(((200, 90), (90, 50)), limits) == pytest.approx(-0.1)


@pytest.mark.slow
def test_space_without_a_feasible_point_ends_after_bounded_tries(tmp_path: Path) -> None:
    space = space_from_dict({"name": "s", "parameters": {"train.lr": {"uniform": [0.001, 0.01]}}})
    search = searcher(tmp_path, ["limits.macs=1000"], space=space)
    assert search.suggest("ray-0") == Searcher.FINISHED
    told = read_searcher(tmp_path)
    assert told["exhausted"]
    assert sum(told["rejected"].values()) == MAX_REJECTIONS


@pytest.mark.slow
def test_no_configuration_is_suggested_twice(tmp_path: Path) -> None:
    space = space_from_dict({"name": "s", "parameters": {"student.base_channels": {"choice": [8, 16, 24]}}})
    search = searcher(tmp_path, [], space=space)
    widths = [suggested(search, f"ray-{i}")["student.base_channels"] for i in range(3)]
    assert sorted(widths) == [8, 16, 24]
    assert search.suggest("ray-3") == Searcher.FINISHED


@pytest.mark.slow
def test_restored_searcher_goes_on_as_the_uninterrupted_one(tmp_path: Path) -> None:
    through, stopped, restored = (searcher(tmp_path, []) for _ in range(3))
    for search in (through, stopped):
        for i in range(12):  # past TPE's random start
            search.suggest(f"ray-{i}")
            result = {"val_macro_avg_acc": 0.1 * (i % 7), "macs": 1e6 * (i + 1), "finished": True}
            search.on_trial_complete(f"ray-{i}", result)
    stopped.save(str(tmp_path / "state.pkl"))
    restored.restore(str(tmp_path / "state.pkl"))
    assert [restored.suggest(f"ray-{i}") for i in (20, 21)] == [through.suggest(f"ray-{i}") for i in (20, 21)]


def test_what_optuna_is_told(tmp_path: Path) -> None:
    search = searcher(tmp_path, [])
    outcomes = {
        "complete": {"val_macro_avg_acc": 0.6, "macs": 2e6, "finished": True},
        "early": {"val_macro_avg_acc": 0.1, "macs": 2e6, "finished": False},
        "nan": {"val_macro_avg_acc": 0.1, "macs": 2e6, "finished": False, "failure": "loss is nan"},
    }
    numbers = {}
    for name, result in outcomes.items():
        search.suggest(name)
        numbers[name] = search._ot_trials[name].number
        search.on_trial_complete(name, result)
    search.suggest("crash")
    numbers["crash"] = search._ot_trials["crash"].number
    search.on_trial_complete("crash", error=True)
    trials = {name: search._study.get_trials()[number] for name, number in numbers.items()}
    assert {name: t.state for name, t in trials.items()} == {
        "complete": TrialState.COMPLETE,
        "early": TrialState.PRUNED,
        "nan": TrialState.FAIL,
        "crash": TrialState.FAIL,
    }
    assert trials["complete"].values == [0.6, 2e6]
    assert trials["early"].values is None


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
        second.load_checkpoint(str(folder))
        rest = [second.train() for _ in range(max(1, 3 - stop_after))]
        assert [figures(r) for r in rest] == [figures(r) for r in expected[min(stop_after, 2) :]]
        assert rest[-1]["done"]
        second.stop()


@pytest.mark.slow
def test_reused_actor_leaves_nothing_of_the_last_trial(ray_config: dict, monkeypatch) -> None:
    """A trial on a reused actor gives the results of one on a new actor."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    other = ray_config | {"trial": "t0001", "student.base_channels": 24, "seed": 0, "train.lr": 0.02}
    fresh = PruneTrainable(dict(ray_config))
    expected = [figures(fresh.train()) for _ in range(3)]
    fresh.stop()
    reused = PruneTrainable(dict(other))
    reused.train()
    assert reused.reset(dict(ray_config))
    loaded = reused._data
    assert [figures(reused.train()) for _ in range(3)] == expected
    assert reused._data is loaded  # the read-only clips are kept
    reused.stop()


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


def test_kd_trainable_refuses_to_prune(ray_config: dict) -> None:
    with pytest.raises(ConfigError, match="needs PruneTrainable"):
        KDTrainable(dict(ray_config))
