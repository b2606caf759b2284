"""Overrides and options of `tune/run.py`: what they set, and which are refused before any work."""

from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces import load_space
from tests.support.driven_study import Commands
from tests.support.tau import make_tau
from trainables.config.schema import ConfigError, TrialConfig
from trainables.inputs.clips import with_enough_epochs
from tune.study.manifest import StudyError, read_manifest, write_manifest


@pytest.mark.parametrize(
    ("space", "key", "value"),
    [
        ("kd", "distill.kd_alpha", "1"),
        ("kd_prune", "distill.kd_alpha", "0.6"),
        ("kd_prune", "prune.ratios", "[0.3,0.3]"),
        ("rep", "student.branches", "[3x3]"),
        ("kd_prune", "train.lr", "0.01"),
    ],
)
@pytest.mark.parametrize("form", ["{key}={value}", "--{flag}={value}", "--{flag} {value}", "--{key}={value}"])
def test_a_typed_value_of_a_searched_key_is_refused(refused_early, space: str, key: str, value: str, form: str) -> None:
    """The value would have no effect. It may be typed as an override, as a flag, or as the key with two dashes."""
    words = form.format(key=key, flag=key.rpartition(".")[2], value=value).split(" ")
    printed = refused_early("--space", space, *words)
    assert f"{key}={value}" in printed.replace("'", "") and f"space {space} " in printed
    range_drawn = next(iter(load_space(space).parameters[key].values()))
    assert str(range_drawn) in printed


@pytest.mark.parametrize(
    ("space", "group", "keys"),
    [
        ("families", "student=tf_sepnet_24", ["student.family", "student.base_channels"]),
        ("rep", "student=cp_mobile", ["student.branches"]),
        ("rep", "--repconv=False", ["student.branches"]),
    ],
)
def test_a_group_whose_every_value_is_searched_is_refused(refused_early, space: str, group: str, keys: list) -> None:
    printed = refused_early("--space", space, group)
    assert group.replace("--repconv=False", "student=cp_mobile") in printed and f"space {space} " in printed
    assert all(key in printed for key in keys)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["student=rep_mobile", "student=cp_mobile", "profile=full", "student=tf_sepnet"])
def test_a_group_that_has_an_effect_may_be_typed(typed: Commands, group: str) -> None:
    typed("--space", "kd", group, *typed.arguments)


def test_a_value_that_the_space_does_not_search_may_be_typed(typed: Commands) -> None:
    manifest, _ = typed("--space", "rep", "--kd_alpha=0.25", *typed.arguments)
    assert manifest.resolved.config["distill.kd_alpha"] == 0.25


def test_population_based_training_of_several_networks_is_refused_early(refused_early) -> None:
    printed = refused_early("--scheduler", "pbt", "--space", "kd_prune", "--name", "X")
    for text in ("--scheduler pbt", "kd_prune", " prune.ratios, student.base_channels, student.branches. "):
        assert text in printed


def test_a_teacher_that_is_none_is_refused_early(refused_early, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "absent"):
        printed = refused_early("--space", "kd", "--teacher_ckpts", str(place))
        assert "distill.teacher_ckpts" in printed and str(place) in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("word", ["train.device=cuda", "train.amp=fp16"])
def test_what_needs_a_gpu_is_refused_early(refused_early, word: str) -> None:
    assert word in refused_early("--space", "kd", word)


@pytest.mark.slow
def test_what_is_typed_wins(typed: Commands) -> None:
    def opened(*words: str) -> dict[str, Any]:
        manifest, _ = typed("--space", "kd", *words, *typed.arguments)
        assert manifest.requested.seed == manifest.resolved.config["seed"]
        return manifest.resolved.config

    assert opened("--cpus-per-trial", "2")["train.threads"] == 2
    assert opened("--cpus-per-trial", "2", "train.threads=1", "seed=7")["train.threads"] == 1
    assert opened("seed=7")["seed"] == 7
    assert opened("--seed", "9")["seed"] == 9
    assert opened()["data.cache_dir"] == str(typed.storage / "cache")
    assert opened("--gpus-per-trial", "0")["train.device"] == "cpu"
    assert not list(typed.storage.glob("*/study.json"))


def test_resume_takes_the_same_command_and_refuses_another(typed: Commands, tmp_path: Path, monkeypatch) -> None:
    words = ["--space", "kd", "--name", "X", "--limits", "macs=2e7", "--subset=25", *typed.arguments, "--resume"]
    manifest, _ = typed(*words)
    folder = Path(manifest.resolved.folder)
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest
    assert typed(*words) == (manifest, True)
    with pytest.raises(ConfigError) as error:
        typed(*words, "--limits", "macs=3e7")
    assert all(text in str(error.value) for text in ("limits.macs", "30000000", "20000000"))
    moved = folder.rename(folder.with_name("Y"))
    words[3] = "Y"
    assert typed(*words)[0].resolved.folder == str(moved)
    write_manifest(moved, manifest.changed(overrides=(), folder=str(moved)))
    monkeypatch.setenv("TAU24_PATH", str(make_tau(tmp_path / "other")))
    with pytest.raises(StudyError) as refused:
        typed("--name", "Y", "--resume")
    assert all(str(text) in str(refused.value) for text in (tmp_path / "other", "TAU24_PATH"))


@pytest.mark.slow
def test_small_data_sets_get_more_epochs_unless_epochs_are_typed(typed: Commands) -> None:
    def config(*words: str) -> TrialConfig:
        manifest, _ = typed("--space", "kd", typed.arguments[0], *words)
        return with_enough_epochs(TrialConfig.from_flat(manifest.resolved.config), 100)

    quick = config()
    assert quick.train.epochs == 150  # 600 steps of 4 batches
    assert quick.prune.epochs == 38  # 4 * 150 / 16, rounded up
    assert quick.teacher.train.epochs == 154  # 2000 steps of 13 batches
    assert config("--epochs=3").train.epochs == 3
    assert config("--epochs=3").prune.epochs == 4
    assert config("teacher.train.epochs=1").teacher.train.epochs == 1
    assert config("profile=full").train.epochs == 150
