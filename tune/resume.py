"""Find the study that a command continues, and check that its options, code, space and paths still match."""

import argparse
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.manifest import Change, StudyManifest, manifest_of
from data.tau import dataset_root, resolved
from search_spaces import load_space
from trainables.config.compose import compose, override_values
from trainables.config.differences import PLACES
from trainables.config.schema import ConfigError, TrialConfig
from trainables.inputs.code import code_files
from trainables.outputs.records import now
from trainables.outputs.storage import Store
from tune.study.manifest import StudyError, is_complete, read_manifest
from tune.study.reader import open_place
from tune.study.state import StudyState
from tune.study.store import STATE, is_uri

# files whose code decides what a study samples, trains and measures
CODE = (
    *("ascmodels", "data", "trainables", "search_spaces"),
    *("tune/search/sampler.py", "tune/search/replay.py", "tune/search/feasibility.py", "tune/search/halving.py"),
    *("tune/search/session.py", "tune/search/ray_adapter.py"),
)
FILES_SHOWN = 8  # number of changed files that a message lists
KEPT = ("num_samples", "sampler", "scheduler", "seed", "seeds_per_config")  # options that a resume cannot change
FREE = ("max_concurrent", "cpus_per_trial", "gpus_per_trial")  # options that a resume may change


def find_study(storage: Path, remote: str | None, options: argparse.Namespace) -> str | None:
    """Return the name of the study to continue: --name, else the newest unfinished study (for --extend and --confirm:
    the newest complete one), with --space only of that space.

    With --resume and --space, return None if there is no such study, so that a new one can start; else StudyError.
    """
    manifests = _manifests(storage, remote, options.name)
    if options.name:
        if options.name in manifests:
            return options.name
        if options.space and options.resume:
            return None
        raise StudyError(
            f"no study {options.name} in {options.storage} to continue; correct --name, or start one with --space"
        )
    space = load_space(options.space).as_dict() if options.space else None
    more = bool(options.extend or options.confirm)
    found = [
        (manifest.asked.created, name)
        for name, manifest in manifests.items()
        if (manifest.progress.status == "complete") == more and space in (None, manifest.resolved.space)
    ]
    if not found and (not space or more):
        kind = "complete" if more else "unfinished"
        raise StudyError(
            f"no {kind} study in {options.storage}; select a study with --name, or correct --storage and --space"
        )
    return max(found)[1] if found else None


def _manifests(storage: Path, remote: str | None, name: str | None) -> dict[str, StudyManifest]:
    """Return {name: manifest} of all studies in a storage, or only of the study `name`.

    If `remote` is the URI of an object store, these are the studies in the store, and those in its working folder
    `storage` that were never uploaded because their driver was killed.
    """
    folders = [storage / name] if name else [path.parent for path in storage.glob("*/study.json")]
    own = [f for f in folders if (f / "study.json").is_file() and not (remote and (f / STATE).is_file())]
    found = {f.name: read_manifest(f) for f in own}
    if remote:
        store = Store(remote)
        for other in [name] if name else store.names(""):
            if "study.json" in store.names(other):
                content = json.loads(store.read(f"{other}/study.json"))
                found[other] = manifest_of(content, f"{remote}/{other}/study.json")
    return found


def study_named(storage: Path, remote: str | None, text: str) -> str:
    """Return the folder or URI of an earlier study, given its name, path or URI."""
    if remote and "/" not in text:
        text = f"{remote}/{text}"
    if is_uri(text):
        open_place(text)
        return text
    for folder in (storage / text, Path(text).expanduser().resolve()):
        if (folder / "study.json").is_file():
            return str(folder)
    raise StudyError(f"--warm-start {text}: no study has this name in {storage} or this path; correct the name or path")


def resumed(
    folder: Path, remote: str | None, state: StudyState, options: argparse.Namespace, overrides: Sequence[str]
) -> tuple[StudyManifest, bool]:
    """Return the manifest to continue with, and whether trials are left to train. ConfigError or StudyError lists what
    must not differ from the start of the study. `remote` is the study's present URI; a copied study has an older one.
    """
    manifest = read_manifest(folder).changed(remote=remote)
    complete, more = is_complete(manifest, state), bool(options.extend or options.confirm)
    if not manifest.resolved.code:  # made by a version without a journal
        if manifest.progress.status == "complete" and not more:
            return manifest, False
        raise StudyError(
            f"study {folder.name} has no journal (made by an older version), so it cannot be continued; start a new "
            "study under another --name"
        )
    check_typed(folder, manifest, options, overrides)
    if more and not complete:
        typed = f"--extend {options.extend}" if options.extend else f"--confirm {options.confirm}"
        raise StudyError(
            f"{typed} needs a complete study, but in study {folder.name} only {state.n_ended} of "
            f"{manifest.asked.n_trials} trials have ended, counting those that an earlier --extend or --confirm added. "
            f"Complete it first with --resume --name {folder.name}"
        )
    unfinished = more or not complete or bool(state.crashed)
    manifest = _moved(folder, manifest, overrides)
    if not unfinished:
        return manifest, False
    manifest = _changed(folder, manifest, options)
    free = {name: getattr(options, name) for name in FREE if getattr(options, name) is not None}
    manifest = manifest.changed(**free)
    if options.extend:
        before, configurations = manifest.asked.num_samples or 0, {t.config_id for t in state.trials.values()}
        manifest = manifest.changed(
            extended_from=(*manifest.asked.extended_from, before), num_samples=len(configurations) + options.extend
        )
    return manifest, True


