"""Check before training whether the network of at least one stage of a configuration fits the limits (MACs and bytes).

    gate = NetworkGate(base)                        # base: {key: value} of all configuration keys of the study
    gate({"student.base_channels": 32}).excess      # -0.02: the stage that fits best is 2 % below the limits

Nothing is trained: the sizes are calculated, or measured on networks with random weights. A stage is the dense training
or the retraining after a prune step. It is sufficient that one of them fits, because each gives a network of its own.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ascmodels.compress.plan import plan_networks
from ascmodels.config.limits import Limits, size_bytes
from ascmodels.config.prune import PruneConfig
from ascmodels.students import StudentConfig, Widths
from trainables.config.schema import TrialConfig

# keys that have no influence besides the channel widths of the networks, if pruning is local
_SHAPING = ("student.base_channels", "student.channels_multiplier", "student.expansion_rate")
# With global or isomorphic pruning, the sizes of pruned networks are estimates from random weights. Those of TF-SepNet
# were up to 60 % above the sizes after training; a network that may fit is trained and measured, not rejected.
ESTIMATE_SLACK = 1.6
_STEPS = ("ratios", "total_ratio", "n_steps", "step_schedule", "round_to", "max_ratio", "target_macs", "target_bytes")


@dataclass(frozen=True)
class Verdict:
    """The result of the feasibility check of one configuration."""

    key: str  # identical for configurations that train the same networks in the same way
    excess: float  # see `violation`; above 0: infeasible
    reason: str = ""  # why the configuration is rejected; empty: it is accepted
    example: str = ""  # the rejected values and the sizes of their networks, as text


Gate = Callable[[dict[str, Any]], Verdict]  # checks the configuration values of a sample; see `NetworkGate`


@lru_cache(maxsize=4096)
def stages(
    student: StudentConfig, prune: PruneConfig, n_mels: int, frames: int, precision: str = "fp16"
) -> tuple[tuple[int, int, Widths], ...]:
    """Return (MACs, number of parameters, channel widths) of the dense network, and of the one after each prune step.

    The figures are those of the deployed networks, without training. `n_mels` and `frames` are the shape of the input
    features, and `precision` (fp32, fp16, int8) is that of the parameters. With global or isomorphic pruning, the
    trained weights decide which channels are removed; then the figures of pruned networks are estimates. Results are
    cached, because samplers often propose the same architecture again.
    """
    return tuple(plan_networks(student, prune, n_mels, frames, precision))


def violation(sizes: tuple[tuple[int, int], ...], limits: Limits, slack: float = 1.0) -> float:
    """Return the excess of the stage that fits the limits best: 0.1 means 10 % too large, 0 or less that it fits.

    `sizes` holds (MACs, number of parameters) of each stage. The excess of a stage is the larger one of
    MACs / `limits.macs` - 1 and bytes / `limits.bytes` - 1. The sizes of pruned stages may be up to `slack` times too
    high, so they are divided by it.
    """
    return min(
        max(macs / limits.macs, size_bytes(params, limits.precision) / limits.bytes) / (slack if stage else 1) - 1
        for stage, (macs, params) in enumerate(sizes)
    )


class NetworkGate:
    """Callable that checks whether at least one stage of a configuration fits the limits, and returns a Verdict.

    `base` holds the values of all configuration keys of a study, including the limits. The argument of a call is
    {key: value} with the sampled values of a configuration, which override `base`.
    """

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
        estimated = not config.prune.exact and config.prune.goal is None
        excess = violation(sizes, config.limits, ESTIMATE_SLACK if estimated else 1.0)
        key = _key(config, networks)
        if excess > 0:
            found = ", ".join(f"{macs / 1e6:.3g} M MACs {params / 1e3:.3g} k params" for macs, params in sizes)
            return Verdict(key, excess, "over the limits at every stage", f"{text}: {found}")
        return Verdict(key, excess)


def _key(config: TrialConfig, networks: tuple[tuple[int, int, Widths], ...]) -> str:
    """Return a hash that is identical for configurations that train the same networks in the same way.

    For example, two width multipliers may round to the same number of channels, and two pruning ratios may remove the
    same channels. `networks` is the result of `stages` for `config`. With global or isomorphic pruning, the widths of
    pruned networks are not known before the training; then only equal configurations have equal hashes.
    """
    flat = config.flat()
    if not config.prune.rounds:
        flat = {k: v for k, v in flat.items() if not k.startswith("prune.")}
    if config.prune.exact:
        dropped = {*_SHAPING, *(f"prune.{name}" for name in _STEPS)}
        flat = {k: v for k, v in flat.items() if k not in dropped} | {"widths": str([w for _, _, w in networks])}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
