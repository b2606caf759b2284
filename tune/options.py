"""The options of tune/run.py: what is typed, checked, and the new study that it asks for.

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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from analysis.manifest import Asked, Limits, Resolved, StudyManifest
from ascmodels.compress.plan import schedule_sizes
from data.features import LogMel
from data.impulse import impulses_for
from data.tau import resolved
from search_spaces import Space, SpaceError, load_space
from trainables.config.compose import compose
from trainables.config.flags import command_parser, flags_to_overrides, keep_epochs
from trainables.config.schema import ConfigError, TrialConfig, key_types
from trainables.inputs.code import code_files
from trainables.outputs.records import now
from tune.resume import CODE, study_named
from tune.search.halving import SCHEDULERS
from tune.search.ray_adapter import check_population
from tune.search.sampler import OBJECTIVES, SAMPLERS
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


@dataclass(frozen=True)
class Request:
    """What was typed, checked as far as that needs no study."""

    options: argparse.Namespace
    words: tuple[str, ...]
    storage: Path  # where studies are worked on
    overrides: tuple[str, ...]  # Hydra overrides, flags among them

    @property
    def remote(self) -> str | None:
        """URI of the storage, where it is an object store."""
        return self.options.storage.rstrip("/") if is_uri(self.options.storage) else None

    def uri(self, name: str) -> str | None:
        """Where the study `name` lies in an object store."""
        return f"{self.remote}/{name}" if self.remote else None


def read_request(words: Sequence[str], description: str = "") -> Request:
    """Parse and check the words of a command line."""
    options, rest = parser(description).parse_known_args(list(words))
    if options.name and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", options.name):
        raise StudyError(f"--name {options.name!r}: expected letters, digits, '.', '_' and '-' (it names a folder)")
    if options.resume not in (None, "auto"):  # `--resume key=value`: argparse took an override for its value
        rest = [options.resume, *rest]
    overrides = [*flags_to_overrides(rest), *limit_overrides(options.limits)]
    return Request(options, tuple(words), writable(options.storage), tuple(overrides))


def new_study(request: Request) -> StudyManifest:
    """The manifest of the new study that is asked for. Nothing is written."""
    options, storage, overrides = request.options, request.storage, request.overrides
    if not options.space:
        raise SpaceError(
            "--space is missing: name a space (kd, rep, families, prune, kd_prune, pbt) or the path of a YAML file"
        )
    space = load_space(options.space)
    check_not_searched(space, overrides)
    typed_options = {k: getattr(options, k) for k in DEFAULTS if getattr(options, k) is not None}
    chosen: dict[str, Any] = DEFAULTS | typed_options
    if chosen["scheduler"] == "pbt":
        check_population(space)
    typed = [] if options.seed is None else [f"seed={options.seed}"]
    default = flags_to_overrides([f"--cache_dir={storage / 'cache'}"])
    default.append(f"train.threads={max(1, math.floor(chosen['cpus_per_trial']))}")
    default += keep_epochs([*space.base, *overrides])
    config = compose([*default, *space.base, *overrides, *typed])
    chosen["seed"] = config.seed
    check_resources(config, chosen, options.address)
    if not options.address:
        config, chosen["gpus_per_trial"] = resolve_gpus(config, chosen["gpus_per_trial"], local_gpus())
    config = replace(config, data=resolved(config.data))
    impulses_for(config.augment, config.frontend.sample_rate)  # read for the first time: they may be missing
    check_teachers(config)
    check_space(space, config)
    name = options.name or f"{space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    limits = config.limits
    return StudyManifest(
        asked=Asked(
            name=name,
            created=now(),
            command=shlex.join(["python", "tune/run.py", *request.words]),
            overrides=overrides,
            warm_start=tuple(study_named(request.storage, request.remote, t) for t in options.warm_start or ()),
            **chosen,
        ),
        resolved=Resolved(
            folder=str(storage / name),
            remote=request.uri(name),
            space=space.as_dict(),
            config=config.flat(),
            objectives=dict(OBJECTIVES),
            limits=Limits(limits.macs, limits.bytes, limits.precision),
            code=code_files(CODE),
            versions={p: importlib.metadata.version(p) for p in ("torch", "ray", "optuna", "torch-pruning")},
            frontend=asdict(config.frontend),
            deployed_form=(
                "RepConv branches fused, BN kept, 1 s, batch 1; parameters rounded to "
                + ("fp32" if config.limits.precision == "fp32" else "fp16")
            ),
        ),
    )


def check_not_searched(space: Space, overrides: Sequence[str]) -> None:
    """ConfigError for a typed value of a key that the space searches: its samples would replace the value. The same for
    a group (`student=...`) that sets nothing else."""
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+")
        keys = [key] if "." in key or key in key_types() else _set_by(override, space)
        if keys and set(keys) <= set(space.parameters):
            found = ", ".join(f"{k} ({_range(space.parameters[k])})" for k in keys)
            raise ConfigError(
                f"{key}={value} is typed, but space {space.name} searches {found}, so the value would have no effect: "
                f"drop it, or search a copy of the space's YAML file without {', '.join(keys)}"
            )


def _set_by(group: str, space: Space) -> list[str]:
    """The keys that the override of a group changes in the configuration that the space starts from."""
    before, after = (compose([*space.base, *more]).flat() for more in ((), (group,)))
    return [key for key, value in after.items() if value != before[key]]


def _range(spec: Mapping[str, Any]) -> str:
    """Return a range as the space's YAML file writes it."""
    return ", ".join(f"{name}: {value}" for name, value in spec.items())


