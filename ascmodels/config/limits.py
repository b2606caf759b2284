"""Upper limits on the cost of a deployed network (`Limits`), and the size of its parameters."""

from dataclasses import dataclass

BYTES_PER_PARAMETER = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Limits:
    """Upper limits on the cost of a deployed network; the defaults are those of DCASE 2024 Task 1."""

    macs: float = 30_000_000  # maximum MACs of a deployed network for 1 s of audio (above 0)
    bytes: float = 128_000  # maximum bytes of the parameters of a deployed network (above 0)
    precision: str = "fp16"  # fp32, fp16, int8: 4, 2, 1 bytes a parameter; validation uses fp32 or fp16 (int8: fp16)

    def __post_init__(self):
        if self.precision not in BYTES_PER_PARAMETER:
            choices = ", ".join(BYTES_PER_PARAMETER)
            raise ValueError(f"limits.precision={self.precision!r}: expected one of {choices}")
        for name in ("macs", "bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"limits.{name}={getattr(self, name)}: expected a number above 0")

    def allow(self, macs: int, params: int) -> bool:
        """Return whether a deployed network with `macs` MACs and `params` parameters is within these limits."""
        return macs <= self.macs and size_bytes(params, self.precision) <= self.bytes


def size_bytes(params: int, precision: str) -> int:
    """Return the size in bytes of `params` parameters at `precision` (`fp32`, `fp16` or `int8`)."""
    return params * BYTES_PER_PARAMETER[precision]
