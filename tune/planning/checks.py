"""Checks of the resources, devices, teachers and search space of a study, made before its data are prepared."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from analysis.manifest import StudyManifest
from ascmodels.compress.plan import plan_sizes
from data.cache import LOCK as CACHE_LOCK
from data.features import LogMel
from search_spaces import Space, SpaceError
from trainables.config.compose import compose
from trainables.config.schema import ConfigError, TrialConfig, key_types
from trainables.engine.device import precision
from tune.study.events import SHARED
from tune.study.manifest import StudyError
from tune.study.state import StudyState

LARGE_BATCH = 128  # clips; measurements on one GPU: tune/README.md, "Several trials on one GPU"


def check_not_searched(space: Space, overrides: Sequence[str]) -> None:
    """Raise ConfigError if an override of the command line sets a key that the space searches.

    Such an override would have no effect, because every sample replaces the value. `overrides` are Hydra overrides. One
    that selects a group, such as student=cp_mobile, is an error if the space searches all keys that the group changes.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+")
        keys = [key] if "." in key or key in key_types() else _set_by(override, space)
        if keys and set(keys) <= set(space.parameters):
            found = ", ".join(f"{k} ({_range(space.parameters[k])})" for k in keys)
            raise ConfigError(
                f"{key}={value} was given, but space {space.name} searches {found}, so the value would have no effect: "
                f"remove it from the command line, or search a copy of the space's YAML file without {', '.join(keys)}"
            )


def _set_by(group: str, space: Space) -> list[str]:
    """Return the keys whose values change if the Hydra override `group`, such as student=cp_mobile, is added to the
    overrides in `space.base`."""
    before, after = (compose([*space.base, *more]).flat() for more in ((), (group,)))
    return [key for key, value in after.items() if value != before[key]]


def _range(spec: Mapping[str, Any]) -> str:
    """Return the range `spec` of a search space as text, as in its YAML file."""
    return ", ".join(f"{name}: {value}" for name, value in spec.items())


def check_teachers(config: TrialConfig) -> None:
    """Raise ConfigError if a path in `distill.teacher_ckpts` is neither a teacher's folder nor a file of logits."""
    for text in config.distill.teacher_ckpts:
        path = Path(text).expanduser()
        if not path.is_file() and not (path / "teacher.json").is_file():
            raise ConfigError(
                f"distill.teacher_ckpts: {text} is neither a teacher's folder (with teacher.json) nor a file of "
                "logits; create a folder with trainables/finetune_teacher.py, or a file with trainables/cache_logits.py"
            )


def check_resources(config: TrialConfig, chosen: Mapping[str, Any], address: str | None) -> None:
    """Check the CPUs and GPUs that one trial reserves.

    `chosen` has their numbers under the keys "cpus_per_trial" and "gpus_per_trial" (None: decided later). `address` is
    the address of a Ray cluster (None: Ray will start on this machine). ConfigError if a trial would reserve a GPU but
    train on the CPU. StudyError if Ray will start on this machine, which has fewer CPUs or GPUs than a trial reserves.
    """
    gpus = chosen["gpus_per_trial"]
    check_device(config, gpus)
    if not address:
        check_machine(chosen["cpus_per_trial"], gpus)


def check_machine(cpus: float, gpus: float | None) -> None:
    """Raise StudyError if this machine has fewer CPUs or GPUs than one trial reserves: `cpus` and `gpus` (None: 0)."""
    check_resource("cpu", cpus, os.cpu_count() or 1, "this machine")
    check_resource("gpu", gpus or 0, local_gpus(), "this machine (as seen by PyTorch)")


def check_device(config: TrialConfig, gpus: float | None) -> None:
    """Raise ConfigError if a trial would reserve `gpus` (None or 0: no GPU) but train on the CPU (train.device=cpu)."""
    if gpus and config.train.device == "cpu":
        raise ConfigError(
            f"--gpus-per-trial {gpus:g}, but train.device=cpu, so the trials would not use a GPU: remove one of "
            "these two options"
        )


