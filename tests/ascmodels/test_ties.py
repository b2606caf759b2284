"""Sizes of pruned networks that `Ties` computes, compared with networks that are pruned and measured."""

import random

import pytest

from ascmodels.compress.plan import plan_networks
from ascmodels.compress.pruning import prune
from ascmodels.config.prune import PruneConfig, PruningError
from ascmodels.nessi import get_deployed_size
from ascmodels.students import StudentConfig, build_student

CONFIGS = [
    StudentConfig(base_channels=8),
    StudentConfig(base_channels=16, branches=("3x3", "1x1", "identity"), activation="silu"),
    StudentConfig(base_channels=24, channels_multiplier=1.4, expansion_rate=3.0, grn=True),
    StudentConfig(family="tf_sepnet", base_channels=12),  # by cutting
]


@pytest.mark.parametrize(
    ("config", "round_to"), list(zip(CONFIGS, (1, 2, 1, 1), strict=True)), ids=["cp", "rep", "grn", "tf_sepnet"]
)
@pytest.mark.slow
def test_arithmetic_gives_the_widths_and_sizes_of_the_cut_network(config: StudentConfig, round_to: int) -> None:
    rng = random.Random(f"{config}{round_to}")
    ratios = tuple(rng.uniform(0.1, 0.5) for _ in range(2))
    network, expected = build_student(config), []
    expected.append((*get_deployed_size(network, 64, 20), network.widths))
    for ratio in ratios:
        network = prune(network, ratio, "l2", round_to)
        expected.append((*get_deployed_size(network, 64, 20), network.widths))
    assert plan_networks(config, PruneConfig(ratios=ratios, round_to=round_to), 64, 20) == expected


def test_errors_are_those_of_the_cut() -> None:
    config = StudentConfig(base_channels=8)
    for ratios, words in (((0.9,), "would empty a layer"), ((1e-20,), "removes no channel")):
        with pytest.raises(PruningError, match=words) as by_cutting:
            prune(build_student(config), ratios[0])
        with pytest.raises(PruningError, match=words) as by_arithmetic:
            plan_networks(config, PruneConfig(ratios=ratios), 64, 20)
        assert str(by_arithmetic.value) == str(by_cutting.value)