def check_typed(folder: Path, manifest: StudyManifest, options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Raise ConfigError if typed options or overrides differ from those the study was started with, or StudyError if
    TAU24_PATH differs; the message shows both values."""
    settings = manifest.asked
    accepted: dict[str, tuple[Any, ...]] = {name: (getattr(settings, name),) for name in KEPT}
    accepted["num_samples"] += settings.extended_from  # the original command stays valid after --extend
    lines = [
        f"--{name.replace('_', '-')} {getattr(options, name)} is typed, the study has {getattr(settings, name)}"
        for name in KEPT
        if getattr(options, name) is not None and getattr(options, name) not in accepted[name]
    ]
    if options.warm_start and [Path(t).name for t in options.warm_start] != [Path(t).name for t in settings.warm_start]:
        found = ", ".join(settings.warm_start) or "none"
        lines.append(f"--warm-start {' '.join(options.warm_start)} is typed, the study has {found}")
    # the order of overrides matters only between two of the same key; keys that are not typed keep their values
    lists = (overrides, settings.overrides)
    typed, original = (override_values([o for o in every if not _is_place(o)]) for every in lists)
    config, searched = manifest.resolved.config, manifest.resolved.space.get("parameters", {})
    for key, value in typed.items():
        if "." in key and key not in config:
            near = difflib.get_close_matches(key, config, 2)
            raise ConfigError(
                f"{key}={value}: unknown configuration key; "
                + (f"did you mean {' or '.join(near)}?" if near else "--help lists all keys")
            )
        if key in searched and key not in original:
            lines.append(f"{key}={value} is typed, the study searches {key} ({_shown(searched[key])})")
        elif value != original.get(key, config.get(key)):
            lines.append(f"{key}={value} is typed, the study has {original.get(key, config.get(key))}")
    if lines:
        more = "; --extend N adds N configurations to a complete study" if "num-samples" in lines[0] else ""
        raise ConfigError(
            f"study {folder.name} must continue with the options it was started with ({settings.command}), but "
            f"{'; '.join(lines)}. Remove the differing options, or choose another --name{more}"
        )
    given, used = os.environ.get("TAU24_PATH"), manifest.resolved.config.get("data.dataset_dir")
    if given and not any(o.startswith("data.dataset_dir=") for o in (*overrides, *settings.overrides)):
        root = str(dataset_root(given))
        if root != used:
            raise StudyError(
                f"study {folder.name} was started with data.dataset_dir={used}, but TAU24_PATH is {root}: unset "
                "TAU24_PATH, or choose another --name"
            )


def _changed(folder: Path, manifest: StudyManifest, options: argparse.Namespace) -> StudyManifest:
    """Return the manifest with the hashes of the present code and the present space. If they have changed since the
    study was started, StudyError lists the changes unless --allow-changes is given."""
    new, old = code_files(CODE), manifest.resolved.code
    differing = [f"{p} ({_how(old, new, p)})" for p in sorted({*new, *old}) if old.get(p) != new.get(p)]
    more = f" and {len(differing) - FILES_SHOWN} more files" if len(differing) > FILES_SHOWN else ""
    found = [f"the code has changed: {', '.join(differing[:FILES_SHOWN])}{more}"] if differing else []
    space = load_space(options.space).as_dict() if options.space else manifest.resolved.space
    lines = _space_differences(manifest.resolved.space, space)
    found += [f"the space has changed: {'; '.join(lines)}"] if lines else []
    return with_changes(folder, manifest, found, options.allow_changes).changed(code=new, space=space)


def with_changes(folder: Path, manifest: StudyManifest, found: Sequence[str], allowed: bool) -> StudyManifest:
    """Return the manifest with the changes `found` added to its list; StudyError lists them if not `allowed`."""
    if found and not allowed:
        raise StudyError(
            f"study {folder.name}: {'; and '.join(found)}. Its new trials would not be comparable with the old ones: "
            "choose another --name, or continue anyway with --allow-changes"
        )
    changes = tuple(Change(now(), what) for what in found)
    return manifest.changed(changes=(*manifest.progress.changes, *changes))


def _how(old: Mapping[str, str], new: Mapping[str, str], path: str) -> str:
    return "changed" if path in old and path in new else "new" if path in new else "deleted"


def _space_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    lines = [] if old["base"] == new["base"] else [f"base: {old['base']} in the study, {new['base']} now"]
    for part in ("parameters", "auxiliary"):
        keys = sorted({*old[part], *new[part]})
        differing = [k for k in keys if old[part].get(k) != new[part].get(k)]
        lines += [f"{k}: {_shown(old[part].get(k))} in the study, {_shown(new[part].get(k))} now" for k in differing]
    return lines


def _shown(spec: Any) -> str:
    return "nothing" if spec is None else json.dumps(spec)


def _moved(folder: Path, manifest: StudyManifest, overrides: Sequence[str]) -> StudyManifest:
    """Return the manifest with its paths updated: those typed now as overrides, and those that moved together with the
    study's folder."""
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
    """Return the names of the configurations behind the points of a front, in order of creation."""
    owners = {state.trials[point["trial_id"]].config_id for point in front}
    return [name for name in state.trials if name in owners]
