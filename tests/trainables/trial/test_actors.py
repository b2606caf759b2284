"""What the two Trainables accept from their driver unchecked, and what they check; without a Ray cluster."""

import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.inputs.code import code_hash
from trainables.inputs.fingerprint import fingerprint
from trainables.ray_trainables import KDTrainable
from trainables.teachers.fine_tuning import fine_tuned_teacher
from trainables.trial.data import load_trial_data

pytestmark = pytest.mark.slow  # prepares data and trains in most tests

RAY_OWN = {"trial": "t0000"}


@pytest.fixture(scope="module")
def with_teacher(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """A small student with a teacher at another sample rate, on a copy of the data set that a test may change."""
    root = shutil.copytree(tiny_tau, tmp_path_factory.mktemp("tau") / "tau")
    config = compose(
        [
            f"data.dataset_dir={root}",
            f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
            *("frontend.sample_rate=8000", "frontend.n_fft=512", "frontend.win_length=512", "frontend.hop_length=250"),
            *("frontend.n_mels=32", "augment.freq_mask=4", "student.base_channels=16", "train.batch_size=16"),
            *("train.epochs=1", "train.device=cpu", "teacher.train.device=cpu", "teacher.train.epochs=1"),
            *("teacher.train.min_steps=0", "teacher.model.hidden_size=16", "teacher.model.layers=1"),
            "teacher.model.heads=2",
        ]
    )
    folder = str(fine_tuned_teacher(config))
    return replace(config, distill=replace(config.distill, teacher_ckpts=(folder,)))


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("ensemble", ["logits", "greedy"])
def test_with_the_drivers_fingerprint_no_clip_is_looked_at(with_teacher, looked_at, mode, ensemble):
    config = replace(with_teacher, distill=replace(with_teacher.distill, mode=mode, ensemble=ensemble))
    data = load_trial_data(config)
    assert len(looked_at) == 50  # once for each clip, for all sample rates together
    known = fingerprint(config, data)
    looked_at.clear()
    again = load_trial_data(config, known=known)
    assert looked_at == []
    assert again.train.cache.folder == data.train.cache.folder
    other = replace(config, data=replace(config.data, validation_share=0.4))  # a space may search this key
    load_trial_data(replace(other, distill=replace(other.distill, kd_alpha=1.0)), known=known)
    assert looked_at


def trainable(config: TrialConfig, **own: Any) -> KDTrainable:
    return KDTrainable(config.flat() | RAY_OWN | own)


def test_an_actor_refuses_data_that_changed_under_a_running_study(with_teacher, looked_at, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = replace(with_teacher, distill=replace(with_teacher.distill, kd_alpha=1.0))
    known = fingerprint(config, load_trial_data(config)).as_dict()
    looked_at.clear()
    actor = trainable(config, fingerprint=known)
    assert looked_at == []
    assert actor.train()["finished"]
    actor.stop()
    table = Path(str(config.data.dataset_dir)) / "split_setup" / "split100.csv"
    text = table.read_text()
    lines = text.splitlines(keepends=True)
    try:
        table.write_text("".join([lines[0], *lines[:0:-1]]))
        assert "another order" in trainable(config, fingerprint=known).train()["crash"]
        table.write_text("".join(lines[:-1]))
        assert "49 clips" in trainable(config, fingerprint=known).train()["crash"]
    finally:
        table.write_text(text)


def test_an_actor_that_runs_other_code_than_its_driver_refuses(with_teacher, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = replace(with_teacher, distill=replace(with_teacher.distill, kd_alpha=1.0))
    refused = trainable(config, code="0123456789abcdef").train()["crash"]
    for value in ("0123456789abcdef", code_hash(), socket.gethostname(), str(ROOT)):
        assert value in refused
    actor = trainable(config, code=code_hash())
    assert actor.reset(config.flat() | RAY_OWN | {"code": "0123456789abcdef"})
    assert "0123456789abcdef" in actor.train()["crash"]  # a reused actor refuses, too
    actor.stop()
