"""Configuration of the topology of a student: `StudentConfig`."""

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

ACTIVATIONS = ("relu", "relu6", "hardswish", "silu", "gelu")
MAX_WEIGHTS = 2**27  # about the largest number of weights of a student, 0.5 GB; the limits of DCASE allow 64,000
PLAIN = "plain"  # entry of `stage_branches` for a stage without branches
KERNELS = {
    "3x3": (3, 3),
    "3x1": (3, 1),
    "1x3": (1, 3),
    "1x1": (1, 1),
}  # RepConv branch -> (height, width) of its kernel
BRANCHES = (*KERNELS, "identity")


@dataclass(frozen=True)
class StudentConfig:
    """Topology of a student.

    `FAMILY_OPTIONS` lists the options that each family uses; ValueError if another option is not at its default.
    """

    family: str = "mobile"  # student family: mobile (CP-Mobile; with branches Rep-Mobile) or tf_sepnet
    base_channels: int = 32  # channels of the first stage (above 0; rounded to a multiple of 8, for tf_sepnet of 4)
    channels_multiplier: float = 1.8  # factor by which channels grow from one stage to the next (above 0)
    expansion_rate: float = 2.1  # inner channels of a block divided by its input channels (above 0)
    n_blocks: tuple[int, ...] = (3, 2, 1)  # number of blocks in each stage (each at least 1)
    strides: tuple[str, ...] = ("b3:1x2", "b4:2x1")  # BLOCK:FREQxTIME; blocks b1, b2, ... of all stages; others: 1x1
    grn: bool = False  # add global response normalisation after each block: true or false
    branches: tuple[str, ...] = ()  # RepConv branches: 3x3, 3x1, 1x3, 1x1, identity; empty: plain convolutions
    rep_stem: bool = False  # use RepConv branches also in the stem's two convolutions: true or false
    activation: str = "relu"  # activation function of the network: relu, relu6, hardswish, silu or gelu
    stage_branches: tuple[str, ...] = ()  # one entry a stage, e.g. [3x3+1x1,3x3,plain]; empty: `branches`

    def __post_init__(self):
        object.__setattr__(self, "n_blocks", tuple(int(n) for n in self.n_blocks))
        object.__setattr__(self, "strides", tuple(sorted(self.strides)))
        try:
            object.__setattr__(self, "branches", check_branches(self.branches))
        except ValueError as error:
            raise ValueError(f"student.branches: {error}") from error
        object.__setattr__(self, "stage_branches", tuple(map(_canonical, self.stage_branches)))
        if self.family not in FAMILY_OPTIONS:
            raise ValueError(f"student.family={self.family!r}: expected one of {', '.join(FAMILY_OPTIONS)}")
        self._refuse_unused()
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"student.activation={self.activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        for name in ("base_channels", "channels_multiplier", "expansion_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"student.{name}={getattr(self, name)}: expected a finite number above 0; correct it")
        if not self.n_blocks or min(self.n_blocks) < 1:
            raise ValueError(
                f"student.n_blocks={self.n_blocks}: expected a list of integers of 1 or more, the number of blocks in "
                "each stage of the network, with at least one entry; correct it"
            )
        self._refuse_huge()
        names = [f"b{i + 1}" for i in range(sum(self.n_blocks))]
        unknown = sorted(set(self.block_strides) - set(names))
        if unknown:
            raise ValueError(f"student.strides has the block {unknown[0]!r}: expected one of {', '.join(names)}")
        if self.stage_branches and len(self.stage_branches) != len(self.n_blocks):
            raise ValueError(
                f"student.stage_branches={self.stage_branches}: expected one entry for each of the "
                f"{len(self.n_blocks)} stages of n_blocks={self.n_blocks}, or none at all"
            )
        if self.branches == ("identity",):
            raise ValueError(
                "student.branches=('identity',): identity alone cannot learn; add a convolution branch, e.g. 3x3"
            )
        if self.rep_stem and not self.branches:
            raise ValueError("student.rep_stem=True needs student.branches, which is empty: set it, e.g. to [3x3, 1x1]")

    def _refuse_unused(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name not in ("family", *FAMILY_OPTIONS[self.family]) and value != item.default:
                raise ValueError(
                    f"student.{item.name}={value!r} is not used by student.family={self.family}: expected "
                    f"{item.default!r}, the default of this key: remove it (the options of {self.family} are "
                    f"{', '.join(FAMILY_OPTIONS[self.family])})"
                )

    def _refuse_huge(self) -> None:
        """Raise ValueError for a network that would take gigabytes.

        The size is estimated from the configuration, because building the network to measure it would use this memory.
        """
        growth = max(0.0, math.log2(self.channels_multiplier)) * (len(self.n_blocks) - 1)
        widest = math.log2(self.base_channels) + growth + max(0.0, math.log2(self.expansion_rate))
        if 2 * widest + math.log2(sum(self.n_blocks)) > math.log2(MAX_WEIGHTS):
            raise ValueError(
                f"student.base_channels={self.base_channels}, student.channels_multiplier={self.channels_multiplier}, "
                f"student.expansion_rate={self.expansion_rate}, student.n_blocks={self.n_blocks!s:.60}: "
                f"{sum(self.n_blocks)} blocks of up to 2^{widest:.1f} channels; expected blocks x channels^2 of at "
                f"most {MAX_WEIGHTS:,}: lower these keys"
            )

    @property
    def name(self) -> str:
        """The name of the network to display: cp_mobile, rep_mobile (cp_mobile with RepConv branches) or tf_sepnet."""
        if self.family != "mobile":
            return self.family
        return "rep_mobile" if self.rep_stem or any(map(self.branches_of, range(len(self.n_blocks)))) else "cp_mobile"

    def branches_of(self, stage: int) -> tuple[str, ...]:
        """Return the RepConv branches of the depthwise convolutions in stage `stage` (0, 1, ...) of the network.

        Without branches (empty tuple), they are plain convolutions.
        """
        if not self.stage_branches:
            return self.branches
        entry = self.stage_branches[stage]
        return () if entry == PLAIN else tuple(entry.split("+"))

    @property
    def block_strides(self) -> dict[str, tuple[int, int]]:
        """The (frequency, time) stride of each block in `strides`, by block name (b1, b2, ...).

        Blocks that are not listed have stride (1, 1).
        """
        strides = {}
        for entry in self.strides:
            match = re.fullmatch(r"(b\d+):([1-9])x([1-9])", entry)
            if not match or match[1] in strides:
                raise ValueError(
                    f"student.strides: {entry!r} is invalid or repeats a block; expected BLOCK:FREQxTIME with strides "
                    "from 1 to 9, e.g. b3:1x2, at most once for each block"
                )
            strides[match[1]] = (int(match[2]), int(match[3]))
        return strides


def _canonical(entry: str) -> str:
    """Return `entry`, an entry of `StudentConfig.stage_branches`, with its branches in the order of BRANCHES.

    ValueError if it is neither PLAIN nor branches joined by +, e.g. 3x3+1x1.
    """
    if entry == PLAIN:
        return entry
    try:
        branches = check_branches(entry.split("+"))
    except ValueError as error:
        raise ValueError(f"student.stage_branches: {entry!r} is neither {PLAIN} nor like 3x3+1x1: {error}") from error
    if branches == ("identity",):
        raise ValueError(
            "student.stage_branches: the entry 'identity' alone cannot learn; add a convolution branch, e.g. "
            "3x3+identity"
        )
    return "+".join(branches)


def check_branches(branches: Iterable[str]) -> tuple[str, ...]:
    """Return the names of RepConv `branches` in the order of BRANCHES; ValueError for an unknown or repeated one."""
    chosen = list(branches)
    unknown = [b for b in chosen if b not in BRANCHES]
    if unknown:
        raise ValueError(f"unknown RepConv branch {unknown[0]!r}; choose from {', '.join(BRANCHES)}")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"RepConv branches {chosen} contain a branch twice: list each branch once")
    return tuple(b for b in BRANCHES if b in chosen)


# family -> the options that it uses
FAMILY_OPTIONS: dict[str, tuple[str, ...]] = {
    "mobile": tuple(f.name for f in dataclasses.fields(StudentConfig) if f.name != "family"),
    "tf_sepnet": ("base_channels", "activation"),
}
