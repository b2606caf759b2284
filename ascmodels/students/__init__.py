"""The student families by name, and the function that builds a student of any family.

network = build_student(StudentConfig(base_channels=16))
logits = network(torch.zeros(1, 1, 256, 65))     # features of 1 clip (256 mel bins, 65 frames) to logits [1, 10]
"""

from collections.abc import Callable

from ascmodels.students.base import Student, StudentConfig, Widths
from ascmodels.students.cp_mobile import MobileStudent
from ascmodels.students.tf_sepnet import TFSepNet

__all__ = ["FAMILIES", "Student", "StudentConfig", "Widths", "build_student"]

FAMILIES: dict[str, Callable[..., Student]] = {"mobile": MobileStudent, "tf_sepnet": TFSepNet}


def build_student(
    config: StudentConfig, n_classes: int = 10, widths: Widths | None = None, fused: bool = False
) -> Student:
    """Return a student with random weights and the family and topology of `config`.

    `widths` are the numbers of channels of its layers (None: those before any pruning). With `fused`, the student is
    built in deployed form (parallel branches fused), else in training form.
    """
    return FAMILIES[config.family](config, n_classes, widths, fused)
