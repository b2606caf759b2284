"""Dense parents: dense trainings that several trials share."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ascmodels.checkpoint import CheckpointError
from ascmodels.config.limits import Limits
from ascmodels.config.prune import PruneConfig
from data.files import locked
from data.seals import check_seal
from tests.support import workers
from tests.support.trainables.small_trials import small_trial
from trainables.config.schema import TrialConfig
from trainables.engine.device import set_up_process
from trainables.engine.loop import TrainingDiverged
from trainables.outputs.records import Record, point_dict
from trainables.trial import stages
from trainables.trial.data import TrialData, load_trial_data
from trainables.trial.dense_phase import parent_key, run_shared
from trainables.trial.stages import run_trial
from trainables.trial.start import Weights
from trainables.trial.trial import Trial

DENSE = 3  # epochs


@pytest.fixture(scope="module")
def config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """Three dense epochs, one prune step of one epoch, averaged weights."""
    set_up_process(1)
    sizes = ("student.base_channels=8", f"train.epochs={DENSE}", "train.ema_decay=0.9", "prune.ratios=[0.3]")
    return small_trial(tiny_tau, tmp_path_factory.mktemp("cache"), *sizes)


@pytest.fixture(scope="module")
def data(config: TrialConfig) -> TrialData:
    return load_trial_data(config)


@pytest.fixture(scope="module")
def alone(config: TrialConfig, data: TrialData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, list[Record]]:
    """Return the trial that ran without a parent, and its records."""
    trial = Trial(config, data, tmp_path_factory.mktemp("alone"))
    return trial, timeless(run_trial(trial))


@pytest.fixture(scope="module")
def filled(config: TrialConfig, data: TrialData, alone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of parents in which a trial with other prune steps has trained its dense stage."""
    parents = tmp_path_factory.mktemp("parents")
    other = replace(config, prune=replace(config.prune, ratios=(0.1, 0.5)))
    with pytest.MonkeyPatch.context() as patch:
        trained = count_epochs(patch)
        driver = run_shared(Trial(other, data, tmp_path_factory.mktemp("first")), parents)
        records = timeless(next(driver) for _ in range(DENSE))
    assert records == alone[1][:DENSE]
    assert trained == dense(1, 2, 3)
    return parents


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the name of each epoch that is trained."""
    return count_epochs(monkeypatch)


def count_epochs(patch: pytest.MonkeyPatch) -> list[str]:
    trained, train_epoch = [], stages.train_epoch
    patch.setattr(stages, "train_epoch", lambda *a: (trained.append(a[3].where), train_epoch(*a))[1])
    return trained


def timeless(records: Iterable[Record]) -> list[Record]:
    return [replace(r, seconds=0) for r in records]


def assert_same(trial: Trial, expected: Trial) -> None:
    """Check that points, weights and deployed networks of two trials are equal."""
    assert [point_dict(p) for p in trial.points] == [point_dict(p) for p in expected.points]
    state = expected.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in trial.model.state_dict().items())
    for file in ("step0/student.json", "step0/weights.safetensors", "step1/weights.safetensors"):
        assert (trial.folder / file).read_bytes() == (expected.folder / file).read_bytes(), file


def dense(*epochs: int) -> list[str]:
    return [f"stage 0, epoch {e}" for e in epochs]


LAST = ["stage 1, epoch 1"]


@pytest.mark.slow
def test_the_first_trial_trains_as_if_alone(
    config: TrialConfig, data: TrialData, alone, trained: list[str], tmp_path: Path
) -> None:
    trial = Trial(config, data, tmp_path / "first")
    assert timeless(run_shared(trial, tmp_path / "parents")) == alone[1]
    assert_same(trial, alone[0])
    assert trained == [*dense(1, 2, 3), *LAST]


@pytest.mark.slow
def test_another_takes_over_and_goes_on_with_its_own_pruning_and_limits(
    config: TrialConfig, data: TrialData, alone, filled: Path, trained: list[str], tmp_path: Path
) -> None:
    second = Trial(config, data, tmp_path / "second")
    driver = run_shared(second, filled)
    assert timeless(next(driver) for _ in range(DENSE)) == alone[1][:DENSE]
    assert timeless(driver) == alone[1][DENSE:]
    assert_same(second, alone[0])
    assert trained == LAST
    third = Trial(replace(config, prune=PruneConfig(), limits=Limits(macs=1000)), data, tmp_path / "third")
    *_, last = run_shared(third, filled)
    assert (last.finished, last.point) == (True, third.points[0])
    assert third.points[0] == replace(alone[0].points[0], feasible=False)
    assert json.loads((third.folder / "step0" / "student.json").read_text())["extra"]["point"]["feasible"] is False
    assert trained == LAST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "again"),
    [
        ("whole", []),  # the trial's own state is not needed
        ("behind", dense(3)),  # continues alone from its own state
        ("newest damaged", dense(3)),
    ],
)
def test_a_restored_trainer_goes_on(
    config: TrialConfig, data: TrialData, alone, filled, trained: list[str], tmp_path: Path, found: str, again
) -> None:
    first = Trial(config, data, tmp_path / "points")
    driver = run_shared(first, tmp_path / "own")
    assert timeless(next(driver) for _ in range(2)) == alone[1][:2]
    assert first.weights is Weights.OWN
    first.save(tmp_path)
    parents = tmp_path / "found"
    if found == "behind":
        next(run_shared(Trial(config, data, tmp_path / "other"), parents))
    else:
        shutil.copytree(filled, parents)
    if found == "newest damaged":
        flip(next(parents.glob("*/state-0003/trial.pt")))
    trained.clear()
    second = Trial(config, data, tmp_path / "points")
    second.load(tmp_path)
    assert timeless(run_shared(second, parents)) == alone[1][2:]
    assert_same(second, alone[0])
    assert trained == [*again, *LAST]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "again"),
    [
        ("whole", []),
        ("newest damaged", dense(3)),
        ("damaged", dense(1, 2, 3)),  # everything is trained again, although two epochs were reported
        ("given up", dense(1, 2, 3)),  # the rest is trained without a parent
    ],
)
def test_a_restored_taker_goes_on(
    config: TrialConfig, data: TrialData, alone, filled, trained: list[str], tmp_path: Path, found: str, again
) -> None:
    parents = shutil.copytree(filled, tmp_path / "parents")
    (folder,) = parents.iterdir()
    assert sorted(p.name for p in folder.glob("state-*")) == ["state-0002", "state-0003"]
    first = Trial(config, data, tmp_path / "points")
    driver = run_shared(first, parents)
    assert timeless(next(driver) for _ in range(2)) == alone[1][:2]
    assert first.weights is Weights.SHARED
    first.save(tmp_path)
    if "damaged" in found:
        flip(folder / "state-0003" / "student" / "weights.safetensors")
    if found == "damaged":
        (folder / "state-0002" / "seal.json").unlink()
        (folder / ".state-0003.00004711.tmp").mkdir()  # left by a process that was killed while it wrote
    second = Trial(config, data, tmp_path / "points")
    second.load(tmp_path)
    rest = run_trial(second) if found == "given up" else run_shared(second, parents)
    assert timeless(rest) == alone[1][2:]
    assert_same(second, alone[0])
    assert trained == [*again, *LAST]
    assert found == "given up" or check_seal(folder / "state-0003")["records"][-1]["epochs"] == 3
    assert not list(folder.glob(".state*")), "left by a killed trainer"


@pytest.mark.slow
def test_trials_in_turn_share_each_epoch_and_survive_one_that_diverges(
    config: TrialConfig, data: TrialData, alone, trained: list[str], tmp_path: Path
) -> None:
    """Two trials run alternately in one thread, where waiting for each other would be a deadlock."""
    one, two = (Trial(config, data, tmp_path / name) for name in ("one", "two"))
    drivers = [run_shared(t, tmp_path / "parents") for t in (one, two)]
    for i in range(2):
        assert timeless(next(d) for d in drivers) == [alone[1][i]] * 2
        assert (one.weights, two.weights) == (Weights.OWN, Weights.SHARED)
    assert trained == dense(1, 2)
    with torch.no_grad():
        one.model.state_dict()["classifier.0.weight"].fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="stage 0, epoch 3"):
        next(drivers[0])
    assert timeless(drivers[1]) == alone[1][2:]
    assert_same(two, alone[0])
    assert trained == [*dense(1, 2, 3, 3), *LAST]
    (folder,) = (tmp_path / "parents").iterdir()
    with locked(folder / "lock", wait=False):  # the lock is free
        assert check_seal(folder / "state-0003")["records"][-1]["finished"] is False


@pytest.mark.slow
def test_killed_while_training_another_takes_over_and_two_train_each_epoch_once(
    config: TrialConfig, alone, tmp_path: Path, fresh_processes: Callable[..., list[Any]]
) -> None:
    """One of three processes dies in its second dense epoch; the two that wait for it train the rest once."""
    names = ("killed", "one", "two")
    codes = fresh_processes(workers.train_shared, *((config, tmp_path, name, name == "killed") for name in names))
    assert codes == [-9, 0, 0]
    trained = {name: (tmp_path / f"{name}.trained").read_text().splitlines() for name in names}
    assert trained["killed"] == dense(1, 2)
    assert sorted(trained["one"] + trained["two"]) == [*dense(2, 3), *LAST, *LAST]
    for name in names[1:]:
        assert json.loads((tmp_path / f"{name}.json").read_text()) == [r.val_loss for r in alone[1]]
        file = "step1/weights.safetensors"
        assert (tmp_path / name / file).read_bytes() == (alone[0].folder / file).read_bytes()


@pytest.mark.slow
def test_the_key_is_of_all_that_shapes_dense_training(config: TrialConfig, data: TrialData, tmp_path: Path) -> None:
    def key(data: TrialData = data, code: str = "1", **changed: Any) -> str:
        return parent_key(Trial(replace(config, **changed), data, tmp_path), code)

    same = key()
    assert key(prune=PruneConfig(ratios=(0.1, 0.2), criterion="l1")) == same
    assert key(limits=Limits(macs=1e6, bytes=1000), data=data) == same
    assert key(replace(data, notes=("moved",))) == same
    with_teachers = [
        replace(data, train=replace(data.train, teacher=torch.full((len(data.train.rows), 10), x))) for x in (0.0, 1.0)
    ]
    validation = data.validation
    others = [
        *(key(replicate=1), key(seed=1), key(code="2"), *map(key, with_teachers)),
        key(replace(data, validation=replace(validation, rows=validation.rows[::-1], labels=validation.labels[::-1]))),
        key(train=replace(config.train, lr=1e-3)),
        key(augment=replace(config.augment, roll_s=0.2)),
        key(limits=Limits(precision="fp32")),  # validation stores networks at this precision
    ]
    assert len({same, *others}) == 10


@pytest.mark.slow
def test_a_state_that_was_adopted_is_never_shared(
    config: TrialConfig, data: TrialData, filled, trained: list[str], tmp_path: Path
) -> None:
    donor = Trial(config, data, tmp_path / "donor")
    next(run_trial(donor))
    donor.save(tmp_path)
    own = replace(config, train=replace(config.train, lr=1e-4))
    trial = Trial(own, data, tmp_path / "own")
    trial.load(tmp_path, adopt=("train.lr",))
    next(run_shared(trial, tmp_path / "parents"))
    assert trained == dense(1, 2)
    assert not (tmp_path / "parents").exists()
    taker = Trial(config, data, tmp_path / "taker")
    next(run_shared(taker, filled))
    taker.save(tmp_path)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Trial(own, data, tmp_path / "own").load(tmp_path, adopt=("train.lr",))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
