"""The losses of knowledge distillation.

    loss = alpha * CE(student, label) + (1 - alpha) * T^2 * KL(teacher_T || student_T) + feature_weight * SP

The first two terms are `kd_loss` (Hinton et al. 2015). alpha is `distill.kd_alpha`, the weight of the cross-entropy
with the label. teacher_T and student_T are the softmax at temperature T (`distill.kd_temp`). KL is summed over classes
and averaged over the batch (`batchmean` of PyTorch), so with ten classes it is ten times the mean over batch and
classes. SP is `similarity_loss`, and feature_weight is `distill.feature_weight`.

With mixup, a clip is mixed with a partner, and its loss is lam * loss(targets of the clip) + (1 - lam) * loss(targets
of the partner). The targets are the label and the cached teacher logits. The gradient equals that of a loss with mixed
targets (labels, and teacher probabilities at T), because the two losses differ only by a term that does not depend on
the student. Teacher logits are not mixed: that would give a geometric mean of probabilities, which is not the
prediction for a mixture of two clips. In online distillation, the teacher predicts the mixed clip, and these
logits replace the cached logits in both losses.
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
    """Return the loss of a student's `logits [B, C]` for the true classes `labels [B]`, a scalar (batch mean).

    The loss is alpha * CE + (1 - alpha) * temp^2 * KL. CE is the cross-entropy with the labels, smoothed by
    `label_smoothing`. KL is the divergence KL(teacher || student) of the softmax at temperature `temp`. The teacher's
    logits are `teacher [B, C]`; if they are None, the loss is CE alone.
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
    """Return the similarity-preserving loss ||G_T - G_S||_F^2 / B^2, a scalar (Tung and Mori 2019).

    `student [B, D]` and `teacher [B, E]` are the features of a batch of B clips. G_S and G_T `[B, B]` contain the
    similarities between these clips: the product F F^T of a network's features F, each row of which is then divided by
    its L2 norm. So D and E may differ, and no projection is needed.
    """
    ours, theirs = (F.normalize(f @ f.T, dim=1) for f in (student, teacher))
    return (theirs - ours).square().sum() / len(student) ** 2
