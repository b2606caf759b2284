"""The command `tune/run.py` before anything is searched: what it refuses, naming key and value; it leaves nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import soundfile
import torch

from search_spaces import FOLDER, load_space, space_from_dict
from tests.support.driven_study import Commands
from tests.support.paths import ROOT
from tests.support.tau import make_tau
from trainables.config.compose import compose
from trainables.config.schema import ConfigError, TrialConfig
from trainables.inputs.clips import with_enough_epochs
from tune.arguments import DEFAULTS, limit_overrides, parser
from tune.checks import resolve_gpus
from tune.driver import shares_dense
from tune.options import read_request
from tune.run import main, on_cluster, with_gpus
from tune.study.lease import lock
from tune.study.manifest import StudyError, read_manifest, write_manifest

SMALL = ("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "teacher.train.epochs=1")


@pytest.fixture
def run(tiny_tau: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Type the command with `words`, which it refuses; what it printed. No study is there afterwards."""

    def type_command(*words: str, dataset: Path | None = None) -> str:
        storage = tmp_path / "runs"
        given = [f"--dataset_dir={dataset or tiny_tau}", f"--cache_dir={tmp_path / 'cache'}", *SMALL]
        storing = [] if "--storage" in words else ["--storage", str(storage)]
        assert main([*words, *storing, *given]) == 2
        assert not list(storage.glob("*/*")), "something was written"
        return " ".join(capsys.readouterr().out.split())

    return type_command


@pytest.fixture
def refused_early(run, tmp_path: Path):
    """The same for what is refused before any work: no folder, no lock, no decoded clip, no Ray."""

    def type_command(*words: str) -> str:
        printed = run(*words)
        assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()
        assert printed.count("error:") == 1 and not ray.is_initialized()
        return printed

    return type_command


