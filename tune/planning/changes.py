"""What has changed since the start of a study: its code or its search space. A resume refuses or records it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.manifest import Change, StudyManifest
from search_spaces import load_space
from trainables.inputs.code import code_files
from trainables.outputs.records import now
from tune.study.manifest import StudyError

# folders and files whose code decides what a study samples, trains and measures
CODE = (
    *("ascmodels", "data", "trainables", "search_spaces"),
    *("tune/search/sampler.py", "tune/search/replay.py", "tune/search/feasibility.py", "tune/search/halving.py"),
    *("tune/search/session.py", "tune/search/ray_adapter.py"),
)
FILES_SHOWN = 8  # number of changed files that a message lists


def with_code_and_space(folder: Path, manifest: StudyManifest, space_name: str | None, allowed: bool) -> StudyManifest:
    """Return `manifest` with the hashes of the present code, the present search space, and a list of their changes.

    `space_name` is the value of --space (None: the space has not changed). StudyError, which lists the changes, if the
    code or the space has changed and this is not `allowed` (--allow-changes).
    """
    new, old = code_files(CODE), manifest.resolved.code
    differing = [f"{p} ({_how(old, new, p)})" for p in sorted({*new, *old}) if old.get(p) != new.get(p)]
    more = f" and {len(differing) - FILES_SHOWN} more files" if len(differing) > FILES_SHOWN else ""
    found = [f"the code has changed: {', '.join(differing[:FILES_SHOWN])}{more}"] if differing else []
    space = load_space(space_name).as_dict() if space_name else manifest.resolved.space
    lines = space_differences(manifest.resolved.space, space)
    found += [f"the space has changed: {'; '.join(lines)}"] if lines else []
    return with_changes(folder, manifest, found, allowed).changed(code=new, space=space)


def with_changes(folder: Path, manifest: StudyManifest, found: Sequence[str], allowed: bool) -> StudyManifest:
    """Return `manifest` with `found`, texts that describe changes, added to its list of changes.

    StudyError, which shows the texts, if `found` is not empty and changes are not `allowed` (--allow-changes).
    """
    if found and not allowed:
        raise StudyError(
            f"study {folder.name}: {'; and '.join(found)}. New trials of this study would not be comparable with its "
            "old ones: choose another --name, or continue with --allow-changes"
        )
    changes = tuple(Change(now(), what) for what in found)
    return manifest.changed(changes=(*manifest.progress.changes, *changes))


def _how(old: Mapping[str, str], new: Mapping[str, str], path: str) -> str:
    return "changed" if path in old and path in new else "new" if path in new else "deleted"


def space_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    lines = [] if old["base"] == new["base"] else [f"base: {old['base']} in the study, {new['base']} now"]
    for part in ("parameters", "auxiliary"):
        keys = sorted({*old[part], *new[part]})
        differing = [k for k in keys if old[part].get(k) != new[part].get(k)]
        lines += [
            f"{k}: {range_text(old[part].get(k))} in the study, {range_text(new[part].get(k))} now" for k in differing
        ]
    return lines


def range_text(spec: Any) -> str:
    return "nothing" if spec is None else json.dumps(spec)
