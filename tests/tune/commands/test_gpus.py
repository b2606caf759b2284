"""GPUs of a study: how many its trials reserve, in a cluster and after a resume."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch

from tests.support.driven_study import Commands
from trainables.config.compose import compose
from trainables.config.schema import ConfigError, TrialConfig
from tune.planning.checks import resolve_gpus
from tune.ray_start import on_cluster, with_gpus
from tune.study.manifest import StudyError, read_manifest, write_manifest

CPU, AUTO, CUDA = (compose([f"train.device={device}"]) for device in ("cpu", "auto", "cuda"))
FP16 = compose(["train.amp=fp16"])
LARGE = compose(["train.batch_size=256"])


@pytest.mark.parametrize(
    ("config", "asked", "available", "expected"),
    [
        (AUTO, None, 2.0, ("auto", 0.25)),
        (LARGE, None, 2.0, ("auto", 0.5)),
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
    amp = config.train.amp if config is FP16 else "bf16" if gpus else "off"
    assert resolved.train.amp == amp
    assert resolved == replace(config, train=replace(config.train, device=resolved.train.device, amp=amp))


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[int]:
    """A local Ray cluster that claims to have the requested number of GPUs."""
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
    """The result does not depend on whether the driver's machine has a GPU (`own`)."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: own)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(own))
    manifest, _ = typed("--space", "kd", "--address", "auto", *typed.arguments)
    assert manifest.requested.gpus_per_trial is None and manifest.resolved.config["train.device"] == "auto"
    manifest = on_cluster(manifest)
    assert manifest.requested.gpus_per_trial == (0.25 if cluster else 0.0)
    assert manifest.resolved.config["train.device"] == ("auto" if cluster else "cpu")
    assert on_cluster(manifest) == manifest, "a resume on the same cluster changes nothing"
    cuda, _ = typed("--space", "kd", "--address", "auto", "train.device=cuda", *typed.arguments)
    if cluster:
        assert on_cluster(cuda).resolved.config["train.device"] == "cuda"
    else:
        with pytest.raises(ConfigError) as error:
            on_cluster(cuda)
        assert "train.device=cuda" in str(error.value)
    many, _ = typed("--space", "kd", "--address", "auto", "--gpus-per-trial", "3", *typed.arguments)
    with pytest.raises(StudyError) as refused:
        on_cluster(many)
    assert all(text in str(refused.value) for text in ("--gpus-per-trial 3", f"{cluster} GPU"))


def test_a_resume_with_other_gpus_changes_the_device(typed: Commands) -> None:
    """A study that was started on GPUs continues without them; one that was started without keeps device=cpu."""
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
