"""What is typed, checked: the flags of tune/run.py, and the study that they mean.

Everything that can be refused before work begins is refused here, and nothing is written.
"""

import argparse
import difflib
import importlib.metadata
import math
import os
import re
import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ascmodels.schedules import schedule_sizes
from data.features import LogMel
from data.impulse import impulses_for
from data.tau import resolved
from search_spaces import Space, SpaceError, load_space
from trainables.config import (
    ConfigError,
    TrialConfig,
    command_parser,
    compose,
    flags_to_overrides,
    keep_epochs,
    key_types,
)
from trainables.identity import code_files
from trainables.records import now
from trainables.storage import Store
from tune.mirror import check_store, working_folder
from tune.resume import CODE, find_study, resumed, study_named
from tune.schedulers import SCHEDULERS
from tune.search import OBJECTIVES, SAMPLERS
from tune.study import StudyError

# options of a study that a resume keeps; None where the machine decides
DEFAULTS = {
    **{"num_samples": 12, "sampler": "tpe", "scheduler": "mo_asha", "seed": 0, "seeds_per_config": 1},
    **{"max_concurrent": None, "cpus_per_trial": 1.0, "gpus_per_trial": None},
}
SHARED = (
    "data.",
    "limits.",
    "teacher.",
    "seed",
    "replicate",
    "train.device",
    "train.threads",
)  # one for all trials of a study


def open_study(options: argparse.Namespace, rest: list[str], words: list[str]) -> tuple[Path, dict[str, Any]]:
    """The study's folder and manifest: a new one's, or those to be resumed. Everything typed is checked first, and
    nothing is written."""
    if options.name and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", options.name):
        raise StudyError(f"--name {options.name!r}: expected letters, digits, '.', '_' and '-' (it names a folder)")
    if options.resume not in (None, "auto"):  # `--resume key=value`: argparse took an override for its value
        rest = [options.resume, *rest]
    storage = writable(options.storage)
    overrides = [*flags_to_overrides(rest), *limit_overrides(options.limits)]
    if options.resume or options.extend or options.confirm:
        folder = find_study(storage, options)
        if folder is not None:
            return folder, resumed(folder, options, overrides)
    if not options.space:
        raise SpaceError(
            "--space is missing: name a space (kd, rep, families, prune, kd_prune, pbt) or the path of a YAML file"
        )
    space = load_space(options.space)
    chosen = {k: v if getattr(options, k) is None else getattr(options, k) for k, v in DEFAULTS.items()}
    typed = [] if options.seed is None else [f"seed={options.seed}"]
    default = flags_to_overrides([f"--cache_dir={storage / 'cache'}"])
    default.append(f"train.threads={max(1, math.floor(chosen['cpus_per_trial']))}")
    default += keep_epochs([*space.base, *overrides])
    config = compose([*default, *space.base, *overrides, *typed])
    chosen["seed"] = config.seed
    config, chosen["gpus_per_trial"] = place(config, chosen, options.address)
    config = replace(config, data=resolved(config.data))
    impulses_for(config.augment, config.frontend.sample_rate)  # read for the first time: they may be missing
    check_space(space, config)
    name = options.name or f"{space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = storage / name
    remote = f"{options.storage.rstrip('/')}/{name}" if "://" in options.storage else None
    if remote and "study.json" in Store(remote).names("") and not options.dry_run:
        raise StudyError(f"{remote} exists already: continue it with --resume --name {name}, or choose another name")
    warm = [str(study_named(storage, text)) for text in options.warm_start or ()]
    used = folder.is_file() or any(
        not path.name.startswith(".") for path in folder.glob("*")
    )  # a kill may leave it empty
    if used and not options.dry_run:
        raise StudyError(f"{folder} exists already: continue a study with --resume, or choose another --name")
    manifest = {
        "name": name,
        "folder": str(folder),
        "remote": remote,
        "space": space.as_dict(),
        "config": config.flat(),
        "overrides": overrides,
        "limits": asdict(config.limits),
        "objectives": OBJECTIVES,
        **chosen,
        "confirmations": [],
        "warm_start": warm,
        "code": code_files(CODE),
        "status": "new",
        "created": now(),
        "finished": None,
        "command": shlex.join(["python", "tune/run.py", *words]),
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "ray", "optuna", "torch-pruning")},
        "frontend": asdict(config.frontend),
        "deployed_form": (
            "RepConv branches fused, BN kept, 1 s, batch 1; parameters rounded to "
            + ("fp32" if config.limits.precision == "fp32" else "fp16")
        ),
    }
    return folder, manifest


def place(config: TrialConfig, chosen: dict[str, Any], address: str | None) -> tuple[TrialConfig, float]:
    """The configuration's device and a trial's share of a GPU made to agree, and checked against this machine."""
    gpus = chosen["gpus_per_trial"]
    on_cpu = config.train.device == "cpu" or gpus == 0
    if gpus is None:
        gpus = 0.25 if torch.cuda.is_available() and not on_cpu else 0.0
    if gpus and config.train.device == "cpu":
        raise ConfigError(f"--gpus-per-trial {gpus:g} with train.device=cpu: drop one of them")
    if not address:
        check_resource("cpu", chosen["cpus_per_trial"], os.cpu_count() or 1, "this machine")
        visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
        check_resource("gpu", gpus, visible, "PyTorch on this machine")
        if config.train.device == "cuda" and not gpus:
            raise ConfigError("train.device=cuda, but PyTorch sees no GPU on this machine; use auto or cpu")
    if config.train.amp == "fp16" and not gpus:
        raise ConfigError("train.amp=fp16 needs a GPU; use bf16 or off")
    if on_cpu:  # Ray leaves GPUs visible to a trial that reserves none
        config = replace(config, train=replace(config.train, device="cpu"))
    return config, gpus


