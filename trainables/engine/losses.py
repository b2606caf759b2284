"""The losses of knowledge distillation.

    loss = alpha * CE(student, label) + (1 - alpha) * T^2 * KL(teacher_T || student_T) + feature_weight * SP

Hinton et al. 2015. Both softmaxes are at temperature T. KL is averaged over the batch (`batchmean`: summed over
classes, so ten times a mean over batch and classes). `kd_alpha` is the weight of the hard label. SP is
`similarity_loss`.

Mixup mixes losses: lam * loss(clip) + (1 - lam) * loss(partner). A loss against mixed targets (the labels, and the
teacher's probabilities at T) differs only by a term that does not depend on the student, so the gradients are equal.
Mixed logits would give a geometric mean of probabilities, which is not the prediction for a mixture of two clips. An
online teacher predicts the mixed clip.
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
    """Return the scalar loss of `logits [B, C]` for `labels [B]` and the logits `teacher [B, C]`.

    Without a teacher, the loss is the cross-entropy alone.
    """
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
    """Return the similarity loss of the features `student [B, D]` and `teacher [B, E]`: ||G_T - G_S||_F^2 / B^2.

    G is F F^T of the features F, with rows scaled to length 1. Similarity-preserving distillation, Tung and Mori 2019.
    The loss compares which clips of a batch are similar, so D and E may differ and no projection is needed.
    """
    ours, theirs = (F.normalize(f @ f.T, dim=1) for f in (student, teacher))
    return (theirs - ours).square().sum() / len(student) ** 2
