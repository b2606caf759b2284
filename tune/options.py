"""Parse and check the command line of tune/run.py, and build the manifest (study.json) of a new study from it.

Every error of the command line that can be found without data and without Ray is raised here. The study's folder is
not created yet.
"""

import argparse
import importlib.metadata
import math
import re
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.manifest import Limits, Requested, Resolved, StudyManifest
from data.impulse import impulses_for
from data.signals import Interrupts
from data.tau import resolved
from data.untrusted import credentials_in, is_name
from search_spaces import SpaceError, load_space
from trainables.config.compose import compose
from trainables.config.flags import flags_to_overrides, keep_epochs
from trainables.config.train import MAX_THREADS
from trainables.inputs.clips import check_validated
from trainables.inputs.code import code_files
from trainables.outputs.records import EXPERIMENTS, now
from tune.arguments import DEFAULTS, limit_overrides, parser
from tune.planning.changes import CODE
from tune.planning.checks import (
    check_not_searched,
    check_resources,
    check_space,
    check_teachers,
    local_gpus,
    resolve_gpus,
)
from tune.resume import resume_command, study_named
from tune.search.optuna_study import OBJECTIVES
from tune.search.ray_adapter import check_population
from tune.study.manifest import StudyError, read_manifest
from tune.study.store import check_store, is_uri, working_folder

RESERVED = ("cache", EXPERIMENTS)  # folders in a storage: shared caches, and the single runs
REPEAT = "repeat the command with"


@dataclass(frozen=True)
class Request:
    """A parsed command line of tune/run.py, after the checks that need neither a study nor a search space."""

    options: argparse.Namespace
    words: tuple[str, ...]  # the command line as typed, without the program's name
    storage: Path  # --storage; for an object store, the local folder with the copies that drivers work on
    overrides: tuple[str, ...]  # Hydra overrides on the command line, and those of flags (--batch_size=64)

    @property
    def remote(self) -> str | None:
        """The value of --storage if it is the URI of an object store, else None."""
        return self.options.storage.rstrip("/") if is_uri(self.options.storage) else None

    def uri(self, name: str) -> str | None:
        """Return the URI of the study `name` if --storage is an object store, else None."""
        return f"{self.remote}/{name}" if self.remote else None


@dataclass
class Repeat:
    """What a user must type to continue after an interrupt; `run_command` (tune/run.py) sets the fields as soon as they
    are known."""

    folder: Path | None = None  # of the study, on this machine
    before: StudyManifest | None = None  # of the study that --extend or --confirm continues
    cluster: str | None = None  # `cluster_options`
    interrupts: Interrupts = field(default_factory=Interrupts)

    def how(self) -> str:
        """Return how to continue, as a part of a message, such as "repeat the command with --name x --resume auto"."""
        if self.folder is None:
            return "repeat the command"
        if self.before is None:
            return f"{REPEAT} --name {self.folder.name} --resume auto"
        try:
            manifest = read_manifest(self.folder)
        except (StudyError, OSError):  # the storage is away: what was true at the last access
            return self.interrupts.advice
        added = (manifest.requested.num_samples, manifest.requested.confirmations)
        if added == (self.before.requested.num_samples, self.before.requested.confirmations):
            return f"{REPEAT} --name {self.folder.name}"
        return resume_command(self.folder, manifest, self.cluster)  # the same command would add further trials


