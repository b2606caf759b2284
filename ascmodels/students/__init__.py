"""The student families by name, and the function that builds a student of any family.

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
    """Return a student with new random weights: dense, or of the given `widths`; `fused` gives its deployed form."""
    return FAMILIES[config.family](config, n_classes, widths, fused)