@pytest.fixture
def own_tau(tiny_tau: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may break."""
    return Path(shutil.copytree(tiny_tau, tmp_path / "tau"))


def write_space(folder: Path, text: str) -> str:
    path = folder / "space.yaml"
    path.write_text(text)
    return str(path)


def test_unknown_space(run) -> None:
    said = run("--space", "kd_prun")
    assert "unknown search space 'kd_prun'" in said
    assert "kd, kd_prune, pbt, prune, rep" in said


def test_space_is_required(run) -> None:
    assert "--space is missing" in run()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parameters:\n  train.lr: {uniform: [0.1, 0.01]}", "low 0.1 is above high 0.01"),
        ("parameters:\n  distill.kd_alhpa: {uniform: [0.1, 0.2]}", "did you mean distill.kd_alpha"),
        ("parameters:\n  train.lr: {uniform: [0.1, 0.2], lo: 3}", "unknown key 'lo'"),
        ("paramters:\n  train.lr: {uniform: [0.1, 0.2]}", "did you mean parameters?"),
        ("parameters:\n  distill.kd_alpha: {uniform: [0.5, 2]}", "distill.kd_alpha=2.0: expected a weight in [0, 1]"),
        ("parameters:\n  prune.ratios: {choice: [[0.97]]}", "would empty a layer"),
        ("parameters: [", "is not YAML"),
    ],
)
def test_bad_space(run, tmp_path: Path, text: str, words: str) -> None:
    assert words in run("--space", write_space(tmp_path, text))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--subset=7", "data.subset=7: expected one of 5, 10, 25, 50, 100"),
        ("--kd_alfa=0.5", "did you mean kd_alpha?"),
        ("distill.kd_temp=0", "distill.kd_temp=0.0: expected a finite temperature above 0"),
        ("train.weight_decay=fast", "train.weight_decay"),
        ("student=resnet", "resnet"),
    ],
)
def test_bad_configuration(run, flag: str, words: str) -> None:
    assert words in run("--space", "families", flag)


def test_bad_limits(run) -> None:
    assert "expected macs=NUMBER,bytes=NUMBER" in run("--space", "kd", "--limits", "mac=3")
    assert "limits.precision='int4'" in run("--space", "kd", "--limits", "precision=int4")
    assert limit_overrides("macs=1e6, bytes=10") == ["limits.macs=1e6", "limits.bytes=10"]


def test_no_data_set(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run("--space", "kd", dataset=tmp_path / "nowhere")
    assert all(words in said for words in ("--dataset_dir", "TAU24_PATH", "6337421"))


def test_missing_split(run, own_tau: Path) -> None:
    said = run("--space", "kd", "--subset=25", "--split_dir", str(own_tau / "empty"))
    assert "split25.csv is in none of" in said


def test_csv_names_a_clip_that_is_not_there(run, own_tau: Path) -> None:
    name = (own_tau / "split_setup" / "split100.csv").read_text().splitlines()[1].split("\t")[0]
    (own_tau / name).unlink()
    said = run("--space", "kd", dataset=own_tau)
    assert "clips are not in" in said
    assert name in said


@pytest.mark.parametrize(("channels", "rate", "words"), [(2, 44_100, "2 channel(s)"), (1, 8000, "at 8000 Hz")])
def test_wrong_wav(run, own_tau: Path, channels: int, rate: int, words: str) -> None:
    name = (own_tau / "split_setup" / "split100.csv").read_text().splitlines()[1].split("\t")[0]
    soundfile.write(own_tau / name, np.zeros((rate, channels)), rate, subtype="PCM_24")
    said = run("--space", "kd", dataset=own_tau)
    assert words in said
    assert name.rsplit("/", 1)[-1] in said


def test_empty_class(run, own_tau: Path) -> None:
    table = own_tau / "split_setup" / "split100.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(keepends=True) if "\ttram" not in line))
    assert "no clip of scene tram" in run("--space", "kd", dataset=own_tau)


def test_unwritable_storage(run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in run("--space", "kd", "--storage", str(tmp_path / "file" / "runs"))
    assert "s9://bucket/x cannot be reached" in run("--space", "kd", "--storage", "s9://bucket/x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(run) -> None:
    assert "PyTorch on this machine has 0 GPU(s)" in run("--space", "kd", "--gpus-per-trial", "1")


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
    """It would have no effect. As an override, as a flag, and as the key with two dashes."""
    words = form.format(key=key, flag=key.rpartition(".")[2], value=value).split(" ")
    printed = refused_early("--space", space, *words)
    assert f"{key}={value}" in printed.replace("'", "") and f"space {space} " in printed
    drawn = next(iter(load_space(space).parameters[key].values()))
    assert str(drawn) in printed


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
    typed("--space", "kd", group, *typed.given)


def test_a_value_that_the_space_does_not_search_may_be_typed(typed: Commands) -> None:
    manifest, _ = typed("--space", "rep", "--kd_alpha=0.25", *typed.given)
    assert manifest.resolved.config["distill.kd_alpha"] == 0.25


def test_population_based_training_of_several_networks_is_refused_early(refused_early) -> None:
    printed = refused_early("--scheduler", "pbt", "--space", "kd_prune", "--name", "X")
    for text in ("--scheduler pbt", "kd_prune", "prune.ratios", "student.base_channels", "student.branches"):
        assert text in printed
    assert "train.lr" not in printed.partition("Fix these")[0].partition("searches")[2]


def test_a_teacher_that_is_none_is_refused_early(refused_early, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "absent"):
        printed = refused_early("--space", "kd", "--teacher_ckpts", str(place))
        assert "distill.teacher_ckpts" in printed and str(place) in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("word", ["train.device=cuda", "train.amp=fp16"])
def test_what_needs_a_gpu_is_refused_early(refused_early, word: str) -> None:
    assert word in refused_early("--space", "kd", word)


@pytest.mark.parametrize("text", ["inf", "nan", "-1", "0"])
@pytest.mark.parametrize("option", ["--cpus-per-trial", "--gpus-per-trial"])
def test_impossible_resources(option: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    if (option, text) == ("--gpus-per-trial", "0"):
        return  # a trial without a GPU
    with pytest.raises(SystemExit) as ended:
        read_request(["--space", "kd", option, text])
    assert ended.value.code == 2
    assert f"{option}: {text}" in capsys.readouterr().err


CPU, AUTO, CUDA = (compose([f"train.device={device}"]) for device in ("cpu", "auto", "cuda"))
FP16 = compose(["train.amp=fp16"])


@pytest.mark.parametrize(
    ("config", "asked", "available", "expected"),
    [
        (AUTO, None, 2.0, ("auto", 0.25)),
        (AUTO, None, 0.0, ("cpu", 0.0)),
        (AUTO, 0.0, 2.0, ("cpu", 0.0)),  # Ray leaves all GPUs visible to a trial that reserves none
        (AUTO, 1.0, 2.0, ("auto", 1.0)),
        (CPU, None, 2.0, ("cpu", 0.0)),
        (CUDA, None, 1.0, ("cuda", 0.25)),
        (FP16, None, 1.0, ("auto", 0.25)),
        (CUDA, None, 0.0, "train.device=cuda"),
        (CUDA, 0.0, 2.0, "train.device=cuda"),
        (FP16, None, 0.0, "train.amp=fp16"),
        (CPU, 0.5, 2.0, "train.device=cpu"),
    ],
)
def test_a_trials_gpus_follow_from_the_available_ones(
    config: TrialConfig, asked: float | None, available: float, expected: Any
) -> None:
    if isinstance(expected, str):
        with pytest.raises(ConfigError) as error:
            resolve_gpus(config, asked, available)
        assert expected in str(error.value)
        return
    resolved, gpus = resolve_gpus(config, asked, available)
    assert (resolved.train.device, gpus) == expected
    assert replace(resolved, train=replace(resolved.train, device=config.train.device)) == config


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[int]:
    """A cluster with so many GPUs, as far as Ray is told."""
    ray.init("local", num_cpus=2, num_gpus=request.param, include_dashboard=False, log_to_driver=False)
    yield request.param
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("cluster", [2, 0], indirect=True)
@pytest.mark.parametrize("own", [False, True])
def test_gpus_are_those_of_the_cluster(
    typed: Commands, cluster: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the driver's machine has one of its `own` or not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: own)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(own))
    manifest, _ = typed("--space", "kd", "--address", "auto", *typed.given)
    assert manifest.asked.gpus_per_trial is None and manifest.resolved.config["train.device"] == "auto"
    manifest = on_cluster(manifest)
    assert manifest.asked.gpus_per_trial == (0.25 if cluster else 0.0)
    assert manifest.resolved.config["train.device"] == ("auto" if cluster else "cpu")
    assert on_cluster(manifest) == manifest, "a resume on the same cluster changes nothing"
    cuda, _ = typed("--space", "kd", "--address", "auto", "train.device=cuda", *typed.given)
    if cluster:
        assert on_cluster(cuda).resolved.config["train.device"] == "cuda"
    else:
        with pytest.raises(ConfigError) as error:
            on_cluster(cuda)
        assert "train.device=cuda" in str(error.value)
    many, _ = typed("--space", "kd", "--address", "auto", "--gpus-per-trial", "3", *typed.given)
    with pytest.raises(StudyError) as refused:
        on_cluster(many)
    assert all(text in str(refused.value) for text in ("--gpus-per-trial 3", f"{cluster} GPU"))


def test_a_resume_with_other_gpus_changes_the_device(typed: Commands) -> None:
    """A study that was started on GPUs continues without them, and not the other way round: its device is the CPU."""
    folder = typed.start("x")
    manifest = read_manifest(folder)
    on_gpu = manifest.changed(gpus_per_trial=0.25, config=manifest.resolved.config | {"train.device": "auto"})
    write_manifest(folder, on_gpu)
    resumed, _ = typed("--resume", "--name", "x", "--gpus-per-trial", "0")
    assert with_gpus(resumed, 1.0).resolved.config["train.device"] == "cpu"
    write_manifest(folder, manifest)
    resumed, _ = typed("--resume", "--name", "x", "--gpus-per-trial", "0.5")
    with pytest.raises(ConfigError) as error:
        with_gpus(resumed, 1.0)
    assert all(text in str(error.value) for text in ("--gpus-per-trial 0.5", "train.device=cpu"))


PRUNED: dict[str, Any] = {"prune.ratios": {"each": "prune.steps", "item": {"uniform": [0.1, 0.4]}}}


@pytest.mark.parametrize(
    ("dense", "expected"),
    [
        ({"student.base_channels": {"int": [8, 32], "step": 8}}, True),
        ({"student.branches": {"subset": ["3x3", "1x1"]}}, True),
        ({"student.n_blocks": {"each": "blocks", "item": {"int": [1, 3]}}}, True),
        ({"train.lr": {"uniform": [0.1, 0.2]}}, False),
        ({"train.lr": {"loguniform": [0.1, 0.2]}}, False),
        ({"distill.teacher_weights": {"each": "blocks", "item": {"uniform": [0.1, 0.9]}}}, False),
        ({"distill.teacher_weights": {"each": "blocks", "item": {"loguniform": [0.1, 0.9]}}}, False),
        ({"train.lr": {"choice": [0.1, 0.2]}, "train.weight_decay": {"uniform": [0.1, 0.2]}}, False),
    ],
)
def test_dense_phases_are_shared_where_they_can_be_equal(dense: dict[str, Any], expected: bool) -> None:
    """A range of real numbers gives each draw a dense phase of its own, wherever the range stands."""
    auxiliary = {"prune.steps": {"int": [1, 2]}, "blocks": {"int": [3, 3]}}
    pruned = {"name": "s", "auxiliary": auxiliary, "parameters": PRUNED | dense}
    assert shares_dense(space_from_dict(pruned)) == expected
    unpruned = {"name": "s", "auxiliary": {"blocks": auxiliary["blocks"]}, "parameters": dense}
    assert not shares_dense(space_from_dict(unpruned))


def test_which_shipped_spaces_share_dense_phases() -> None:
    found = {path.stem for path in FOLDER.glob("*.yaml") if shares_dense(load_space(path.stem))}
    assert found == {"prune"}


def test_nothing_to_resume(run) -> None:
    assert "no study X in" in run("--resume", "--name", "X")
    assert "no unfinished study" in run("--resume")


def test_more_cpus_than_there_are(run) -> None:
    assert "--cpus-per-trial 4096, but this machine has" in run("--space", "kd", "--cpus-per-trial", "4096")


@pytest.mark.parametrize("key", ["seed", "data.subset", "limits.macs", "teacher.train.lr"])
def test_what_all_trials_share_is_not_searched(run, tmp_path: Path, key: str) -> None:
    said = run("--space", write_space(tmp_path, f"parameters:\n  {key}: {{int: [1, 2]}}"))
    assert f": {key} is searched" in said


def test_every_choice_is_built(run, tmp_path: Path) -> None:
    said = run("--space", write_space(tmp_path, "parameters:\n  prune.criterion: {choice: [l1, magnitude, l2]}"))
    assert "prune.criterion='magnitude': expected one of" in said


def test_bad_name(run) -> None:
    assert "it names a folder" in run("--space", "kd", "--name", "a/b")


@pytest.fixture
def typed(tmp_path: Path, tiny_tau: Path) -> Commands:
    return Commands(tmp_path / "runs", tiny_tau)


@pytest.mark.slow
def test_what_is_typed_wins(typed: Commands) -> None:
    def opened(*words: str) -> dict[str, Any]:
        manifest, _ = typed("--space", "kd", *words, *typed.given)
        assert manifest.asked.seed == manifest.resolved.config["seed"]
        return manifest.resolved.config

    assert opened("--cpus-per-trial", "2")["train.threads"] == 2
    assert opened("--cpus-per-trial", "2", "train.threads=1", "seed=7")["train.threads"] == 1
    assert opened("seed=7")["seed"] == 7
    assert opened("--seed", "9")["seed"] == 9
    assert opened()["data.cache_dir"] == str(typed.storage / "cache")
    assert opened("--gpus-per-trial", "0")["train.device"] == "cpu"
    assert not list(typed.storage.glob("*/study.json"))


def test_resume_takes_the_same_command_and_refuses_another(typed: Commands, tmp_path: Path, monkeypatch) -> None:
    words = ["--space", "kd", "--name", "X", "--limits", "macs=2e7", "--subset=25", *typed.given, "--resume"]
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


def test_two_drivers_of_one_study(tmp_path: Path) -> None:
    with lock(tmp_path / "study"), pytest.raises(StudyError) as error, lock(tmp_path / "study"):
        pass
    assert f"process {os.getpid()}" in str(error.value)
    with lock(tmp_path / "study"):  # free again
        pass


def test_a_name_that_is_taken(typed: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    folder = typed.start("X")
    before = (folder / "study.json").read_bytes()
    assert main(["--space", "kd", "--name", "X", "--storage", str(typed.storage), *typed.given]) == 2
    printed = capsys.readouterr().out
    assert str(folder) in printed and "--resume --name X" in printed
    assert (folder / "study.json").read_bytes() == before


@pytest.mark.slow
def test_help_lists_every_flag() -> None:
    done = subprocess.run(
        [sys.executable, "tune/run.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for word in ("--space", "--num-samples", "--kd_alpha", "--dataset_dir", "--scheduler", "--limits", "profile="):
        assert word in done.stdout
    options = parser("").parse_args([])
    assert all(getattr(options, name) is None for name in DEFAULTS), "a default would hide what was typed"


@pytest.mark.slow
def test_small_data_sets_get_more_epochs_unless_epochs_are_typed(typed: Commands) -> None:
    def config(*words: str) -> TrialConfig:
        manifest, _ = typed("--space", "kd", typed.given[0], *words)
        return with_enough_epochs(TrialConfig.from_flat(manifest.resolved.config), 100)

    quick = config()
    assert quick.train.epochs == 105  # 420 steps of 4 batches
    assert quick.prune.epochs == 27  # 2 * 105 / 8, rounded up
    assert quick.teacher.train.epochs == 154  # 2000 steps of 13 batches
    assert config("--epochs=3").train.epochs == 3
    assert config("--epochs=3").prune.epochs == 2
    assert config("teacher.train.epochs=1").teacher.train.epochs == 1
    assert config("profile=full").train.epochs == 150
