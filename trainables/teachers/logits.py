"""Files of teacher logits: one float16 row per clip with its filename, and a manifest that describes the teacher."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ascmodels.checkpoint import CheckpointError
from data.files import replacing


def save_logits(
    path: Path, filenames: Sequence[str], logits: torch.Tensor, manifest: Mapping[str, Any] | None = None
) -> None:
    """Save the logits `[N, C]` of a teacher as float16; row i belongs to `filenames[i]`.

    `manifest` describes the teacher. Raise CheckpointError for logits that are not finite or exceed 65,504, the
    largest float16.
    """
    half = logits.half().contiguous()
    broken = (~half.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise CheckpointError(
            f"{len(broken)} of {len(half)} clips have teacher logits that are not finite in float16, first "
            f"{filenames[broken[0]]}: the teacher is damaged or has diverged, fine-tune it again"
        )
    metadata = {"filenames": "\n".join(filenames), "manifest": json.dumps(dict(manifest or {}))}
    with replacing(path) as temporary:
        safetensors.torch.save_file({"logits": half}, temporary, metadata)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a logits file: the teacher's classes, checkpoint, front-end, waveforms, validation."""
    return _read_logits(path)[2]


def load_logits(path: Path, filenames: Sequence[str], classes: tuple[str, ...] | None = None) -> torch.Tensor:
    """Return the logits `[len(filenames), C]` in the file `path` as float32, in the order of `filenames`.

    Raise CheckpointError if a clip is not in the file, if the teacher's classes are not `classes`, or if logits are not
    finite.
    """
    stored, logits, manifest = _read_logits(path)
    found = manifest.get("classes", classes)
    if classes is not None and (tuple(found) != classes or logits.shape[1] != len(classes)):
        raise CheckpointError(
            f"{path} has {logits.shape[1]} logits a clip for the classes {found}; expected {classes}: give the logits "
            "of another teacher"
        )
    row = {name: i for i, name in enumerate(stored)}
    missing = [name for name in filenames if name not in row]
    if missing:
        raise CheckpointError(
            f"{path} has no logits for {len(missing)} of {len(filenames)} clips, first {missing[0]}: compute them for "
            "this split with trainables/cache_logits.py"
        )
    selected = logits[[row[name] for name in filenames]].float()
    broken = [filenames[i] for i in (~selected.isfinite().all(dim=1)).nonzero().flatten().tolist()]
    if broken:
        raise CheckpointError(
            f"{path}: the logits of {len(broken)} clips are not finite, first {broken[0]}: make the file again "
            "with trainables/cache_logits.py"
        )
    return selected


def _read_logits(path: Path) -> tuple[list[str], torch.Tensor, dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            stored, manifest = metadata["filenames"].split("\n"), json.loads(metadata.get("manifest", "{}"))
            logits = handle.get_tensor("logits")
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a file of teacher logits: {error!r}; expected one that trainables/cache_logits.py wrote"
        ) from error
    if logits.ndim != 2 or len(logits) != len(stored):
        raise CheckpointError(
            f"{path} holds logits {list(logits.shape)} for {len(stored)} filenames; expected one row per filename: "
            "make the file again"
        )
    return stored, logits, manifest


def folder_hash(folder: Path) -> str:
    """Return a hash of names and content of all files in a checkpoint `folder`."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
