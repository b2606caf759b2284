"""Find the study that a command continues, and check that options, code and space are those with which it started."""

import argparse
import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.manifest import StudyManifest
from data.tau import dataset_root, resolved
from search_spaces import load_space
from trainables.config.compose import compose, override_values
from trainables.config.differences import PLACES
from trainables.config.schema import ConfigError, TrialConfig
from tune.cli import typed_command
from tune.planning.changes import range_text, space_differences, with_code_and_space
from tune.planning.checks import check_cache, check_warm_start
from tune.study.manifest import StudyError, is_complete, read_manifest
from tune.study.reader import open_place, studies_in
from tune.study.state import StudyState
from tune.study.store import is_uri

KEPT = ("num_samples", "sampler", "scheduler", "seed", "seeds_per_config")  # options that a resume cannot change
FREE = ("max_concurrent", "cpus_per_trial", "gpus_per_trial", "checkpoint_interval")  # options that a resume may change


def find_study(
    storage: Path, remote: str | None, options: argparse.Namespace, warn: Callable[[str], None]
) -> str | None:
    """Return the name of the study that a command with --resume, --extend or --confirm continues.

    With --name, it is the study of this name. Without --name, it is the newest unfinished study, or for --extend and
    --confirm the newest complete study; with --space, only studies of this space count. If there is no such study, a
    command with --resume and --space starts a new study: return None. Other commands: raise StudyError.

    A study with a damaged study.json is skipped, and `warn` is called with a message of one line. StudyError if it may
    be the study that is to be continued: it has the name of --name, or may be newer than all others.

    `storage` is the local folder of the studies; `remote` is the URI of --storage if it is an object store, else None.
    """
    manifests, damaged = studies_in(storage, remote, options.name)
    more = bool(options.extend or options.confirm)
    if options.name:
        if options.name in damaged:
            raise StudyError(damaged[options.name].problem)
        if options.name in manifests:
            return options.name
        if options.space and options.resume and not more:
            return None
        raise StudyError(
            f"no study {options.name} in {options.storage}; expected an existing study: correct --name or --storage, "
            "or start a new study with --space"
        )
    space = load_space(options.space).as_dict() if options.space else None
    found = [
        (manifest.requested.created, name)
        for name, manifest in manifests.items()
        if (manifest.progress.status == "complete") == more and _is_of_space(manifest, space)
    ]
    newest = max(found, default=("", None))
    for name, other in damaged.items():
        if other.changed >= newest[0]:
            raise StudyError(
                f"{other.problem}. Study {name} may be the newest one, which this command would continue: select a "
                "study with --name"
            )
        warn(f"study {name} is skipped: {other.problem}")
    if not found and (not space or more):
        kind, of_space = "complete" if more else "unfinished", f" of space {options.space}" if space else ""
        raise StudyError(
            f"no {kind} study in {options.storage}{of_space}; expected a study to continue: select one with --name, or "
            "correct --storage or --space"
        )
    return newest[1]


def resume_command(folder: Path, manifest: StudyManifest, cluster: str | None) -> str:
    """Return "resume with:" and the command that resumes the study in `folder`, as the last part of a message.

    `cluster` has the options for the Ray cluster (`cluster_options`); None or "" if Ray starts on this machine.
    """
    remote = manifest.resolved.remote
    above = remote.rpartition("/")[0] if remote else folder.parent  # the storage; for a refit, its study
    if manifest.requested.refit_of is not None:
        line = f"{typed_command('refit')} {above} {cluster or ''}"
        return f"continue with:\n  {line.rstrip()}"
    line = f"{typed_command('run')} --resume --name {folder.name} --storage {above} {cluster or ''}"
    return f"resume with:\n  {line.rstrip()}"


def study_named(storage: Path, remote: str | None, text: str) -> str:
    """Return the folder or URI of an earlier study, which `text`, a value of --warm-start, names.

    `text` is the study's path or URI, or its name in the local folder `storage` (in the object store with the URI
    `remote` if that is not None). ResultsError or StudyError if there is no such study.
    """
    if remote and "/" not in text:
        text = f"{remote}/{text}"
    if is_uri(text):
        open_place(text)
        return text
    for folder in (storage / text, Path(text).expanduser().resolve()):
        if (folder / "study.json").is_file():
            return str(folder)
    raise StudyError(
        f"--warm-start {text}: no study in {storage} has this name, and there is none at this path; expected an "
        "earlier study: correct the name or the path"
    )


def resumed(
    folder: Path, remote: str | None, state: StudyState, options: argparse.Namespace, overrides: Sequence[str]
) -> tuple[StudyManifest, bool]:
    """Return the manifest with which the study in `folder` continues, and whether there are trials to train.

    `remote` is the study's present URI in an object store (None: no object store), and `state` its state after all
    events of the journal. ConfigError if the command line differs from the study's first one (`check_typed`).
    StudyError if code or space have changed without --allow-changes, or an incomplete study gets --extend or --confirm.
    """
    manifest = read_manifest(folder).changed(remote=remote)
    complete, more = is_complete(manifest, state), bool(options.extend or options.confirm)
    if not manifest.resolved.code:  # the study was made by a version without a journal
        if manifest.progress.status == "complete" and not more:
            return manifest, False
        raise StudyError(
            f"study {folder.name} has no journal, because an older version of asc-tune made it, so it cannot be "
            "continued: start a new study with another --name"
        )
    check_typed(folder, manifest, options, overrides)
    if more and not complete:
        typed = f"--extend {options.extend}" if options.extend else f"--confirm {options.confirm}"
        raise StudyError(
            f"{typed} needs a complete study, but in study {folder.name} only {state.n_ended} of "
            f"{manifest.requested.n_trials} trials have ended (including trials of an earlier "
            f"--extend or --confirm). Complete it first with --resume --name {folder.name}"
        )
    unfinished = more or not complete or bool(state.crashed)
    manifest = moved(folder, manifest, overrides)
    if not unfinished:
        return manifest, False
    check_warm_start(manifest, options.warm_start, state)
    manifest = check_cache(folder, manifest, overrides)
    manifest = with_code_and_space(folder, manifest, options.space, options.allow_changes)
    free = {name: getattr(options, name) for name in FREE if getattr(options, name) is not None}
    manifest = manifest.changed(**free)
    if options.extend:
        before, configurations = manifest.requested.num_samples or 0, {t.config_id for t in state.trials.values()}
        manifest = manifest.changed(
            extended_from=(*manifest.requested.extended_from, before), num_samples=len(configurations) + options.extend
        )
    return manifest, True


