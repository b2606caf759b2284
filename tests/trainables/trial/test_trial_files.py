"""The files of a trial: a network is on disk before its point is reported, and is replaced in one step."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.power_loss import Disk, visible
from tests.support.trainables.small_trials import small_trial
from trainables.config.schema import TrialConfig
from trainables.engine.device import set_up_process
from trainables.trial.data import TrialData, load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial

pytestmark = pytest.mark.slow  # whole trials


@pytest.fixture(scope="module")
def config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """Two dense epochs and two prune steps of one epoch on the tiny data set, without a teacher."""
    set_up_process(1)
    sizes = ("student.base_channels=16", "train.epochs=2", "prune.ratios=[0.3,0.3]")
    return small_trial(tiny_tau, tmp_path_factory.mktemp("cache"), *sizes)


@pytest.fixture(scope="module")
def data(config: TrialConfig) -> TrialData:
    return load_trial_data(config)


def test_a_trial_that_starts_again_keeps_its_network_until_the_next_replaces_it(
    config: TrialConfig, data: TrialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "experiments" / "t0000"
    first = run_trial(Trial(config, data, folder))
    before = [next(first) for _ in range(2)][-1].point
    assert before
    network, old = folder / before.checkpoint, content_of(folder)
    disk = Disk(tmp_path, monkeypatch)
    again = run_trial(Trial(replace(config, replicate=1), data, folder))  # other weights, so that the networks differ
    assert next(again).point is None
    assert content_of(folder) == old
    assert next(again).point
    new = content_of(folder)
    assert list(new) == list(old)
    assert new != old
    assert {p.parent for p in new} == {network}
    for state in disk.states:  # a kill or power loss at any moment leaves one of the two
        files = {tmp_path / path: found for path, found in visible(state).items()}
        assert files in (old, new) or not files
        assert files or set(old.values()) <= set(state.values())  # between two renames
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainables.trial.trial.checkpoint.save_student", lambda *_: None)
        network.rename(network.with_name(".step0.0000000a.old"))  # a kill between two renames
        third = run_trial(Trial(config, data, folder))
        next(third)
        next(third)
    assert content_of(folder) == new


def test_a_network_and_its_new_folders_are_on_disk_before_its_point_is_reported(
    config: TrialConfig, data: TrialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study" / "experiments" / "t0000"
    trial = Trial(config, data, folder)
    disk = Disk(tmp_path, monkeypatch)
    for record in run_trial(trial):
        if record.point:
            durable = {tmp_path / path for path in visible(disk.surely())}
            assert durable >= {folder / record.point.checkpoint / f for f in ("student.json", "weights.safetensors")}
    assert visible(disk.surely()) == disk.now()
    assert len(disk.now()) == 2 * len(trial.points) == 6


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
