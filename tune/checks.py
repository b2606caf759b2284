"""Checks of a new study before anything is prepared: resources, devices, teachers, search space."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ascmodels.compress.plan import schedule_sizes
from data.features import LogMel
from search_spaces import Space, SpaceError
from trainables.config.compose import compose
from trainables.config.schema import ConfigError, TrialConfig, key_types
from tune.arguments import SHARED
from tune.study.manifest import StudyError


def check_not_searched(space: Space, overrides: Sequence[str]) -> None:
    """Raise ConfigError for a typed value of a key that the space searches, because samples would replace the value.

    It is also raised for a typed group (`student=...`) that only sets keys that the space searches.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+")
        keys = [key] if "." in key or key in key_types() else _set_by(override, space)
        if keys and set(keys) <= set(space.parameters):
            found = ", ".join(f"{k} ({_range(space.parameters[k])})" for k in keys)
            raise ConfigError(
                f"{key}={value} was given, but space {space.name} searches {found}, so the value would have no effect: "
                f"drop it, or search a copy of the space's YAML file without {', '.join(keys)}"
            )


def _set_by(group: str, space: Space) -> list[str]:
    """Return the keys that a group override changes in the base configuration of the space."""
    before, after = (compose([*space.base, *more]).flat() for more in ((), (group,)))
    return [key for key, value in after.items() if value != before[key]]


def _range(spec: Mapping[str, Any]) -> str:
    """Return a range in the notation of the space's YAML file."""
    return ", ".join(f"{name}: {value}" for name, value in spec.items())


def check_teachers(config: TrialConfig) -> None:
    """Raise ConfigError for a teacher that is neither a folder with teacher.json nor a file of logits."""
    for text in config.distill.teacher_ckpts:
        path = Path(text).expanduser()
        if not path.is_file() and not (path / "teacher.json").is_file():
            raise ConfigError(
                f"distill.teacher_ckpts: {text} is neither a teacher's folder (with teacher.json) nor a file of "
                "logits; create one with trainables/finetune_teacher.py or trainables/cache_logits.py"
            )


def check_resources(config: TrialConfig, chosen: Mapping[str, Any], address: str | None) -> None:
    """Raise ConfigError for trials that would reserve GPUs but train on the CPU. Without `address`, when trials run on
    this machine, raise StudyError if it cannot provide the resources of one trial."""
    gpus = chosen["gpus_per_trial"]
    check_device(config, gpus)
    if not address:
        check_machine(chosen["cpus_per_trial"], gpus)


def check_machine(cpus: float, gpus: float | None) -> None:
    """Raise StudyError if this machine cannot provide the resources of one trial."""
    check_resource("cpu", cpus, os.cpu_count() or 1, "this machine")
    check_resource("gpu", gpus or 0, local_gpus(), "PyTorch on this machine")


def check_device(config: TrialConfig, gpus: float | None) -> None:
    """Raise ConfigError for trials that would reserve GPUs but train on the CPU."""
    if gpus and config.train.device == "cpu":
        raise ConfigError(f"--gpus-per-trial {gpus:g}, but the trials train on train.device=cpu: remove one option")


def local_gpus() -> int:
    """Return the number of GPUs that PyTorch sees on this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def resolve_gpus(config: TrialConfig, gpus: float | None, available: float) -> tuple[TrialConfig, float]:
    """Return the configuration with the resolved device, and a trial's share of a GPU.

    `available` is the number of GPUs of the cluster that the trials run on, not of the driver's machine.
    """
    check_device(config, gpus)
    on_cpu = config.train.device == "cpu" or gpus == 0
    if gpus is None:
        gpus = 0.25 if available and not on_cpu else 0.0
    if config.train.device == "cuda" and not gpus:
        raise ConfigError("train.device=cuda, but no GPU is available to the trials: set train.device=auto or cpu")
    if config.train.amp == "fp16" and not gpus:
        raise ConfigError("train.amp=fp16, but no GPU is available to the trials: set train.amp=bf16 or off")
    if not gpus:  # Ray does not hide GPUs from a trial that reserves none
        config = replace(config, train=replace(config.train, device="cpu"))
    return config, gpus


def check_space(space: Space, config: TrialConfig) -> None:
    """Raise SpaceError unless networks with the ends of every range, and with every choice, can be measured."""
    known, base = key_types(), config.flat()
    for key in space.parameters:
        if key not in known:
            near = difflib.get_close_matches(key, known, 2)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; --help lists all keys"
            raise SpaceError(f"space {space.name}: unknown configuration key {key!r}{hint}")
        if key.startswith(SHARED):
            raise SpaceError(
                f"space {space.name}: {key} is searched, but all trials of a study must share it; set it in "
                "`base` or by a flag instead"
            )
    for corner in space.corners():
        try:
            c = TrialConfig.from_flat(base | corner)
            LogMel(c.frontend)
            schedule_sizes(c.student, c.prune, c.frontend.n_mels, c.frontend.frames, c.limits.precision)
        except ValueError as error:
            raise SpaceError(f"space {space.name}: {corner} cannot be built: {error}") from error


def check_resource(name: str, needed: float, available: float, where: str) -> None:
    """Raise StudyError if one trial needs more of a resource (`cpu` or `gpu`) than `where` has."""
    if needed > available:
        raise StudyError(
            f"--{name}s-per-trial {needed:g}, but {where} has {available:g} {name.upper()}(s), so no trial could "
            "start: lower the value, or use a larger machine"
        )
