"""Feasibility check before training: does a configuration, dense or after a prune step, fit the MACs and size limits?

    gate = NetworkGate(base)                        # flat configuration that samples override
    gate({"student.base_channels": 32}).excess      # -0.02: the cheapest stage is 2 % below the limits

Nothing is trained: the networks are built untrained. Pruned networks are computed by arithmetic if their widths follow
from the ratios.
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

# keys that are redundant given the realised widths of a locally pruned network
_SHAPING = ("student.base_channels", "student.channels_multiplier", "student.expansion_rate")
_STEPS = ("ratios", "total_ratio", "n_steps", "step_schedule", "round_to", "max_ratio", "target_macs", "target_bytes")


@dataclass(frozen=True)
class Verdict:
    """The result of a feasibility check."""

    key: str  # identical for configurations that train the same networks in the same way
    excess: float  # relative excess of the cheapest stage over the limits; above 0: infeasible
    reason: str = ""
    example: str = ""


Gate = Callable[[dict[str, Any]], Verdict]


@lru_cache(maxsize=4096)
def stages(
    student: StudentConfig, prune: PruneConfig, n_mels: int, frames: int, precision: str = "fp16"
) -> tuple[tuple[int, int, Widths], ...]:
    """Return (MACs, params, widths) of the network of every stage; pruned networks are estimates unless `prune.exact`.

    Results are cached, because samplers often return to the same architectures.
    """
    return tuple(schedule_networks(student, prune, n_mels, frames, precision))


def violation(sizes: tuple[tuple[int, int], ...], limits: Limits) -> float:
    """Return the relative excess of the cheapest stage over the limits; <= 0 if at least one stage fits. `sizes` holds
    (MACs, params) of each stage."""
    return min(
        max(macs / limits.macs, size_bytes(params, limits.precision) / limits.bytes) - 1 for macs, params in sizes
    )


class NetworkGate:
    """Checks whether sampled values give a network that fits the limits. The values override the flat configuration
    `base`."""

    def __init__(self, base: dict[str, Any]):
        self.base = base

    def __call__(self, values: dict[str, Any]) -> Verdict:
        text = json.dumps(values, sort_keys=True)
        try:
            config = TrialConfig.from_flat(self.base | values)
            shape = config.frontend.n_mels, config.frontend.frames
            networks = stages(config.student, config.prune, *shape, config.limits.precision)
        except ValueError as error:  # an invalid configuration, or an impossible prune step
            return Verdict(text, 1.0, "cannot be built or pruned", f"{text}: {error}")
        sizes = tuple((macs, params) for macs, params, _ in networks)
        excess = violation(sizes, config.limits)
        key = _key(config, networks)
        if excess > 0:
            found = ", ".join(f"{macs / 1e6:.3g} M MACs {params / 1e3:.3g} k params" for macs, params in sizes)
            return Verdict(key, excess, "over the limits at every stage", f"{text}: {found}")
        return Verdict(key, excess)


def _key(config: TrialConfig, networks: tuple[tuple[int, int, Widths], ...]) -> str:
    """Return a hash that is identical for configurations that train the same networks in the same way.

    Examples are different widths that round to the same channels, or ratios that remove the same channels. If the
    widths of pruned networks depend on the trained weights, it is the hash of the configuration itself.
    """
    flat = config.flat()
    if not config.prune.rounds:
        flat = {k: v for k, v in flat.items() if not k.startswith("prune.")}
    if config.prune.exact:
        dropped = {*_SHAPING, *(f"prune.{name}" for name in _STEPS)}
        flat = {k: v for k, v in flat.items() if k not in dropped} | {"widths": str([w for _, _, w in networks])}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
