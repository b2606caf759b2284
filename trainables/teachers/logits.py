"""Files of teacher logits: float16 rows by file name, with a manifest that names the teacher."""

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
    """One teacher's logits `[N, C]` as float16, row i belonging to `filenames[i]`; `manifest` says whose they are.

    CheckpointError for logits that are not finite, or beyond float16's 65,504.
    """
    half = logits.half().contiguous()
    broken = (~half.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise CheckpointError(
            f"{len(broken)} of {len(half)} clips have teacher logits that are not finite in float16, first "
            f"{filenames[broken[0]]}: the teacher is damaged or has diverged"
        )
    metadata = {"filenames": "\n".join(filenames), "manifest": json.dumps(dict(manifest or {}))}
    with replacing(path) as temporary:
        safetensors.torch.save_file({"logits": half}, temporary, metadata)


def read_manifest(path: Path) -> dict[str, Any]:
    """What a logits file says of its teacher: classes, checkpoint, front-end, waveforms, validation figures."""
    return _read_logits(path)[2]


def load_logits(path: Path, filenames: Sequence[str], classes: tuple[str, ...] | None = None) -> torch.Tensor:
    """Logits `[len(filenames), C]` float32 in the order asked for.

    CheckpointError names files that are missing, a teacher of other `classes`, logits that are not finite.
    """
    stored, logits, manifest = _read_logits(path)
    found = manifest.get("classes", classes)
    if classes is not None and (tuple(found) != classes or logits.shape[1] != len(classes)):
        raise CheckpointError(f"{path} has {logits.shape[1]} logits a clip, of the classes {found}; expected {classes}")
    row = {name: i for i, name in enumerate(stored)}
    missing = [name for name in filenames if name not in row]
    if missing:
        raise CheckpointError(f"{path} has no logits for {len(missing)} of {len(filenames)} clips, first {missing[0]}")
    wanted = logits[[row[name] for name in filenames]].float()
    broken = [filenames[i] for i in (~wanted.isfinite().all(dim=1)).nonzero().flatten().tolist()]
    if broken:
        raise CheckpointError(f"{path}: the logits of {len(broken)} clips are not finite, first {broken[0]}")
    return wanted


def _read_logits(path: Path) -> tuple[list[str], torch.Tensor, dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            stored, manifest = metadata["filenames"].split("\n"), json.loads(metadata.get("manifest", "{}"))
            logits = handle.get_tensor("logits")
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is no file of teacher logits by filename: {error!r}") from error
    if logits.ndim != 2 or len(logits) != len(stored):
        raise CheckpointError(f"{path} holds logits {list(logits.shape)} for {len(stored)} filenames")
    return stored, logits, manifest


def folder_hash(folder: Path) -> str:
    """Content hash of a checkpoint folder: what cached logits are keyed by."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
