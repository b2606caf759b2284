"""Knowledge distillation: the loss, and teachers' logits cached by filename.

    loss = alpha * CE(student, label) + (1 - alpha) * T^2 * KL(teacher_T || student_T)

Hinton et al. 2015; both softmaxes at temperature T, KL averaged over the batch (`batchmean`: summed over classes, so
ten times a mean over batch and classes). `kd_alpha` is the weight of the hard label.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F

from ascmodels.checkpoint import CheckpointError


@dataclass(frozen=True)
class DistillConfig:
    """Distillation of an ensemble of teachers into the student."""

    kd_alpha: float = 0.5  # weight of the hard label; 1: no teacher takes part
    kd_temp: float = 4.0  # temperature T
    teacher_ckpts: tuple[str, ...] = ()  # teacher folders; none: one is fine-tuned as `teacher` says

    def __post_init__(self):
        object.__setattr__(self, "teacher_ckpts", tuple(self.teacher_ckpts))
        if not 0 <= self.kd_alpha <= 1:
            raise ValueError(f"distill.kd_alpha={self.kd_alpha}: expected a weight in [0, 1]")
        if not self.kd_temp > 0:
            raise ValueError(f"distill.kd_temp={self.kd_temp}: expected a temperature above 0")


def kd_loss(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None, alpha: float, temp: float
) -> torch.Tensor:
    """Scalar loss of `logits [B, C]` against `labels [B]` and teacher logits `[B, C]` (None: cross-entropy alone)."""
    hard = F.cross_entropy(logits, labels)
    if teacher is None:
        return hard
    soft = F.kl_div(
        F.log_softmax(logits / temp, dim=1),
        F.log_softmax(teacher / temp, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return alpha * hard + (1 - alpha) * temp**2 * soft


def save_logits(path: Path, filenames: Sequence[str], logits: torch.Tensor) -> None:
    """One teacher's logits `[N, C]` as float16, row i belonging to `filenames[i]`."""
    beside = path.with_name(f".{path.name}")
    metadata = {"filenames": "\n".join(filenames)}
    safetensors.torch.save_file({"logits": logits.half().contiguous()}, beside, metadata)
    beside.replace(path)


def load_logits(path: Path, filenames: Sequence[str]) -> torch.Tensor:
    """Logits `[len(filenames), C]` float32 in the order asked for; CheckpointError names files that are missing."""
    with safetensors.safe_open(path, framework="pt") as handle:
        stored = (handle.metadata() or {})["filenames"].split("\n")
        logits = handle.get_tensor("logits").float()
    row = {name: i for i, name in enumerate(stored)}
    missing = [name for name in filenames if name not in row]
    if missing:
        raise CheckpointError(f"{path} has no logits for {len(missing)} of {len(filenames)} clips, first {missing[0]}")
    return logits[[row[name] for name in filenames]]


def ensemble(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of several teachers' logits `[N, C]`."""
    return torch.stack(list(logits)).mean(dim=0)


def folder_hash(folder: Path) -> str:
    """Content hash of a checkpoint folder: what cached logits are keyed by."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
