"""Knowledge distillation: the losses, and teachers' logits cached by filename.

    loss = alpha * CE(student, label) + (1 - alpha) * T^2 * KL(teacher_T || student_T) + feature_weight * SP

Hinton et al. 2015; both softmaxes at temperature T, KL averaged over the batch (`batchmean`: summed over classes, so
ten times a mean over batch and classes). `kd_alpha` is the weight of the hard label. SP: `similarity_loss`.

Mixup mixes losses, lam * loss(clip) + (1 - lam) * loss(partner). That differs from a loss against mixed targets,
the labels and the teacher's probabilities at T, by a number that the student does not change: the gradients are equal.
Mixed logits would be a geometric mean, which no mixture of the two clips has. An online teacher hears the mixed clip.
"""

import torch
import torch.nn.functional as F


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