def check_teachers(config: TrialConfig) -> None:
    """ConfigError for a teacher that is neither a folder with teacher.json nor a file of logits."""
    for text in config.distill.teacher_ckpts:
        path = Path(text).expanduser()
        if not path.is_file() and not (path / "teacher.json").is_file():
            raise ConfigError(
                f"distill.teacher_ckpts: {text} is neither a teacher's folder (with teacher.json) nor a file of "
                "logits; trainables/finetune_teacher.py and trainables/cache_logits.py make them"
            )


def check_resources(config: TrialConfig, chosen: Mapping[str, Any], address: str | None) -> None:
    """Refuse what no machine could give, and without `address` what this machine cannot."""
    gpus = chosen["gpus_per_trial"]
    check_device(config, gpus)
    if not address:
        check_machine(chosen["cpus_per_trial"], gpus)


def check_machine(cpus: float, gpus: float | None) -> None:
    """StudyError where this machine cannot give a trial its resources."""
    check_resource("cpu", cpus, os.cpu_count() or 1, "this machine")
    check_resource("gpu", gpus or 0, local_gpus(), "PyTorch on this machine")


def check_device(config: TrialConfig, gpus: float | None) -> None:
    """ConfigError for trials that would reserve GPUs and train on the CPU."""
    if gpus and config.train.device == "cpu":
        raise ConfigError(f"--gpus-per-trial {gpus:g}, but the trials train on train.device=cpu: drop one of them")


def local_gpus() -> int:
    """GPUs that PyTorch sees on this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def resolve_gpus(config: TrialConfig, gpus: float | None, available: float) -> tuple[TrialConfig, float]:
    """The configuration and a trial's share of a GPU, where `available` GPUs can be used: those of the cluster that
    the trials run on, not of the machine that the driver runs on."""
    check_device(config, gpus)
    on_cpu = config.train.device == "cpu" or gpus == 0
    if gpus is None:
        gpus = 0.25 if available and not on_cpu else 0.0
    if config.train.device == "cuda" and not gpus:
        raise ConfigError("train.device=cuda, but there is no GPU for the trials; use auto or cpu")
    if config.train.amp == "fp16" and not gpus:
        raise ConfigError("train.amp=fp16 needs a GPU; use bf16 or off")
    if not gpus:  # Ray leaves GPUs visible to a trial that reserves none
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


def check_resource(name: str, needed: float, there: float, where: str) -> None:
    if needed > there:
        raise StudyError(
            f"--{name}s-per-trial {needed:g}, but {where} has {there:g} {name.upper()}(s): no trial could ever start"
        )


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