def check_typed(folder: Path, manifest: StudyManifest, options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Raise ConfigError if `options` or Hydra `overrides` on the command line differ from the study's first command.

    Values that the command line does not set are not compared. StudyError if the environment variable TAU24_PATH names
    another data set than the study has. The messages show both values.
    """
    settings = manifest.requested
    accepted: dict[str, tuple[Any, ...]] = {name: (getattr(settings, name),) for name in KEPT}
    accepted["num_samples"] += settings.extended_from  # the first command remains valid after --extend
    lines = [
        f"--{name.replace('_', '-')} {getattr(options, name)} was given, but the study has {getattr(settings, name)}"
        for name in KEPT
        if getattr(options, name) is not None and getattr(options, name) not in accepted[name]
    ]
    if options.warm_start and [Path(t).name for t in options.warm_start] != [Path(t).name for t in settings.warm_start]:
        found = ", ".join(settings.warm_start) or "none"
        lines.append(f"--warm-start {' '.join(options.warm_start)} was given, but the study has {found}")
    # compared by key: the order of overrides matters only for the same key, and a missing override changes nothing
    lists = (overrides, settings.overrides)
    typed, original = (override_values([o for o in every if not _is_place(o)]) for every in lists)
    config, searched = manifest.resolved.config, manifest.resolved.space.get("parameters", {})
    for key, value in typed.items():
        if "." in key and key not in config:
            near = difflib.get_close_matches(key, config, 2)
            raise ConfigError(
                f"{key}={value}: unknown configuration key: correct it; "
                + (f"did you mean {' or '.join(near)}?" if near else "--help lists all keys")
            )
        if key in searched and key not in original:
            lines.append(f"{key}={value} was given, but the study searches {key} ({range_text(searched[key])})")
        elif value != original.get(key, config.get(key)):
            lines.append(f"{key}={value} was given, but the study has {original.get(key, config.get(key))}")
    if lines:
        more = ". To add N configurations to a complete study, use --extend N" if "num-samples" in lines[0] else ""
        raise ConfigError(
            f"study {folder.name} must continue with the options of its first command ({settings.command}), but these "
            f"differ: {'; '.join(lines)}. Remove them, or choose another --name{more}"
        )
    given, used = os.environ.get("TAU24_PATH"), manifest.resolved.config.get("data.dataset_dir")
    if given and not any(o.startswith("data.dataset_dir=") for o in (*overrides, *settings.overrides)):
        root = str(dataset_root(given))
        if root != used:
            raise StudyError(
                f"study {folder.name} was started with data.dataset_dir={used}, but TAU24_PATH is {root}: unset "
                "TAU24_PATH, or choose another --name"
            )


def _is_of_space(manifest: StudyManifest, space: dict[str, Any] | None) -> bool:
    """Return whether the study with this manifest searches `space` (`Space.as_dict`); True if `space` is None."""
    old = manifest.resolved.space
    return space is None or (old["name"] == space["name"] and not space_differences(old, space))


def moved(folder: Path, manifest: StudyManifest, overrides: Sequence[str]) -> StudyManifest:
    """Return `manifest` with the present paths of the study, its data and its caches.

    A path that is given by one of the Hydra `overrides` replaces the old one. If the study was moved to `folder`, a
    path that no longer exists, and was in the study's old parent folder, is changed to the same relative path in the
    new parent folder.
    """
    config = dict(manifest.resolved.config)
    if places := [o for o in overrides if _is_place(o)]:
        fresh = TrialConfig.flat(compose(places))
        config |= {o.split("=")[0]: fresh[o.split("=")[0]] for o in places}
    before, after = str(Path(manifest.resolved.folder).parent), str(folder.parent)
    if before != after:

        def replaced(value: Any) -> Any:
            if isinstance(value, list):
                return [replaced(v) for v in value]
            inside = isinstance(value, str) and value.startswith(before + os.sep) and not Path(value).exists()
            return after + value[len(before) :] if inside else value

        config = {k: replaced(v) for k, v in config.items()}
    flat = TrialConfig.from_flat(config)
    if places:
        config["data.dataset_dir"] = resolved(flat.data).dataset_dir
    return replace(manifest, resolved=replace(manifest.resolved, folder=str(folder), config=config))


def _is_place(override: str) -> bool:
    return override.split("=")[0] in PLACES


def front_configurations(front: list[dict[str, Any]], state: StudyState) -> list[str]:
    """Return the ids of the configurations of the points in `front` (names of their first trials), oldest first."""
    owners = {state.trials[point["trial_id"]].config_id for point in front}
    return [name for name in state.trials if name in owners]
