"""Which study a command goes on with, and whether it may: what was typed, the code, the space and the places."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.tau import dataset_root, resolved
from search_spaces import load_space
from trainables.config import ConfigError, TrialConfig, compose
from trainables.identity import PLACES, code_files
from trainables.records import now
from tune.journal import StudyLog, read_log
from tune.mirror import Mirror
from tune.study import StudyError, is_complete, read_manifest

# whose code decides what a study samples, trains and measures
CODE = (
    *("ascmodels", "data", "trainables", "search_spaces"),
    *("tune/search.py", "tune/history.py", "tune/gate.py", "tune/schedulers.py", "tune/population.py"),
)
KEPT = ("num_samples", "sampler", "scheduler", "seed", "seeds_per_config")  # decided when the study was started
FREE = ("max_concurrent", "cpus_per_trial", "gpus_per_trial")  # those of the machine that goes on


def find_study(storage: Path, options: argparse.Namespace) -> Path | None:
    """The study to resume: the named one, else the newest unfinished one (of the space, where one is named). None
    where there is none and the space says how to start it."""
    if options.name:
        folder = storage / options.name
        if "://" in options.storage:
            bring(folder, f"{options.storage.rstrip('/')}/{options.name}")
        if not (folder / "study.json").exists():
            if options.space and options.resume:
                return None
            raise StudyError(f"no study {options.name} in {options.storage} to go on with")
        return folder
    wanted = load_space(options.space).as_dict() if options.space else None
    found = []
    for path in storage.glob("*/study.json"):
        manifest = read_manifest(path.parent)
        complete = manifest["status"] == "complete"
        if complete == bool(options.extend or options.confirm) and wanted in (None, manifest["space"]):
            found.append((manifest["created"], path.parent))
    if not found and (not wanted or options.extend or options.confirm):
        raise StudyError(f"no {'complete' if options.extend or options.confirm else 'unfinished'} study in {storage}")
    return max(found)[1] if found else None


def bring(folder: Path, uri: str) -> None:
    """The state of a study in an object store, here; StudyError while another machine runs it."""
    mirror = Mirror(folder, uri)
    if "study.json" in mirror.store.names(""):
        mirror.check_driver()
        mirror.pull()


def study_named(storage: Path, text: str) -> Path:
    """The folder of an earlier study, by its name or path."""
    for folder in (storage / text, Path(text).expanduser().resolve()):
        if (folder / "study.json").is_file():
            return folder
    raise StudyError(f"--warm-start {text}: no study of that name in {storage}, and none at that path")


def resumed(folder: Path, options: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """The manifest to go on with; an error that shows what differs where it must not."""
    manifest, log = read_manifest(folder), read_log(folder)
    _check_typed(folder, manifest, options, overrides)
    more = bool(options.extend or options.confirm)
    if "code" not in manifest:  # of a version without a journal
        if manifest["status"] == "complete" and not more:
            return manifest
        raise StudyError(f"study {folder.name} has no journal, so it cannot be gone on with; choose another --name")
    crashed = bool(log.trials) and all(t.crashed for t in log.trials.values())  # every one: tried again
    goes_on = more or crashed or not is_complete(manifest, log)
    manifest = _moved(folder, manifest, overrides)
    if goes_on:
        manifest = _changed(folder, manifest, options)
        for name in FREE:
            if getattr(options, name) is not None:
                manifest[name] = getattr(options, name)
    if is_complete(manifest, log):
        manifest["status"] = "extended" if goes_on else "complete"
        if options.extend:
            manifest["extended_from"] = [*manifest.get("extended_from", []), manifest["num_samples"]]
            manifest["num_samples"] = len({t.config_id for t in log.trials.values()}) + options.extend
    return manifest


def _check_typed(folder: Path, manifest: dict[str, Any], options: argparse.Namespace, overrides: Sequence[str]) -> None:
    taken = {k: [None, manifest.get(k)] for k in KEPT}
    taken["num_samples"] += manifest.get("extended_from", [])  # the command that started it stays good after --extend
    changed = [f"--{k.replace('_', '-')}" for k in KEPT if getattr(options, k) not in taken[k]]
    typed, known = ([o for o in every if not _is_place(o)] for every in (overrides, manifest["overrides"]))
    changed += typed if typed and typed != known else []
    if changed:
        raise ConfigError(
            f"{folder.name} goes on as it was started ({manifest['command']}); drop {' '.join(changed)}, or choose "
            "another --name"
        )
    given, used = os.environ.get("TAU24_PATH"), manifest["config"]["data.dataset_dir"]
    if given and not any(o.startswith("data.dataset_dir=") for o in (*overrides, *manifest["overrides"])):
        there = str(dataset_root(given))
        if there != used:
            raise StudyError(f"study {folder.name} searched {used}, but TAU24_PATH is {there}: choose another --name")


def _changed(folder: Path, manifest: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The manifest after code or space have changed, where that is allowed."""
    here, there = code_files(CODE), manifest.get("code", {})
    differing = [f"{p} ({_how(there, here, p)})" for p in sorted({*here, *there}) if there.get(p) != here.get(p)]
    told = [f"the code has changed: {', '.join(differing)}"] if differing and there else []
    space = load_space(options.space).as_dict() if options.space else manifest["space"]
    lines = _space_differences(manifest["space"], space)
    told += [f"the space has changed: {'; '.join(lines)}"] if lines else []
    if told and not options.allow_changes:
        raise StudyError(
            f"study {folder.name}: {'; and '.join(told)}. Its new trials would not compare with the old ones: choose "
            "another --name, or go on all the same with --allow-changes"
        )
    changes = [{"time": now(), "what": what} for what in told]
    return manifest | {"code": here, "space": space, "changes": [*manifest.get("changes", []), *changes]}


def _how(there: dict[str, str], here: dict[str, str], path: str) -> str:
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


def _moved(folder: Path, manifest: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The manifest with every path as it is now: typed anew, or beside the study where it was before."""
    config = dict(manifest["config"])
    if places := [o for o in overrides if _is_place(o)]:
        fresh = TrialConfig.flat(compose(places))
        config |= {o.split("=")[0]: fresh[o.split("=")[0]] for o in places}
    before, after = str(Path(manifest["folder"]).parent), str(folder.parent)
    if before != after:

        def replaced(value: Any) -> Any:
            if isinstance(value, list):
                return [replaced(v) for v in value]
            inside = isinstance(value, str) and value.startswith(before + os.sep) and not Path(value).exists()
            return after + value[len(before) :] if inside else value

        config = {k: replaced(v) for k, v in config.items()}
    flat = TrialConfig.from_flat(config)
    config["data.dataset_dir"] = resolved(flat.data).dataset_dir if places else config["data.dataset_dir"]
    return manifest | {"folder": str(folder), "config": config}


def _is_place(override: str) -> bool:
    return override.split("=")[0] in PLACES


def front_configurations(front: list[dict[str, Any]], log: StudyLog) -> list[str]:
    """The configurations behind the points of a front, in the order of their first trials."""
    owners = {log.trials[point["trial_id"]].config_id for point in front}
    return [name for name in log.trials if name in owners]
