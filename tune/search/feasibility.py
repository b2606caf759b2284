"""The gate before training: what a configuration costs, dense and after every prune step, and whether it fits.

    gate = NetworkGate(base)                  # the flat configuration that samples are laid over
    gate({"student.base_channels": 32}).excess      # -0.02: the cheapest stage is 2 % below the limits

Nothing is trained: networks are built untrained, and pruned ones by arithmetic where widths follow from the ratios.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ascmodels.compress.plan import PruneConfig, schedule_networks
from ascmodels.nessi import Limits, size_bytes
from ascmodels.students import StudentConfig, Widths
from trainables.config.schema import TrialConfig

# what the realised widths of a locally pruned network make redundant
_SHAPING = ("student.base_channels", "student.channels_multiplier", "student.expansion_rate")
_STEPS = ("ratios", "total_ratio", "n_steps", "step_schedule", "round_to", "max_ratio", "target_macs", "target_bytes")


@dataclass(frozen=True)
class Verdict:
    """The feasibility of a configuration."""

    key: str  # equal for configurations that train the same networks in the same way
    excess: float  # relative, over the limits, of the cheapest stage; above 0: not to be trained
    reason: str = ""
    example: str = ""


Gate = Callable[[dict[str, Any]], Verdict]


@lru_cache(maxsize=4096)
def stages(
    student: StudentConfig, prune: PruneConfig, n_mels: int, frames: int, precision: str = "fp16"
) -> tuple[tuple[int, int, Widths], ...]:
    """MACs, params and widths of every stage, an estimate unless `prune.exact`; remembered, since samplers come back
    to the same architectures."""
    return tuple(schedule_networks(student, prune, n_mels, frames, precision))


def violation(sizes: tuple[tuple[int, int], ...], limits: Limits) -> float:
    """The least relative excess over the limits of any stage; <= 0 when one stage fits."""
    return min(
        max(macs / limits.macs, size_bytes(params, limits.precision) / limits.bytes) - 1 for macs, params in sizes
    )


class NetworkGate:
    """Says of sampled values whether one of their networks fits the limits, and by which key they are known."""

    def __init__(self, base: dict[str, Any]):
        self.base = base

    def __call__(self, values: dict[str, Any]) -> Verdict:
        text = json.dumps(values, sort_keys=True)
        try:
            config = TrialConfig.from_flat(self.base | values)
            shape = config.frontend.n_mels, config.frontend.frames
            networks = stages(config.student, config.prune, *shape, config.limits.precision)
        except ValueError as error:  # of the configuration's own checks, or a prune step that cannot be taken
            return Verdict(text, 1.0, "cannot be built or pruned", f"{text}: {error}")
        sizes = tuple((macs, params) for macs, params, _ in networks)
        excess = violation(sizes, config.limits)
        key = _key(config, networks)
        if excess > 0:
            found = ", ".join(f"{macs / 1e6:.3g} M MACs {params / 1e3:.3g} k params" for macs, params in sizes)
            return Verdict(key, excess, "over the limits at every stage", f"{text}: {found}")
        return Verdict(key, excess)


def _key(config: TrialConfig, networks: tuple[tuple[int, int, Widths], ...]) -> str:
    """Equal for configurations that train the same networks in the same way: other numbers that round to the same
    channels, ratios that remove the same ones. Where the weights decide the widths, the configuration as it is."""
    flat = config.flat()
    if not config.prune.rounds:
        flat = {k: v for k, v in flat.items() if not k.startswith("prune.")}
    if config.prune.exact:
        dropped = {*_SHAPING, *(f"prune.{name}" for name in _STEPS)}
        flat = {k: v for k, v in flat.items() if k not in dropped} | {"widths": str([w for _, _, w in networks])}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
