"""The searcher - what it draws, refuses, tells Optuna and remembers - and the Trainables, without a Ray cluster."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.tune as rt
import torch
from optuna.trial import TrialState
from ray.tune.search import Searcher

import tune.search
from search_spaces import SpaceError, load_space, space_from_dict
from tests.power_loss import is_private
from trainables.config import ConfigError, TrialConfig, compose
from trainables.ray_trainables import KDTrainable, PruneTrainable
from tune.gate import NetworkGate, stages, violation
from tune.history import earlier_points, params_of, replay, shortened
from tune.journal import Events, Journal
from tune.search import MAX_REJECTIONS, SAMPLERS, FeasibleOptunaSearch, Verdict

SHIPPED = ("kd", "rep", "families", "prune", "kd_prune", "pbt")


def searcher(overrides: list[str], space=None, events: Events | None = None, **options) -> FeasibleOptunaSearch:
    space = space or load_space("kd_prune")
    base = compose([*space.base, *overrides]).flat()
    return FeasibleOptunaSearch(space, base, NetworkGate(base), events=events, **options)


def suggested(search: FeasibleOptunaSearch, trial_id: str) -> dict:
    config = search.suggest(trial_id)
    assert isinstance(config, dict)
    return config


def study_of(search: FeasibleOptunaSearch) -> list:
    return search._study.get_trials(deepcopy=False)


def sizes_of(config: dict) -> tuple[TrialConfig, list[tuple[int, int]]]:
    c = TrialConfig.from_flat({k: v for k, v in config.items() if k != "trial"})
    return c, [(m, p) for m, p, _ in stages(c.student, c.prune, c.frontend.n_mels, c.frontend.frames)]


def points(n: int, accuracy: float = 0.6) -> list[dict]:
    """Of a dense network and n - 1 prune steps, each half as large."""
    return [{"step": k, "val_macro_avg_acc": accuracy - k / 100, "macs": 8e6 / 2**k} for k in range(n)]


@pytest.mark.slow
def test_every_suggestion_fits_the_limits_at_some_stage() -> None:
    events = Events()
    search = searcher(["limits.macs=1e6"], events=events)
    for i in range(8):
        config, sizes = sizes_of(suggested(search, f"ray-{i}"))
        assert any(config.limits.allow(macs, params) for macs, params in sizes)
    assert set(events.log.rejected) == {"over the limits at every stage"}  # a tight limit rejects some of any draws
    told = [t for t in study_of(search) if t.state == TrialState.PRUNED]
    assert len(told) == events.log.rejected.total()
    assert all(t.constraints["limits"] > 0 for t in told)


def test_violation_is_the_cheapest_stages_excess() -> None:
    limits = compose(["limits.macs=100", "limits.bytes=100", "limits.precision=int8"]).limits
    assert violation(((200, 90), (150, 10)), limits) == pytest.approx(0.5)
    assert violation(((200, 90), (90, 110)), limits) == pytest.approx(0.1)
    assert violation(((200, 90), (90, 50)), limits) == pytest.approx(-0.1)


@pytest.mark.slow
def test_space_without_a_feasible_point_ends_after_bounded_tries() -> None:
    space = space_from_dict({"name": "s", "parameters": {"train.lr": {"uniform": [0.001, 0.01]}}})
    events = Events()
    search = searcher(["limits.macs=1000"], space, events)
    assert search.suggest("ray-0") == Searcher.FINISHED
    assert events.log.exhausted
    assert events.log.rejected == {"over the limits at every stage": MAX_REJECTIONS}


@pytest.mark.slow
def test_no_network_is_trained_twice_in_the_same_way() -> None:
    """Ratios that differ and remove the same channels are one configuration, another learning rate makes another."""
    parameters = {"prune.ratios": {"choice": [[0.3], [0.3001]]}, "train.lr": {"choice": [0.01, 0.02]}}
    space = space_from_dict({"name": "s", "base": ["student.base_channels=8"], "parameters": parameters})
    events = Events()
    search = searcher([], space, events)
    rates = [suggested(search, f"ray-{i}")["train.lr"] for i in range(2)]
    assert sorted(rates) == [0.01, 0.02]
    assert search.suggest("ray-2") == Searcher.FINISHED
    assert set(events.log.rejected) == {"trained before"}


def drive(search: FeasibleOptunaSearch, journal: Events, first: int, last: int, leave: int | None = None) -> list[dict]:
    """Draw and finish trials, as the driver does; `leave` is drawn and left running."""
    drawn = []
    for i in range(first, last):
        config = suggested(search, f"ray-{i}")
        drawn.append(config)
        if i == leave:
            continue
        whole = i % 3 > 0
        measured = points(len(config["prune.ratios"]) + 1 if whole else 1, 0.3 + config["distill.kd_alpha"] / 2)
        for point in measured:
            ends = point is measured[-1]
            fields = {"stage": point["step"], "epochs": point["step"] + 1, "done": ends, "finished": ends and whole}
            journal.add("result", trial=config["trial"], point=point, **fields)
        search.on_trial_complete(f"ray-{i}", measured[-1] | {"points": measured, "finished": whole})
    return drawn


def plain_gate(values: dict) -> Verdict:
    """Rejects the widest networks; builds nothing."""
    wide = values["student.base_channels"] > 24
    return Verdict(json.dumps(values), 0.5 if wide else -0.5, "too wide" if wide else "", "")


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_resumed_searcher_goes_on_as_the_uninterrupted_one(sampler: str, tmp_path: Path, monkeypatch) -> None:
    """Past the random start and past a shortening of the history."""
    monkeypatch.setattr(tune.search, "CAPACITY", 24)
    space, journals = load_space("kd_prune"), [Journal(tmp_path / name) for name in ("through", "stopped")]
    through, stopped = (FeasibleOptunaSearch(space, {}, plain_gate, sampler=sampler, events=j) for j in journals)
    assert drive(through, journals[0], 0, 30) == drive(stopped, journals[1], 0, 30)
    expected = drive(through, journals[0], 30, 36)
    again = Journal(tmp_path / "stopped")
    resumed = FeasibleOptunaSearch(space, {}, plain_gate, sampler=sampler, events=again)
    assert len(study_of(resumed)) == len(study_of(stopped)) < 30
    assert drive(resumed, again, 30, 36) == expected


def test_trials_that_have_not_ended_come_first_after_a_resume(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    search = FeasibleOptunaSearch(load_space("kd_prune"), {"seed": 0}, plain_gate, events=journal)
    drawn = drive(search, journal, 0, 4, leave=2)
    again = Journal(tmp_path)
    resumed = FeasibleOptunaSearch(load_space("kd_prune"), {"seed": 0}, plain_gate, events=again)
    assert [t.name for t in resumed.pending] == ["t0002"]
    assert suggested(resumed, "a") == drawn[2]
    assert suggested(resumed, "b")["trial"] == "t0004"
    assert [t.state for t in study_of(resumed)].count(TrialState.RUNNING) == 2


def test_crashed_trial_is_told_as_failed_unless_it_is_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    search = FeasibleOptunaSearch(load_space("kd_prune"), {}, plain_gate, events=journal)
    for name in ("t0000", "t0001"):
        assert suggested(search, name)["trial"] == name
        journal.add("end", trial=name, status="failed", failure="the node died")
    again = Journal(tmp_path)
    again.add("retry", trial="t0001")
    resumed = FeasibleOptunaSearch(load_space("kd_prune"), {}, plain_gate, events=again)
    assert [t.name for t in resumed.pending] == ["t0001"]
    told = [t.state for t in study_of(resumed) if t.state in (TrialState.FAIL, TrialState.RUNNING)]
    assert told == [TrialState.FAIL, TrialState.RUNNING]


def test_replicates_that_a_kill_left_out_are_added(tmp_path: Path) -> None:
    options = {"space": load_space("kd"), "fixed": {}, "gate": lambda v: Verdict(str(v), -1.0), "replicates": 3}
    journal = Journal(tmp_path)
    search = FeasibleOptunaSearch(events=journal, **options)
    drawn = [suggested(search, f"ray-{i}") for i in range(4)]
    lines = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join(lines[:-2]))  # t0001 is there, its replicates are not
    again = Journal(tmp_path)
    resumed = FeasibleOptunaSearch(events=again, **options)
    assert [t.name for t in resumed.pending] == ["t0000", "t0000r1", "t0000r2", "t0001", "t0001r1", "t0001r2"]
    configs = [suggested(resumed, f"ray-{i}") for i in range(7)]
    assert configs[:4] == drawn
    assert [c["trial"] for c in configs[4:]] == ["t0001r1", "t0001r2", "t0002"]
    for i, accuracy in enumerate((0.4, 0.5, 0.9), start=3):
        resumed.on_trial_complete(f"ray-{i}", {"val_macro_avg_acc": accuracy, "macs": 2e6, "finished": True})
    assert [t.values for t in study_of(resumed) if t.values] == [pytest.approx([0.6, 2e6])]


def test_a_space_that_has_become_narrower_goes_on(tmp_path: Path) -> None:
    """What it does not hold any more is not told to Optuna; names and draws are counted on."""
    journal = Journal(tmp_path)
    drive(FeasibleOptunaSearch(load_space("kd_prune"), {}, plain_gate, events=journal), journal, 0, 8, leave=5)
    space = load_space("kd_prune").as_dict()
    space["parameters"]["distill.kd_alpha"] = {"uniform": [0.3, 0.6]}
    again = Journal(tmp_path)
    resumed = FeasibleOptunaSearch(space_from_dict(space), {}, plain_gate, events=again)
    told = len(study_of(resumed))
    assert 0 < told < len(journal.log.trials) + journal.log.rejected.total()
    for i, expected in enumerate(("t0005", "t0008", "t0009")):
        config = suggested(resumed, str(i))
        assert config["trial"] == expected
        resumed.on_trial_complete(str(i), points(1)[0] | {"finished": True})
    assert 0.3 <= config["distill.kd_alpha"] <= 0.6


def test_what_optuna_is_told() -> None:
    search = FeasibleOptunaSearch(load_space("kd_prune"), {}, plain_gate)
    outcomes = {
        "complete": {"val_macro_avg_acc": 0.6, "macs": 2e6, "finished": True},
        "early": {"val_macro_avg_acc": 0.1, "macs": 2e6, "finished": False},
        "nan": {"val_macro_avg_acc": 0.1, "macs": 2e6, "finished": False, "failure": "loss is nan"},
        "crash": None,
    }
    told = {}
    for name, result in outcomes.items():
        search.suggest(name)
        (number,) = [t.number for t in study_of(search) if t.state == TrialState.RUNNING]
        search.on_trial_complete(name, result, error=result is None)
        told[name] = study_of(search)[number]
    assert {name: t.state for name, t in told.items()} == {
        "complete": TrialState.COMPLETE,
        "early": TrialState.PRUNED,
        "nan": TrialState.FAIL,
        "crash": TrialState.FAIL,
    }
    assert told["complete"].values == [0.6, 2e6]
    assert told["early"].values is None


@pytest.mark.parametrize("finished", [True, False])
def test_shorter_schedules_are_told_too(finished: bool) -> None:
    """A trial with 3 prune steps has trained those with 1 and 2 of them; stopped after its third point, those two."""
    space = load_space("kd_prune")
    search = FeasibleOptunaSearch(space, {}, plain_gate)
    while len(ratios := suggested(search, "a")["prune.ratios"]) < 3:
        search.on_trial_complete("a", error=True)
    measured = points(4 if finished else 3)
    search.on_trial_complete("a", measured[-1] | {"points": measured, "finished": finished})
    told = [t for t in study_of(search) if t.state == TrialState.COMPLETE]
    expected = {p["step"]: [p["val_macro_avg_acc"], p["macs"]] for p in measured if p["step"]}
    assert {t.params["prune.steps"]: t.values for t in told} == expected
    for trial in told:
        assert replay(space, trial.params)[0]["prune.ratios"] == ratios[: trial.params["prune.steps"]]


def test_replicates_are_one_configuration_with_other_seeds() -> None:
    search = FeasibleOptunaSearch(load_space("kd"), {}, lambda v: Verdict(str(v), -1.0), replicates=3)
    configs = [suggested(search, f"ray-{i}") for i in range(6)]
    names = ["t0000", "t0000r1", "t0000r2", "t0001", "t0001r1", "t0001r2"]
    assert [c.pop("trial") for c in configs] == names
    assert [c.pop("replicate", 0) for c in configs] == [0, 1, 2, 0, 1, 2]
    assert configs[0] == configs[1] == configs[2] != configs[3]
    for i, accuracy in enumerate((0.5, 0.6, 0.7)):
        assert not [t for t in study_of(search) if t.state == TrialState.COMPLETE]
        search.on_trial_complete(f"ray-{i}", {"val_macro_avg_acc": accuracy, "macs": 2e6, "finished": True})
    (told,) = [t for t in study_of(search) if t.state == TrialState.COMPLETE]
    assert told.values == pytest.approx([0.6, 2e6])


@pytest.mark.parametrize("name", SHIPPED)
def test_parameters_come_back_from_values(name: str) -> None:
    space = load_space(name)
    search = FeasibleOptunaSearch(space, {}, lambda v: Verdict(str(v), -1.0), sampler="random")
    for i in range(10):
        values = suggested(search, str(i))
        values.pop("trial")
        asked = study_of(search)[-1]
        found = params_of(space, json.loads(json.dumps(values)))
        assert replay(space, found)[0] == values
        if name != "rep":  # an empty subset is drawn as another one
            assert found == asked.params
        assert replay(space, asked.params) == (values, asked.distributions)


def test_values_outside_a_space_are_refused() -> None:
    space = load_space("kd")
    values = {"distill.kd_alpha": 0.5, "distill.kd_temp": 2.0, "train.lr": 0.01, "student.base_channels": 16}
    assert params_of(space, values) == values
    for key, value in (("distill.kd_alpha", 2.0), ("student.base_channels", 12), ("train.lr", "fast")):
        with pytest.raises(SpaceError, match=key):
            params_of(space, values | {key: value})
    assert shortened(space, values, 1) is None


def test_warm_start_takes_an_earlier_studys_points(tmp_path: Path) -> None:
    """Those that a space that has become narrower can draw; what is known is not told twice."""
    journal = Journal(tmp_path)
    drive(FeasibleOptunaSearch(load_space("kd_prune"), {}, plain_gate, events=journal), journal, 0, 12)
    found = list(earlier_points(load_space("kd_prune"), tmp_path))
    measured = [p for t in journal.log.trials.values() for p in t.points if p["step"]]
    assert len(found) == len(measured) > 8
    search = FeasibleOptunaSearch(load_space("kd_prune"), {}, plain_gate)
    assert search.tell_known(found) == len(found)
    assert search.tell_known(found) == 0
    told = [t for t in study_of(search) if t.state == TrialState.COMPLETE]
    assert [t.params for t in told] == [params for params, _ in found]
    narrower = load_space("kd_prune").as_dict()
    narrower["parameters"]["student.base_channels"] = {"int": [8, 16], "step": 8}
    kept = list(earlier_points(space_from_dict(narrower), tmp_path))
    assert 0 < len(kept) < len(found)


@pytest.mark.slow
def test_gp_sampler_draws() -> None:
    assert set(SAMPLERS) == {"tpe", "nsga2", "gp", "random"}
    search = FeasibleOptunaSearch(load_space("kd"), {}, lambda v: Verdict(str(v), -1.0), sampler="gp")
    for i in range(12):  # past its random start
        config = suggested(search, str(i))
        result = {"val_macro_avg_acc": config["distill.kd_alpha"], "macs": 1e6, "finished": True}
        search.on_trial_complete(str(i), result)
    assert len(study_of(search)) == 12


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
        gone = rt.Checkpoint.from_directory(str(tmp_path / "gone"))  # its owner has trained on since
        second.restore(SimpleNamespace(checkpoint=gone))
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
    assert reused.reset(ray_config | {"train.lr": -1.0})  # Ray tries again what fails at its first step, not here
    with pytest.raises(ConfigError, match=r"train\.lr"):
        reused.train()
    reused.stop()


@pytest.mark.slow
def test_an_actor_works_in_a_private_folder_of_its_own_for_a_study_in_a_store(
    ray_config: dict, tmp_path: Path, monkeypatch
) -> None:
    """Nothing of another user's or bucket's is read, followed or deleted; networks go to the store."""
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
    second = PruneTrainable(config | {"remote": str(tmp_path / "two" / "x")})  # the same study and trial elsewhere
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
    """The error that PyTorch raises where a GPU is full, from within a layer."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    told = "CUDA out of memory. Tried to allocate 2.00 GiB.\nProcess 1 has 79 GiB in use."

    def full(*arguments) -> None:
        raise torch.OutOfMemoryError(told)

    trainable = PruneTrainable(ray_config | {"trial": "t0003"})
    trainable._trial.model.register_forward_hook(full)
    failed = trainable.train()
    assert failed["done"]
    assert not failed["finished"]
    assert failed["failure"] == f"out of GPU memory: {told.splitlines()[0]}"
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
    with pytest.raises(ConfigError, match="needs PruneTrainable"):
        KDTrainable(dict(ray_config))