def check_space(space: Space, config: TrialConfig) -> None:
    """Both ends of every range and every choice must make a configuration that can be built and measured."""
    known, base = key_types(), config.flat()
    for key in space.parameters:
        if key not in known:
            near = difflib.get_close_matches(key, known, 2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise SpaceError(f"space {space.name}: unknown configuration key {key!r}{hint}")
        if key.startswith(SHARED):
            raise SpaceError(
                f"space {space.name}: {key} is one for all trials of a study; fix it in `base` or by a flag"
            )
    for corner in space.corners():
        try:
            c = TrialConfig.from_flat(base | corner)
            LogMel(c.frontend)
            schedule_sizes(c.student, c.prune, c.frontend.n_mels, c.frontend.frames, c.limits.precision)
        except ValueError as error:
            raise SpaceError(f"space {space.name}: {corner} cannot be built: {error}") from error


def limit_overrides(text: str | None) -> list[str]:
    """`macs=30e6,bytes=128000,precision=fp16` (any of them) as overrides of `limits`."""
    overrides = []
    for item in (text or "").split(","):
        name, equals, value = item.strip().partition("=")
        if not item.strip():
            continue
        if name not in ("macs", "bytes", "precision") or not equals:
            raise ConfigError(
                f"--limits {text}: expected macs=NUMBER,bytes=NUMBER,precision=fp32|fp16|int8, any of them"
            )
        overrides.append(f"limits.{name}={value}")
    return overrides


def writable(text: str) -> Path:
    """The folder that studies are worked on in, made where it is missing: the storage itself, or for an object store
    a folder beside. StudyError when nothing can be written there."""
    if "://" in text:
        check_store(text)
    storage = working_folder(text) if "://" in text else Path(text).expanduser().resolve()
    probe = storage / f".probe-{os.getpid()}"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise StudyError(f"--storage {storage} cannot be written: {error}") from error
    return storage


def check_resource(name: str, needed: float, there: float, where: str) -> None:
    if needed > there:
        raise StudyError(
            f"--{name}s-per-trial {needed:g}, but {where} has {there:g} {name.upper()}(s): no trial could ever start"
        )


def positive(kind: type) -> Any:
    """An argparse type: a number above 0."""

    def parse(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


def share_of_gpus(text: str) -> float:
    """An argparse type: 0, a part of one GPU, or whole ones, as Ray has them."""
    value = float(text)
    if value < 0 or (value > 1 and value % 1):
        raise argparse.ArgumentTypeError(f"{text} is neither a share of one GPU nor a whole number of them")
    return value


def parser(description: str) -> argparse.ArgumentParser:
    p = command_parser(description)
    p.add_argument("--space", help="kd, rep, families, prune, kd_prune, pbt, or the path of a YAML file")
    p.add_argument("--name", help="of the study; default: space and time")
    p.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto",
        help="continue a study; start it if new (with --space and --name), say so if it is complete",
    )
    p.add_argument("--allow-changes", action="store_true", help="resume although code or space have changed")
    p.add_argument("--extend", type=positive(int), metavar="N", help="add N configurations to a complete study")
    p.add_argument(
        "--confirm", type=positive(int), metavar="K", help="train the front's configurations with K more seeds"
    )
    p.add_argument(
        "--warm-start", nargs="+", metavar="STUDY", help="tell the sampler what these earlier studies measured"
    )
    p.add_argument(
        "--dry-run", action="store_true", help="sizes, feasible share and hours of the study; trains nothing"
    )
    p.add_argument("--num-samples", type=positive(int), help=f"trials (default {DEFAULTS['num_samples']})")
    p.add_argument("--seeds-per-config", type=positive(int), help="train each configuration so often (default 1)")
    p.add_argument("--max-concurrent", type=positive(int), help="trials at a time (default: what the resources allow)")
    p.add_argument("--cpus-per-trial", type=positive(float), help=f"default {DEFAULTS['cpus_per_trial']:g}")
    p.add_argument("--gpus-per-trial", type=share_of_gpus, help="default 0.25 where there is a GPU, else 0 (CPU)")
    p.add_argument("--limits", help="macs=30e6,bytes=128000,precision=fp16 (the default); any of them")
    p.add_argument("--scheduler", choices=list(SCHEDULERS), help=f"early stopping (default {DEFAULTS['scheduler']})")
    p.add_argument("--sampler", choices=list(SAMPLERS), help=f"of configurations (default {DEFAULTS['sampler']})")
    p.add_argument("--seed", type=int, help=f"of everything (default {DEFAULTS['seed']})")
    p.add_argument("--storage", default="runs", help="folder or s3://bucket/path of the studies (default runs)")
    p.add_argument("--address", help="of a running Ray cluster (auto, host:port); default: this machine")
    return p
