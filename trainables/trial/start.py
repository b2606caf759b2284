"""How a trial starts: where its first network comes from, and who trained its current weights."""

from dataclasses import dataclass
from enum import StrEnum

from ascmodels.students import Student, Widths


@dataclass(frozen=True)
class Start:
    """Where the first network of a trial comes from.

    Start()                         from scratch: initial weights, the widths of the configuration
    Start(widths=w)                 from widths: initial weights, exactly these widths
    Start(base=student)             from a base: stage 0 measures this trained student as it is, then it is pruned
    Start(base=student, widths=w)   from a base to widths: one prune step, to exactly these widths

    `base` must be in its training form. A restored trial has no `base`, because its own state holds the weights;
    `had_base` tells that it started from one.
    """

    base: Student | None = None
    widths: Widths | None = None
    had_base: bool = False

    @property
    def from_base(self) -> bool:
        """Whether the trial starts from a base, so that nothing is trained before the first prune step."""
        return self.base is not None or self.had_base

    @property
    def prunes_to_widths(self) -> bool:
        """Whether one prune step to given widths replaces the pruning plan."""
        return self.from_base and self.widths is not None


class Weights(StrEnum):
    """The trial that trained the weights of the current epoch, and where these weights are."""

    OWN = "own"  # here, trained by this trial
    SHARED = "shared"  # in a shared dense phase (dense_phase.py): this trial read only the records
    ADOPTED = "adopted"  # here, trained by a trial with another configuration (population based training)
