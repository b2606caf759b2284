"""Read and write logits files (safetensors): the logits of a teacher as float16, and the filenames of the clips.

The file also has a manifest, a dict that describes the teacher (name, classes, front-end, validation accuracy, ...).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ascmodels.checkpoint import CheckpointError
from data.files import parse_json, replacing


def save_logits(
    path: Path, filenames: Sequence[str], logits: torch.Tensor, manifest: Mapping[str, Any] | None = None
) -> None:
    """Save the logits `[N, C]` of a teacher as float16 to `path`; row i belongs to the clip `filenames[i]`.

    `manifest` describes the teacher (a dict of JSON values); None: an empty manifest. Raise CheckpointError if a logit
    is not finite as float16, whose largest number is 65,504.
    """
    half = logits.half().contiguous()
    broken = (~half.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise CheckpointError(
            f"{len(broken)} of {len(half)} clips have teacher logits that are not finite in float16, first "
            f"{filenames[broken[0]]}; expected finite logits: the teacher is damaged or its training diverged, so use "
            "another teacher"
        )
    metadata = {"filenames": "\n".join(filenames), "manifest": json.dumps(dict(manifest or {}))}
    with replacing(path) as temporary:
        safetensors.torch.save_file({"logits": half}, temporary, metadata)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the logits file `path`, a dict that describes the teacher ({} if the file has none)."""
    return _read_logits(path)[2]


def load_logits(path: Path, filenames: Sequence[str] | None, classes: tuple[str, ...] | None = None) -> torch.Tensor:
    """Return the logits `[len(filenames), C]` in the logits file `path` as float32, in the order of `filenames`.

    With None for `filenames`, the logits of all clips in the file are returned, in the order of the file.
    Raise CheckpointError if a clip is not in the file, if a logit is not finite, or if the teacher's classes are not
    `classes` (None: no check; for a file without a manifest, only the number of classes is checked).
    """
    stored, logits, manifest = _read_logits(path)
    filenames = stored if filenames is None else filenames
    found = manifest.get("classes", classes)
    if classes is not None and ([*found] != [*classes] or logits.shape[1] != len(classes)):
        raise CheckpointError(
            f"{path} has {logits.shape[1]} logits a clip for the classes {found}; expected one logit for each of the "
            f"classes {classes}: use the logits of a teacher with these classes"
        )
    row = {name: i for i, name in enumerate(stored)}
    missing = [name for name in filenames if name not in row]
    if missing:
        raise CheckpointError(
            f"{path} has no logits for {len(missing)} of {len(filenames)} clips, first {missing[0]}; expected logits "
            "for all clips: give the teacher's folder instead of this file, or a logits file that "
            "trainables/cache_logits.py wrote for this split"
        )
    selected = logits[[row[name] for name in filenames]].float()
    broken = [filenames[i] for i in (~selected.isfinite().all(dim=1)).nonzero().flatten().tolist()]
    if broken:
        raise CheckpointError(
            f"{path}: the logits of {len(broken)} clips are not finite, first {broken[0]}; expected finite logits: "
            "delete the file and make it again with python trainables/cache_logits.py"
        )
    return selected


def _read_logits(path: Path) -> tuple[list[str], torch.Tensor, dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            stored = metadata["filenames"].split("\n")
            manifest = parse_json(metadata.get("manifest", "{}").encode(), "its manifest")
            if not isinstance(manifest.get("classes", []), list):
                raise ValueError("the classes in its manifest are not a list")
            logits = handle.get_tensor("logits")
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a file of teacher logits: {error!r}; expected a file that "
            "trainables/cache_logits.py wrote: correct the path, or delete the file and make it again with this command"
        ) from error
    if logits.ndim != 2 or len(logits) != len(stored):
        raise CheckpointError(
            f"{path} holds logits {list(logits.shape)} for {len(stored)} filenames; expected one row per filename: "
            "delete the file and make it again with python trainables/cache_logits.py"
        )
    return stored, logits, manifest


def folder_hash(folder: Path) -> str:
    """Return a hash of the names and the content of all files in `folder`, without sub-folders."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
