"""The command line of tune/run.py: its options, their types and their defaults."""

import argparse
import math
import shlex
from collections.abc import Callable
from typing import Any

from trainables.config.flags import command_parser
from trainables.config.schema import ConfigError
from tune.search.choices import SAMPLERS, SCHEDULERS

DEFAULTS = {
    **{"num_samples": 12, "sampler": "tpe", "scheduler": "mo_asha", "seed": 0, "seeds_per_config": 1},
    **{"max_concurrent": None, "cpus_per_trial": 1.0, "gpus_per_trial": None, "checkpoint_interval": 10.0},
}  # defaults, which the study records; None: the resources of the machine or the cluster decide


def limit_overrides(text: str | None) -> list[str]:
    """Convert the value `text` of --limits, such as `macs=30e6,precision=fp16`, to Hydra overrides `limits.*`.

    Return an empty list for None (--limits is not given). ConfigError for a name that is not a limit.
    """
    overrides = []
    for item in (text or "").split(","):
        name, equals, value = item.strip().partition("=")
        if not item.strip():
            continue
        if name not in ("macs", "bytes", "precision") or not equals:
            raise ConfigError(
                f"--limits {text}: {item.strip()!r} is not a limit; expected any of macs=NUMBER, bytes=NUMBER and "
                "precision=fp32|fp16|int8, separated by commas: correct the value"
            )
        overrides.append(f"limits.{name}={value}")
    return overrides


def cluster_options(options: argparse.Namespace) -> str:
    """Return the options in `options` that choose the Ray cluster, as they are typed; "" if there are none."""
    words = ["--address", options.address] if options.address else []
    return shlex.join([*words, *(["--allow-open-cluster"] if options.allow_open_cluster else [])])


def positive(kind: type) -> Callable[[str], Any]:
    """Return a function for argparse's `type` that parses a finite number above 0 as `kind` (int or float)."""
    expected = "a whole number above 0" if kind is int else "a finite number above 0"
    return lambda text: _number(text, kind, lambda value: 0 < value < math.inf, expected)


def not_negative(text: str) -> float:
    """Parse a finite number of at least 0 for argparse's `type`."""
    return _number(text, float, lambda value: 0 <= value < math.inf, "a finite number of at least 0")


def share_of_gpus(text: str) -> float | None:
    """Parse a number of GPUs as Ray accepts it: 0, a share of one GPU, or an integer; None for auto."""
    if text == "auto":
        return None

    def valid(value: float) -> bool:
        return 0 <= value < math.inf and (value <= 1 or not value % 1)

    return _number(text, float, valid, "auto, a share of a GPU (0 to 1) or an integer")


