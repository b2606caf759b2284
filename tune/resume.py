"""Which study a command continues, and whether it may: what was typed, the code, the space, the paths."""

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
FILES_SHOWN = 8  # of those that have changed
KEPT = ("num_samples", "sampler", "scheduler", "seed", "seeds_per_config")  # decided when the study was started
FREE = ("max_concurrent", "cpus_per_trial", "gpus_per_trial")  # may differ on the machine that resumes


def find_study(storage: Path, remote: str | None, options: argparse.Namespace) -> str | None:
    """Return the name of the study to continue: the one that is named, else the newest unfinished one (of the space,
    where one is named). Return None where there is none and a space is named, so that a new study can start."""
    manifests = _manifests(storage, remote, options.name)
    if options.name:
        if options.name in manifests:
            return options.name
        if options.space and options.resume:
            return None
        raise StudyError(f"no study {options.name} in {options.storage} to continue; --space starts a new one")
    wanted = load_space(options.space).as_dict() if options.space else None
    more = bool(options.extend or options.confirm)
    found = [
        (manifest.asked.created, name)
        for name, manifest in manifests.items()
        if (manifest.progress.status == "complete") == more and wanted in (None, manifest.resolved.space)
    ]
    if not found and (not wanted or more):
        raise StudyError(f"no {'complete' if more else 'unfinished'} study in {options.storage}")
    return max(found)[1] if found else None


def _manifests(storage: Path, remote: str | None, name: str | None) -> dict[str, StudyManifest]:
    """Name -> manifest of the studies of a storage, or of the one called `name`. Of an object store's, a study counts
    that lies there, and one in the working folder that was never sent (its driver was killed)."""
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
    """The folder or URI of an earlier study, by its name, path or URI."""
    if remote and "/" not in text:
        text = f"{remote}/{text}"
    if is_uri(text):
        open_place(text)
        return text
    for folder in (storage / text, Path(text).expanduser().resolve()):
        if (folder / "study.json").is_file():
            return str(folder)
    raise StudyError(f"--warm-start {text}: no study of that name in {storage}, and none at that path")


def resumed(
    folder: Path, remote: str | None, state: StudyState, options: argparse.Namespace, overrides: Sequence[str]
) -> tuple[StudyManifest, bool]:
    """Return the manifest to continue with, and whether there is anything to do; an error shows what differs and must
    not. `remote` is the URI that this driver holds: one that a copied manifest names is not obeyed."""
    manifest = read_manifest(folder).changed(remote=remote)
    complete, more = is_complete(manifest, state), bool(options.extend or options.confirm)
    if not manifest.resolved.code:  # of a version without a journal
        if manifest.progress.status == "complete" and not more:
            return manifest, False
        raise StudyError(f"study {folder.name} has no journal, so it cannot be continued; choose another --name")
    check_typed(folder, manifest, options, overrides)
    if more and not complete:
        typed = f"--extend {options.extend}" if options.extend else f"--confirm {options.confirm}"
        raise StudyError(
            f"{typed}: study {folder.name} is not complete: {state.n_ended} of {manifest.asked.n_trials} trials have "
            f"ended, counting those that an earlier --extend or --confirm added. Continue it with --resume --name "
            f"{folder.name}; {typed} adds to a complete study"
        )
    goes_on = more or not complete or bool(state.crashed)
    manifest = _moved(folder, manifest, overrides)
    if not goes_on:
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
    """ConfigError for an option or override that differs from what the study was started with, naming both values."""
    asked = manifest.asked
    taken: dict[str, tuple[Any, ...]] = {name: (getattr(asked, name),) for name in KEPT}
    taken["num_samples"] += asked.extended_from  # the command that started it stays good after --extend
    lines = [
        f"--{name.replace('_', '-')} {getattr(options, name)} is typed, the study has {getattr(asked, name)}"
        for name in KEPT
        if getattr(options, name) is not None and getattr(options, name) not in taken[name]
    ]
    if options.warm_start and [Path(t).name for t in options.warm_start] != [Path(t).name for t in asked.warm_start]:
        found = ", ".join(asked.warm_start) or "none"
        lines.append(f"--warm-start {' '.join(options.warm_start)} is typed, the study has {found}")
    # their order decides between two of one key only; what is not typed stays as it was
    typed, known = (override_values([o for o in every if not _is_place(o)]) for every in (overrides, asked.overrides))
    config, searched = manifest.resolved.config, manifest.resolved.space.get("parameters", {})
    for key, value in typed.items():
        if "." in key and key not in config:
            near = difflib.get_close_matches(key, config, 2)
            raise ConfigError(
                f"{key}: unknown configuration key" + (f"; did you mean {' or '.join(near)}?" if near else "")
            )
        if key in searched and key not in known:
            lines.append(f"{key}={value} is typed, the study searches {key} ({_shown(searched[key])})")
        elif value != known.get(key, config.get(key)):
            lines.append(f"{key}={value} is typed, the study has {known.get(key, config.get(key))}")
    if lines:
        more = "; --extend N adds N configurations to a complete study" if "num-samples" in lines[0] else ""
        raise ConfigError(
            f"study {folder.name} continues as it was started ({asked.command}), but {'; '.join(lines)}. Drop what "
            f"differs, or choose another --name{more}"
        )
    given, used = os.environ.get("TAU24_PATH"), manifest.resolved.config.get("data.dataset_dir")
    if given and not any(o.startswith("data.dataset_dir=") for o in (*overrides, *asked.overrides)):
        there = str(dataset_root(given))
        if there != used:
            raise StudyError(f"study {folder.name} searched {used}, but TAU24_PATH is {there}: choose another --name")


