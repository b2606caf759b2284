"""Each shipped space and student goes through all stages of a trial, with one training step in each."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ascmodels.checkpoint import load_student
from ascmodels.nessi import get_torch_size
from search_spaces import FOLDER, load_space
from trainables.config.compose import CONFIG_DIR, compose
from trainables.config.schema import TrialConfig
from trainables.inputs.clips import load_clips
from trainables.trial.data import TrialData
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial

SMALL = (
    *("frontend.sample_rate=16000", "frontend.n_fft=1024", "frontend.win_length=1024", "frontend.hop_length=512"),
    *("frontend.n_mels=32", "augment.freq_mask=4", "train.epochs=1", "train.batch_size=64", "prune.epochs=1"),
    *("train.device=cpu", "limits.macs=1e12", "limits.bytes=1e12"),
)


@pytest.fixture(scope="module")
def data(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    """Return so few clips that an epoch is one step, with random teacher logits."""
    cache = tmp_path_factory.mktemp("cache")
    clips = load_clips(compose([*SMALL, f"data.dataset_dir={tiny_tau}", f"data.cache_dir={cache}"]), 16_000)
    logits = torch.randn(len(clips.train.rows), 10, generator=torch.Generator().manual_seed(0))
    return TrialData(replace(clips.train, teacher=logits), clips.validation, clips.notes)


def check_whole_trial(config: TrialConfig, data: TrialData, folder: Path) -> None:
    trial = Trial(config, data, folder)
    records = list(run_trial(trial))
    assert records[-1].finished
    assert len(trial.points) == trial.n_stages
    assert all(big.macs > small.macs for big, small in zip(trial.points, trial.points[1:], strict=False))
    for point in trial.points:
        assert torch.isfinite(torch.tensor(point.val_loss))
        student, _ = load_student(folder / point.checkpoint)
        assert student.fused
        size = (1, 1, config.frontend.n_mels, config.frontend.frames)
        assert get_torch_size(student, size) == (point.macs, point.params)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_both_ends_of_every_range_train_prune_and_are_measured(name, data, tmp_path) -> None:
    space = load_space(name)
    base = compose([*space.base, *SMALL]).flat()
    for i, corner in enumerate(space.corners()):
        check_whole_trial(TrialConfig.from_flat(base | corner), data, tmp_path / str(i))


@pytest.mark.slow
@pytest.mark.parametrize("student", sorted(path.stem for path in (CONFIG_DIR / "student").glob("*.yaml")))
def test_every_student_trains_prunes_and_is_measured(student, data, tmp_path) -> None:
    check_whole_trial(compose([f"student={student}", "prune.ratios=[0.3,0.3]", *SMALL]), data, tmp_path)