def local_gpus() -> int:
    """Return the number of GPUs that PyTorch sees on this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def resolve_gpus(config: TrialConfig, gpus: float | None, available: float) -> tuple[TrialConfig, float]:
    """Return `config` as the trials use it, and the number of GPUs that one trial reserves.

    If the trials have no GPU, train.device=cpu. The value auto of train.amp is replaced: bf16 on a GPU, off on a CPU.

    `gpus` is the value of --gpus-per-trial. None (auto) means 0 without a GPU or with train.device=cpu. With a GPU it
    is 0.5 from LARGE_BATCH clips on, where two processes already fill a GPU, and 0.25 for smaller batches. `available`
    is the number of GPUs of the machine or cluster on which the trials run. ConfigError if `config` needs a GPU and a
    trial would have none, or if `gpus` are reserved but train.device=cpu.
    """
    check_device(config, gpus)
    on_cpu = config.train.device == "cpu" or gpus == 0
    if gpus is None:
        shared = 0.5 if config.train.batch_size >= LARGE_BATCH else 0.25
        gpus = shared if available and not on_cpu else 0.0
    found = f"a trial would have no GPU (available GPUs: {available:g}, --gpus-per-trial: {gpus:g})"
    if config.train.device == "cuda" and not gpus:
        raise ConfigError(f"train.device=cuda, but {found}: set train.device=auto or cpu")
    if config.train.amp == "fp16" and not gpus:
        raise ConfigError(f"train.amp=fp16, but {found}: set train.amp=bf16 or off")
    amp = precision(config.train.amp, torch.device("cuda" if gpus else "cpu"))
    # Ray does not hide GPUs from a trial that reserves none
    return replace(config, train=replace(config.train, device=config.train.device if gpus else "cpu", amp=amp)), gpus


def check_space(space: Space, config: TrialConfig) -> None:
    """Raise SpaceError if `space` searches an unknown key, or a key whose value all trials must share (SHARED), or if
    it contains networks that cannot be built.

    Some networks of the space are built and measured: with all lower ends of the ranges, with all upper ends, and with
    each value of a choice. `config` is the base configuration, in which the values of the space replace some keys.
    """
    known, base = key_types(), config.flat()
    for key in space.parameters:
        if key not in known:
            near = difflib.get_close_matches(key, known, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all keys"
            raise SpaceError(
                f"space {space.name}: unknown configuration key {key!r} in `parameters`: correct the key; {hint}"
            )
        if key.startswith(SHARED):
            raise SpaceError(
                f"space {space.name} searches {key}; expected a key that may differ between the trials of a study: "
                f"remove it from `parameters`, and set it in `base` or on the command line"
            )
    for corner in space.corners():
        try:
            c = TrialConfig.from_flat(base | corner)
            LogMel(c.frontend)
            plan_sizes(c.student, c.prune, c.frontend.n_mels, c.frontend.frames, c.limits.precision)
        except ValueError as error:
            raise SpaceError(
                f"space {space.name}: a network with the values {corner} cannot be built: {error}. Correct the ranges "
                "in `parameters`, or the values in `base`"
            ) from error


def check_cache(folder: Path, manifest: StudyManifest, overrides: Sequence[str]) -> StudyManifest:
    """Return `manifest`; raise StudyError if its data.cache_dir may be a folder with other files (`is_own_cache`).

    Every folder is accepted if one of the `overrides` on the command line sets data.cache_dir.
    """
    cache = manifest.resolved.config.get("data.cache_dir")
    if cache and not is_own_cache(folder, cache) and not any(o.startswith("data.cache_dir=") for o in overrides):
        raise StudyError(
            f"study.json of study {folder.name} has data.cache_dir={cache}; expected a folder in {folder.parent} or an "
            "existing cache of asc-tune, because files in it are replaced and deleted. Add --cache_dir=FOLDER, with "
            "this folder if it may be used as a cache, or with another one"
        )
    return manifest


def is_own_cache(folder: Path, cache: str) -> bool:
    """Return whether `cache` is in the storage of the study in `folder`, or is a folder that asc-tune used as a cache.

    The path `cache` is from study.json. If somebody else made this file, it may name any folder of this user, in which
    asc-tune would then write and delete files.
    """
    place = Path(cache).expanduser().resolve()
    return place.is_relative_to(folder.parent) or (place / CACHE_LOCK).is_file()


def check_warm_start(manifest: StudyManifest, typed: Sequence[str] | None, state: StudyState) -> None:
    """Raise StudyError if an earlier study would be read from a URI in study.json that is not on the command line.

    If somebody else made study.json, it must not decide what is read with this user's credentials. `typed` is the value
    of --warm-start on the command line. If `state` shows that samples were drawn, nothing is checked: the earlier
    studies were read before the first draw and are not read again.
    """
    uris = [text for text in manifest.requested.warm_start if "://" in text]
    if uris and not typed and not state.trials and not state.rejected:
        raise StudyError(
            f"study.json of study {manifest.requested.name} has the earlier study {uris[0]} under the key warm_start; "
            "expected this URI on the command line, too, because it is read with your credentials: if you trust it, "
            f"add --warm-start {' '.join(manifest.requested.warm_start)}"
        )


def check_resource(name: str, needed: float, available: float, where: str) -> None:
    """Raise StudyError if one trial needs more CPUs or GPUs (`name`: cpu or gpu) than are `available`.

    `where` names the machine or cluster in the message.
    """
    if needed > available:
        raise StudyError(
            f"--{name}s-per-trial {needed:g}, but {where} has {available:g} {name.upper()}(s), so no trial could "
            "start: reduce the value, or use a larger machine or cluster"
        )