def _number(text: str, kind: type, valid: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; expected {expected}: change the value")
    return value


def parser(description: str = "") -> argparse.ArgumentParser:
    """Return the parser of tune/run.py, with its options grouped by topic; --help shows `description`."""
    p = command_parser(description)
    study = p.add_argument_group("study")
    study.add_argument(
        "--space",
        help="search space, needed for a new study: kd (distillation, width), rep (branches, widths), families "
        "(CP-Mobile, TF-SepNet), prune (pruning plans), kd_prune (distillation, branches, pruning), pbt (for "
        "--scheduler pbt), or the path of a YAML file (format: tune/README.md)",
    )
    study.add_argument("--name", help="study name (default: <space>-<timestamp>)")
    study.add_argument("--storage", default="runs", help="folder or s3://bucket/path of the studies (default: runs)")
    study.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto",
        help="continue the study --name, or report it if it is complete; without --name, continue the newest "
        "unfinished study (of --space, if given). If there is no such study, --space starts a new one. --resume and "
        "--resume auto mean the same",
    )
    study.add_argument(
        "--allow-changes",
        action="store_true",
        help="resume even if code, space or data have changed since the start of the study; the report lists the "
        "changes",
    )
    study.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing, but use the data set; print the share of feasible configurations, their sizes and the "
        "expected hours",
    )
    study.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="random seed of the study (choice of the held-out locations, samples, training); it sets the "
        f"configuration key seed (default: {DEFAULTS['seed']})",
    )
    search = p.add_argument_group("search")
    search.add_argument(
        "--num-samples",
        type=positive(int),
        metavar="N",
        help=f"number of configurations to train (default: {DEFAULTS['num_samples']})",
    )
    search.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help=f"Optuna sampler that proposes configurations (default: {DEFAULTS['sampler']})",
    )
    search.add_argument(
        "--scheduler",
        choices=list(SCHEDULERS),
        help="early stopping of trials: mo_asha (ASHA on accuracy and MACs), asha (ASHA on accuracy alone), fifo (no "
        f"early stopping), pbt (population based training, with --space pbt) (default: {DEFAULTS['scheduler']})",
    )
    search.add_argument(
        "--limits",
        metavar="LIST",
        help="hard limits of a deployed network: any of macs=NUMBER,bytes=NUMBER,precision=fp32|fp16|int8. They set "
        "the configuration keys limits.macs, limits.bytes and limits.precision, as --macs, --bytes and --precision "
        "do. A configuration is rejected without training if all its networks, dense and pruned, exceed them. "
        "Limits that are left out keep their defaults (default: macs=30e6,bytes=128000,precision=fp16)",
    )
    search.add_argument(
        "--seeds-per-config",
        type=positive(int),
        metavar="N",
        help="number of replicates of each configuration: it is trained N times with different seeds (default: 1)",
    )
    search.add_argument(
        "--warm-start",
        nargs="+",
        metavar="STUDY",
        help="names, paths or URIs of earlier studies; the sampler starts with the results of their networks, which "
        "are not trained again",
    )
    search.add_argument(
        "--extend",
        type=positive(int),
        metavar="N",
        help="continue the complete study --name (default: the newest complete study) with N more configurations",
    )
    search.add_argument(
        "--refit",
        type=positive(int),
        metavar="K",
        help="after the search, train the configurations of the front again on all clips, those for validation "
        "included, with K seeds (tune/refit.py does the same later)",
    )
    search.add_argument(
        "--confirm",
        type=positive(int),
        metavar="K",
        help="continue the complete study --name (default: the newest complete study): train each configuration on its "
        "Pareto front with K more seeds",
    )
    add_resources(p)
    return p


def add_resources(p: argparse.ArgumentParser) -> None:
    """Add the options for the Ray cluster, and for the resources of a trial, to the parser `p`."""
    resources = p.add_argument_group("resources")
    resources.add_argument(
        "--address", help="address of a running Ray cluster: auto, or host:port (default: start Ray on this machine)"
    )
    resources.add_argument(
        "--allow-open-cluster",
        action="store_true",
        help="use a Ray cluster that accepts commands without a token: everybody who can reach its ports can then run "
        "programs as its user, and read and change the study",
    )
    resources.add_argument(
        "--max-concurrent",
        type=positive(int),
        metavar="N",
        help="maximum number of trials that run at a time (default: as many as the resources allow)",
    )
    resources.add_argument(
        "--cpus-per-trial",
        type=positive(float),
        metavar="N",
        help=f"CPU cores that a trial reserves (default: {DEFAULTS['cpus_per_trial']:g})",
    )
    resources.add_argument(
        "--gpus-per-trial",
        type=share_of_gpus,
        metavar="SHARE",
        help="share of a GPU, or number of GPUs, that a trial reserves. auto: 0 without GPUs, 0.5 for batches of 128 "
        "clips or more, else 0.25 (default: auto)",
    )
    resources.add_argument(
        "--checkpoint-interval",
        type=not_negative,
        metavar="SECONDS",
        help="work that a trial may repeat after a kill, in seconds of training: shorter epochs share a checkpoint; 0: "
        f"a checkpoint after each epoch, as with --scheduler pbt (default: {DEFAULTS['checkpoint_interval']:g})",
    )