def read_request(words: Sequence[str]) -> Request:
    """Parse and check the command line `words` of tune/run.py, without the program's name.

    ConfigError or StudyError if an option is not valid or the storage cannot be written.
    """
    for word in words:
        if problem := credentials_in(word):
            raise StudyError(
                f"the argument {re.split('[=:]', word)[0]}... contains {problem}; expected no credentials, because the "
                "study records its command: remove them, and set them in the environment, for example "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    options, rest = parser().parse_known_args(list(words))
    if options.name and not is_name(options.name):
        raise StudyError(
            f"--name {options.name!r} cannot be the name of a folder; expected letters, digits, '.', '_' and '-': "
            "choose another name"
        )
    if options.resume not in (None, "auto"):  # `--resume key=value`: argparse read an override as its value
        rest = [options.resume, *rest]
    overrides = [*flags_to_overrides(rest), *limit_overrides(options.limits)]
    return Request(options, tuple(words), writable(options.storage), tuple(overrides))


def writable(text: str) -> Path:
    """Return the local folder for the studies in a storage, after a test that the storage can be written.

    `text` is the value of --storage. If it is a path, the result is this folder. If it is the URI of an object store,
    the result is a folder on this machine in which drivers keep copies of the studies while they work on them. The
    folder may not exist yet. StudyError if the object store or the folder cannot be written.
    """
    if is_uri(text):
        check_store(text)
    storage = working_folder(text) if is_uri(text) else Path(text).expanduser().resolve()
    existing = next(path for path in (storage, *storage.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # NotADirectoryError where a file is in the way
            pass
    except OSError as error:
        raise StudyError(
            f"--storage {text}: {storage} cannot be written ({error}); expected a folder with write access: choose "
            "another folder"
        ) from error
    return storage


def new_study(request: Request) -> StudyManifest:
    """Check the request for a new study, and return the study's manifest. The study's folder is not created.

    ConfigError, DatasetError, SpaceError, SchedulerError or StudyError, with what to correct, if a check fails.
    """
    options, storage, overrides = request.options, request.storage, request.overrides
    if options.name:
        check_name(options.name)
    if not options.space:
        raise SpaceError(
            "--space is missing; expected a search space (kd, rep, families, prune, kd_prune, pbt) or the path of a "
            "YAML file: add it, or continue a study with --resume"
        )
    space = load_space(options.space)
    check_not_searched(space, overrides)
    typed_options = {k: getattr(options, k) for k in DEFAULTS if getattr(options, k) is not None}
    chosen: dict[str, Any] = DEFAULTS | typed_options
    if chosen["scheduler"] == "pbt":
        check_population(space)
    typed = [] if options.seed is None else [f"seed={options.seed}"]
    default = flags_to_overrides([f"--cache_dir={storage / 'cache'}"])
    default.append(f"train.threads={min(max(1, math.floor(chosen['cpus_per_trial'])), MAX_THREADS)}")
    default += keep_epochs([*space.base, *overrides])
    config = compose([*default, *space.base, *overrides, *typed])
    chosen["seed"] = config.seed
    check_validated(config, "a search compares networks on validation clips")
    check_resources(config, chosen, options.address)
    if not options.address:
        config, chosen["gpus_per_trial"] = resolve_gpus(config, chosen["gpus_per_trial"], local_gpus())
    config = replace(config, data=resolved(config.data))
    impulses_for(config.augment, config.frontend.sample_rate)  # reads the files, to report missing ones now
    check_teachers(config)
    check_space(space, config)
    name = options.name or f"{slug(space.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    limits = config.limits
    return StudyManifest(
        requested=Requested(
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


def check_new(folder: Path, manifest: StudyManifest) -> None:
    """Raise StudyError if `folder`, which a new study would use, contains a study or other files, or is a file."""
    if (folder / "study.json").exists():
        how = f"continue it with --resume --name {folder.name}, or choose another --name"
        raise StudyError(f"the study {folder} exists already: {how}")
    content = folder.glob("*") if manifest.resolved.remote is None else ()  # a kill may leave an empty folder
    if folder.is_file() or any(not path.name.startswith(".") for path in content):
        raise StudyError(f"{folder} exists already, but is not a study: choose another --name")


def check_name(name: str) -> None:
    """Raise StudyError if `name` cannot be the name of a new study: it becomes a folder and a part of URIs.

    Studies of earlier versions may have other names, and can be continued.
    """
    if name.lower() in RESERVED or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise StudyError(
            f"--name {name!r} cannot be the name of a new study; expected up to 100 letters from A to Z, digits, '.', "
            f"'_' and '-', with a letter or a digit first, but not {' or '.join(RESERVED)}, which the storage uses: "
            "choose another name"
        )


def slug(text: str) -> str:
    """Return `text`, the name of a search space, as the start of the name of a study: "my space ä" gives "my-space"."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text)[:60].strip("-._") or "study"
