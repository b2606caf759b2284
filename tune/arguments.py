"""The command line of tune/run.py: its options, their types and their defaults."""

import argparse
import math
import os
from pathlib import Path
from typing import Any

from trainables.config.flags import command_parser
from trainables.config.schema import ConfigError
from tune.search.halving import SCHEDULERS
from tune.search.optuna_study import SAMPLERS
from tune.study.manifest import StudyError
from tune.study.store import check_store, is_uri, working_folder

DEFAULTS = {
    **{"num_samples": 12, "sampler": "tpe", "scheduler": "mo_asha", "seed": 0, "seeds_per_config": 1},
    **{"max_concurrent": None, "cpus_per_trial": 1.0, "gpus_per_trial": None},
}  # of what a study keeps; None where the machine decides

SHARED = (
    "data.",
    "limits.",
    "teacher.",
    "seed",
    "replicate",
    "train.device",
    "train.threads",
)  # one for all trials of a study


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
    """Return the folder that studies are worked on in, which need not exist yet: the storage itself, or the working
    folder of an object store. StudyError when nothing can be written there."""
    if is_uri(text):
        check_store(text)
    storage = working_folder(text) if is_uri(text) else Path(text).expanduser().resolve()
    there = next(path for path in (storage, *storage.parents) if path.exists())
    probe = there / f".probe-{os.getpid()}"
    try:
        probe.write_text("")  # NotADirectoryError where a file is in the way
        probe.unlink()
    except OSError as error:
        raise StudyError(f"--storage {storage} cannot be written: {error}") from error
    return storage


def positive(kind: type) -> Any:
    """An argparse type: a finite number above 0."""

    def parse(text: str):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
        return value

    return parse


def share_of_gpus(text: str) -> float:
    """An argparse type: 0, a part of one GPU, or whole ones, as Ray has them."""
    value = float(text)
    if not value >= 0 or (value > 1 and value % 1):
        raise argparse.ArgumentTypeError(f"{text} is neither a share of one GPU nor a whole number of them")
    return value


def parser(description: str) -> argparse.ArgumentParser:
    p = command_parser(description)
    p.add_argument("--space", help="search space: kd, rep, families, prune, kd_prune, pbt, or the path of a YAML file")
    p.add_argument("--name", help="study name (default: <space>-<timestamp>)")
    p.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto",
        help="continue a study; start it if it is new (with --space and --name), report it if it is complete",
    )
    p.add_argument(
        "--allow-changes",
        action="store_true",
        help="resume although code, space or data have changed; the report names the changes",
    )
    p.add_argument("--extend", type=positive(int), metavar="N", help="add N configurations to a complete study")
    p.add_argument(
        "--confirm", type=positive(int), metavar="K", help="train the front's configurations with K more seeds"
    )
    p.add_argument(
        "--warm-start",
        nargs="+",
        metavar="STUDY",
        help="names, paths or URIs of earlier studies whose points the sampler learns from first",
    )
    p.add_argument(
        "--dry-run", action="store_true", help="print feasible share, sizes and hours of the study; nothing is trained"
    )
    p.add_argument(
        "--num-samples", type=positive(int), help=f"number of configurations (default {DEFAULTS['num_samples']})"
    )
    p.add_argument(
        "--seeds-per-config",
        type=positive(int),
        help="trainings of each configuration, with different seeds (default 1)",
    )
    p.add_argument(
        "--max-concurrent", type=positive(int), help="trials at a time (default: as many as the resources allow)"
    )
    p.add_argument(
        "--cpus-per-trial",
        type=positive(float),
        help=f"CPU cores that a trial reserves (default {DEFAULTS['cpus_per_trial']:g})",
    )
    p.add_argument(
        "--gpus-per-trial",
        type=share_of_gpus,
        help="share of a GPU that a trial reserves (default 0.25 where the cluster has GPUs, else 0)",
    )
    p.add_argument(
        "--limits", help="upper limits of a network, any of macs=30e6,bytes=128000,precision=fp16 (the default)"
    )
    p.add_argument(
        "--scheduler", choices=list(SCHEDULERS), help=f"early stopping of trials (default {DEFAULTS['scheduler']})"
    )
    p.add_argument(
        "--sampler", choices=list(SAMPLERS), help=f"sampler of configurations (default {DEFAULTS['sampler']})"
    )
    p.add_argument("--seed", type=int, help=f"random seed of the study (default {DEFAULTS['seed']})")
    p.add_argument("--storage", default="runs", help="folder or s3://bucket/path that holds the studies (default runs)")
    p.add_argument(
        "--address", help="address of a running Ray cluster, auto or host:port (default: start Ray on this machine)"
    )
    return p
