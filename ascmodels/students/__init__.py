"""The student families by name, and the one way to build a student.

build_student(StudentConfig(base_channels=16))(torch.zeros(1, 1, 256, 65))     # logits [1, 10]
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
    """A student with fresh weights: dense, or of the `widths` that pruning left; `fused` for the deployed form."""
    return FAMILIES[config.family](config, n_classes, widths, fused)
