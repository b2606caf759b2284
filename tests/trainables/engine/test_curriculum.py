"""train.curriculum: the entropy of the predicted devices, the clips of an epoch, and a trial with it."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.config.frontend import FrontEndConfig
from tests.support.trainables.epochs import with_
from trainables.config.compose import compose
from trainables.config.schema import ConfigError, TrialConfig
from trainables.config.train import FIRST_SHARE, TrainConfig
from trainables.engine import baseline
from trainables.engine.batches import hardest, steps_of_epoch
from trainables.engine.loop import Epoch, train_epoch
from trainables.inputs.clips import Clips
from trainables.trial import stages
from trainables.trial.data import data_key, load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.trial import Trial

SMALL = FrontEndConfig(n_fft=1024, win_length=1024, n_mels=32)


def test_the_share_of_clips_grows_to_all() -> None:
    train = TrainConfig(epochs=10, curriculum=0.5)
    shares = [train.share_of_clips(e) for e in range(10)]
    assert shares[:5] == pytest.approx([FIRST_SHARE + (1 - FIRST_SHARE) * e / 5 for e in range(5)])
    assert shares[5:] == [1.0] * 5
    assert {TrainConfig(epochs=10).share_of_clips(e) for e in range(10)} == {1.0}


def test_the_hardest_clips_are_drawn_equally_often(clips: Clips) -> None:
    n = len(clips.rows)
    entropy = np.random.default_rng(0).permutation(n) / n
    ranked = replace(clips, device_entropy=entropy)
    for share in (0.01, 0.3, 0.5, 0.99):
        drawn = hardest(ranked, share, np.random.default_rng(1))
        allowed = set(np.argsort(-entropy)[: max(1, int(np.ceil(share * n)))].tolist())
        assert len(drawn) == n and set(drawn.tolist()) == allowed
        counts = np.unique(drawn, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1


def test_an_epoch_with_all_clips_is_as_without_curriculum(clips: Clips) -> None:
    config, device = compose(["train.batch_size=8"]), torch.device("cpu")
    ranked = replace(clips, device_entropy=np.arange(len(clips.rows), dtype=float))

    def picked(clips: Clips, share: float) -> list[list[int]]:
        rng, settings = np.random.default_rng(3), (config.augment, config.frontend, 0, config.train)
        steps = steps_of_epoch(clips, *settings, rng, device, ExitStack(), share)
        return [batch.picked.tolist() for step in steps for batch in step]

    assert picked(ranked, 1.0) == picked(clips, 1.0)
    half = picked(ranked, 0.5)
    assert [len(p) for p in half] == [len(p) for p in picked(clips, 1.0)]
    assert min(min(p) for p in half) >= len(clips.rows) // 2  # the entropy rises with the position


def test_entropy_of_devices(clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is low where the device can be told from the sound, and is computed once."""
    n = len(clips.rows)
    devices = np.array(["a", "b", "c"])[np.arange(n) % 3]
    known = replace(clips, devices=devices)
    told = np.repeat((np.arange(n) % 3 == 0)[:, None], 2, axis=1)  # device a is far from the others, b and c are alike
    noise = np.random.default_rng(0).normal(size=(n, 2))
    monkeypatch.setattr(baseline, "statistics", lambda *_: np.where(told, 50, 0) + noise)
    entropy = baseline.device_entropy(known, SMALL, tmp_path)
    assert entropy.shape == (n,) and (entropy >= 0).all() and (entropy <= np.log(3) + 1e-9).all()
    assert entropy[devices == "a"].max() < 0.3 and np.median(entropy[devices != "a"]) > 0.5
    monkeypatch.setattr(baseline, "_regression", lambda: 1 / 0)  # not fitted again
    assert np.array_equal(baseline.device_entropy(known, SMALL, tmp_path), entropy)
    (file,) = tmp_path.glob("devices-*.json")
    for damage in ("", '{"entropy": [1, 2]}', '{"entropy": "x"}', '{"entropy": [null]}', "[]"):
        file.write_text(damage)
        with pytest.raises(ZeroDivisionError):
            baseline.device_entropy(known, SMALL, tmp_path)
    with pytest.raises(ConfigError, match=r"train\.curriculum.*'a'"):
        baseline.device_entropy(replace(clips, devices=np.full(n, "a")), SMALL, tmp_path)


def test_a_trial_with_a_curriculum_resumes_bit_for_bit(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = with_(config, "distill.kd_alpha=1", "train.curriculum=0.75", "train.epochs=4", "prune.epochs=1")
    data = load_trial_data(learning)
    assert data.train.device_entropy is not None and len(data.train.device_entropy) == len(data.train.rows)
    shares: list[float] = []

    def train(model, optimizer, clips, epoch: Epoch):
        shares.append(epoch.share)
        return train_epoch(model, optimizer, clips, epoch)

    monkeypatch.setattr(stages, "train_epoch", train)
    whole = Trial(learning, data, tmp_path / "whole")
    records = [replace(r, seconds=0) for r in run_trial(whole)]
    assert shares[:4] == pytest.approx([learning.train.share_of_clips(e) for e in range(4)])
    assert set(shares[4:]) == {1.0}  # after a prune step, all clips are used
    first = Trial(learning, data, tmp_path / "points")
    driver = run_trial(first)
    next(driver)
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved")
    second = Trial(learning, data, tmp_path / "points")
    second.load(tmp_path / "saved")
    assert [replace(r, seconds=0) for r in run_trial(second)] == records[1:]


def test_what_cannot_be_is_refused(config: TrialConfig) -> None:
    for words, named in (
        (["train.curriculum=1.5"], r"train\.curriculum=1\.5"),
        (["train.curriculum=nan"], r"train\.curriculum=nan"),
        (["train.curriculum=0.5", "train.sampling=device"], r"train\.sampling='device'"),
        (["teacher.train.curriculum=0.5"], r"teacher\.train\.curriculum=0\.5"),
        (["teacher.train.soup=2"], r"teacher\.train\.soup=2"),
        (["train.soup=-1"], r"train\.soup=-1"),
    ):
        with pytest.raises(ConfigError, match=named):
            compose(words)
    keys = [data_key(with_(config, f"train.curriculum={c}", "frontend.n_mels=32")) for c in (0, 0.5, 0.6)]
    assert keys[0] != keys[1] == keys[2]