def _changed(folder: Path, manifest: StudyManifest, options: argparse.Namespace) -> StudyManifest:
    """The manifest after code or space have changed, where that is allowed."""
    here, there = code_files(CODE), manifest.resolved.code
    differing = [f"{p} ({_how(there, here, p)})" for p in sorted({*here, *there}) if there.get(p) != here.get(p)]
    more = f" and {len(differing) - FILES_SHOWN} more files" if len(differing) > FILES_SHOWN else ""
    found = [f"the code has changed: {', '.join(differing[:FILES_SHOWN])}{more}"] if differing else []
    space = load_space(options.space).as_dict() if options.space else manifest.resolved.space
    lines = _space_differences(manifest.resolved.space, space)
    found += [f"the space has changed: {'; '.join(lines)}"] if lines else []
    return with_changes(folder, manifest, found, options.allow_changes).changed(code=here, space=space)


def with_changes(folder: Path, manifest: StudyManifest, found: Sequence[str], allowed: bool) -> StudyManifest:
    """The manifest with `found` among its changes; StudyError that shows them where they are not allowed."""
    if found and not allowed:
        raise StudyError(
            f"study {folder.name}: {'; and '.join(found)}. Its new trials would not compare with the old ones: choose "
            "another --name, or continue all the same with --allow-changes"
        )
    changes = tuple(Change(now(), what) for what in found)
    return manifest.changed(changes=(*manifest.progress.changes, *changes))


def _how(there: Mapping[str, str], here: Mapping[str, str], path: str) -> str:
    return "changed" if path in there and path in here else "new" if path in here else "gone"


def _space_differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    lines = [] if there["base"] == here["base"] else [f"base: {there['base']} there, {here['base']} here"]
    for part in ("parameters", "auxiliary"):
        keys = sorted({*there[part], *here[part]})
        differing = [k for k in keys if there[part].get(k) != here[part].get(k)]
        lines += [f"{k}: {_shown(there[part].get(k))} there, {_shown(here[part].get(k))} here" for k in differing]
    return lines


def _shown(spec: Any) -> str:
    return "nothing" if spec is None else json.dumps(spec)


def _moved(folder: Path, manifest: StudyManifest, overrides: Sequence[str]) -> StudyManifest:
    """Return the manifest with the present paths: those that are typed, and those that moved together with the
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
    """The configurations behind the points of a front, in the order of their first trials."""
    owners = {state.trials[point["trial_id"]].config_id for point in front}
    return [name for name in state.trials if name in owners]
