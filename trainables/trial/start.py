"""Where the network of a trial comes from.

`Start` describes the network with which the trial starts: a new one, or a trained student. `Weights` says which
training gave the present weights: the trial's own, a shared dense phase, or one with another trial's configuration.
"""

from dataclasses import dataclass
from enum import StrEnum

from ascmodels.students import Student, Widths


@dataclass(frozen=True)
class Start:
    """The network with which a trial starts: a new network, or a trained student (the base).

    Start()                         a new network with initial weights and the widths of the configuration
    Start(widths=w)                 a new network with initial weights and the widths w
    Start(base=student)             a trained student: stage 0 only measures it, the later stages prune it
    Start(base=student, widths=w)   a trained student: stage 0 only measures it, one prune step reduces it to widths w
    Start(plan=(v, w))              a new network with the widths v, which one prune step reduces to widths w

    Widths are the numbers of channels of the layers. `base` must be in its training form (with branches). A restored
    trial has `base` None, because its saved state has the weights; `had_base` is True if it started from a base.
    """

    base: Student | None = None
    widths: Widths | None = None
    had_base: bool = False
    plan: tuple[Widths, ...] = ()  # widths in each stage, with which the pruning plan of the configuration is not used

    @property
    def first_widths(self) -> Widths | None:
        """The widths of the first network if it is a new one; None: those of the configuration."""
        return self.plan[0] if self.plan else self.widths

    def pruned_widths(self, stage: int) -> Widths | None:
        """Return the widths after the prune step of `stage` (1, 2, ...); None: the pruning plan decides."""
        return self.plan[stage] if self.plan else self.widths if self.from_base else None

    @property
    def from_base(self) -> bool:
        """Whether the trial starts from a base (a trained student), so that stage 0 trains nothing."""
        return self.base is not None or self.had_base

    @property
    def prunes_to_widths(self) -> bool:
        """Whether the trial starts from a trained student and has one prune step, which reduces it to `widths`.

        Such a trial does not use the pruning plan of its configuration.
        """
        return self.from_base and self.widths is not None


class Weights(StrEnum):
    """Which training gave the weights of a trial's current epoch, and whether the trial has loaded them.

    A trial that copies the records of a shared dense phase, instead of training its epochs, loads weights only at the
    last epoch of this phase.
    """

    OWN = "own"  # the trial has weights that were trained with its own configuration
    SHARED = "shared"  # the weights are in a shared dense phase (dense_phase.py); the trial has read only its records
    ADOPTED = "adopted"  # the trial has weights of a trial with another configuration (population based training)
