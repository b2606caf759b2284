"""Knowledge distillation: the losses, and teachers' logits cached by filename.

    loss = alpha * CE(student, label) + (1 - alpha) * T^2 * KL(teacher_T || student_T) + feature_weight * SP

Hinton et al. 2015; both softmaxes at temperature T, KL averaged over the batch (`batchmean`: summed over classes, so
ten times a mean over batch and classes). `kd_alpha` is the weight of the hard label. SP: `similarity_loss`.

Mixup mixes losses, lam * loss(clip) + (1 - lam) * loss(partner). That differs from a loss against mixed targets,
the labels and the teacher's probabilities at T, by a number that the student does not change: the gradients are equal.
Mixed logits would be a geometric mean, which no mixture of the two clips has. An online teacher hears the mixed clip.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F

from ascmodels.checkpoint import CheckpointError
from data.files import replacing

MODES = ("offline", "online")
ENSEMBLES = ("logits", "probabilities", "greedy")


@dataclass(frozen=True)
class DistillConfig:
    """Distillation of an ensemble of teachers into the student."""

    kd_alpha: float = 0.5  # weight of the hard label; 1: no teacher takes part
    kd_temp: float = 4.0  # temperature T
    teacher_ckpts: tuple[str, ...] = ()  # teacher folders or logits files; none: one is fine-tuned as `teacher` says
    ensemble: str = "logits"  # mean of the teachers' logits or probabilities, or greedy: weights chosen on validation
    teacher_weights: tuple[float, ...] = ()  # one a teacher, in that order; none: equal
    mode: str = "offline"  # cached logits of the plain clips; online: the teachers hear each batch as it is augmented
    feature_weight: float = 0.0  # of the similarity loss on one teacher's and the student's features; online only

    def __post_init__(self):
        object.__setattr__(self, "teacher_ckpts", tuple(self.teacher_ckpts))
        object.__setattr__(self, "teacher_weights", tuple(self.teacher_weights))
        check_ensemble(self.ensemble, self.teacher_weights, len(self.teacher_ckpts))
        if self.teacher_weights and not self.teacher_ckpts:
            raise ValueError(
                f"distill.teacher_weights={list(self.teacher_weights)}: distill.teacher_ckpts names no teacher to weigh"
            )
        if not 0 <= self.kd_alpha <= 1:
            raise ValueError(f"distill.kd_alpha={self.kd_alpha}: expected a weight in [0, 1]")
        if not 0 < self.kd_temp < math.inf:
            raise ValueError(f"distill.kd_temp={self.kd_temp}: expected a finite temperature above 0")
        if self.mode not in MODES:
            raise ValueError(f"distill.mode={self.mode!r}: expected one of {', '.join(MODES)}")
        if not 0 <= self.feature_weight < math.inf:
            raise ValueError(f"distill.feature_weight={self.feature_weight}: expected a finite number >= 0")
        if self.feature_weight and (self.mode != "online" or len(self.teacher_ckpts) > 1):
            raise ValueError(
                f"distill.feature_weight={self.feature_weight} needs distill.mode=online and one teacher; found "
                f"distill.mode={self.mode} and {len(self.teacher_ckpts)} teachers in distill.teacher_ckpts"
            )

    @property
    def taught(self) -> bool:
        """Whether a teacher takes part."""
        return self.kd_alpha < 1 or self.feature_weight > 0


def check_ensemble(method: str, weights: Sequence[float], n_teachers: int) -> None:
    """ValueError for an unknown method, or weights that are none of `n_teachers` (0: not known yet)."""
    if method not in ENSEMBLES:
        raise ValueError(f"distill.ensemble={method!r}: expected one of {', '.join(ENSEMBLES)}")
    told = f"distill.teacher_weights={list(weights)}"
    if weights and method == "greedy":
        raise ValueError(f"{told}: distill.ensemble=greedy chooses the weights itself")
    if weights and n_teachers and len(weights) != n_teachers:
        raise ValueError(f"{told}: expected {n_teachers}, one for each teacher")
    if weights and not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise ValueError(f"{told}: expected numbers >= 0, not all of them 0")


def kd_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor | None,
    alpha: float,
    temp: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Scalar loss of `logits [B, C]` against `labels [B]` and teacher logits `[B, C]` (None: cross-entropy alone)."""
    hard = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if teacher is None:
        return hard
    soft = F.kl_div(
        F.log_softmax(logits / temp, dim=1),
        F.log_softmax(teacher / temp, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return alpha * hard + (1 - alpha) * temp**2 * soft


def similarity_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """||G_T - G_S||_F^2 / B^2 of features `[B, D]` and `[B, E]`, G being F F^T with each row of length 1.

    Similarity-preserving distillation, Tung and Mori 2019: which clips of a batch resemble each other is compared, so
    D and E may differ and nothing has to be projected.
    """
    ours, theirs = (F.normalize(f @ f.T, dim=1) for f in (student, teacher))
    return (theirs - ours).square().sum() / len(student) ** 2


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
