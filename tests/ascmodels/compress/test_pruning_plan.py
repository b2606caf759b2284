"""Pruning plans: schedules in closed form, targets, refusals (`ascmodels/compress/plan.py`)."""

from typing import Any

import pytest
import torch

from ascmodels.compress import pruning
from ascmodels.compress.plan import plan_sizes, take_step
from ascmodels.compress.pruning import prune, prune_below, prune_to_widths
from ascmodels.config.limits import size_bytes
from ascmodels.config.prune import PruneConfig, PruningError, shares
from ascmodels.nessi import get_deployed_size
from ascmodels.students import Student
from tests.support.ascmodels.untrained import FRAMES, MELS, ONE_BLOCK, SMALL


def test_schedules_have_their_closed_forms() -> None:
    assert shares("constant", 0.75, 2) == pytest.approx((0.5, 0.75))
    assert shares("linear", 0.6, 3) == pytest.approx((0.2, 0.4, 0.6))
    assert shares("cubic", 0.64, 4) == pytest.approx([0.64 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)])
    constant = PruneConfig(n_steps=3, total_ratio=1 - 0.7**3).step_ratios
    assert constant == pytest.approx((0.3, 0.3, 0.3))
    for name in ("constant", "linear", "cubic"):
        ratios = PruneConfig(n_steps=4, total_ratio=0.8, step_schedule=name).step_ratios
        share = 1.0
        for ratio in ratios:
            share *= 1 - ratio
        assert share == pytest.approx(0.2)
    assert PruneConfig((0.3, 0.2)).step_ratios == (0.3, 0.2)
    assert PruneConfig(n_steps=2, target_macs=25).targets(100) == pytest.approx((50, 25))
    assert PruneConfig(n_steps=2, target_macs=25, step_schedule="linear").targets(100) == pytest.approx((62.5, 25))


def test_equal_ratios_are_the_constant_schedule() -> None:
    """`total_ratio` in constant steps removes the same channels as the equivalent explicit ratios."""
    explicit = plan_sizes(SMALL, PruneConfig((0.25, 0.25)), MELS, FRAMES)
    assert plan_sizes(SMALL, PruneConfig(n_steps=2, total_ratio=1 - 0.75**2), MELS, FRAMES) == explicit


@pytest.mark.parametrize(
    "n_steps", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.slow
def test_targets_are_met_from_below_at_every_step(small: Student, scope: str, n_steps: int) -> None:
    dense = get_deployed_size(small, MELS, FRAMES)
    step_schedule = ("constant", "linear", "cubic")[n_steps % 3]
    name, dense_size = (("macs", dense[0]), ("bytes", size_bytes(dense[1], "int8")))[(n_steps + len(scope)) % 2]
    aim: Any = {f"target_{name}": 0.35 * dense_size}
    config = PruneConfig(n_steps=n_steps, scope=scope, step_schedule=step_schedule, **aim)
    student, measured = small, dense_size
    for step, target in enumerate(config.targets(dense_size), 1):
        student = take_step(student, config, step, dense, MELS, FRAMES, "int8")
        macs, params = get_deployed_size(student, MELS, FRAMES)
        measured = macs if name == "macs" else size_bytes(params, "int8")
        assert 0.7 * target < measured <= target
    assert measured <= 0.35 * dense_size


@pytest.mark.parametrize(("scope", "round_to"), [("local", 1), ("global", 1), ("isomorphic", 1), ("local", 4)])
@pytest.mark.slow
def test_the_network_below_a_target_is_the_largest_there_is(small: Student, scope: str, round_to: int) -> None:
    """Brute force over all networks along the ranking: no larger one is still below the target."""

    def size(network: Student) -> float:
        return sum(p.numel() for p in network.parameters())

    sizes = {size(prune(small, r, round_to=round_to, scope=scope)) for r in torch.linspace(0.02, 0.5, 25).tolist()}
    for share in (0.75, 0.5):
        target = share * size(small)
        found = size(prune_below(small, target, size, round_to=round_to, scope=scope))
        assert found <= target
        assert found >= max(s for s in sizes if s <= target)
    assert size(prune_below(small, size(small), size)) == size(small)  # the target is met: nothing is removed


@pytest.mark.slow
def test_local_sizes_are_exact_and_others_an_estimate(small: Student) -> None:
    dense = get_deployed_size(small, MELS, FRAMES)
    for config in (
        PruneConfig((0.3, 0.2), criterion="random"),
        PruneConfig(n_steps=2, target_macs=0.5 * dense[0], criterion="bn_scale"),
    ):
        assert config.exact
        student, sizes = small, [dense]
        for step in (1, 2):
            student = take_step(student, config, step, dense, MELS, FRAMES, seed=step)
            sizes.append(get_deployed_size(student, MELS, FRAMES))
        assert sizes == plan_sizes(SMALL, config, MELS, FRAMES)
    assert not PruneConfig((0.3,), scope="global").exact
    assert not PruneConfig((0.3,), scope="isomorphic").exact
    started = plan_sizes(SMALL, PruneConfig((0.2,)), MELS, FRAMES, widths=prune(small, 0.3).widths)
    assert started == plan_sizes(SMALL, PruneConfig((0.3, 0.2)), MELS, FRAMES)[1:]
    state = torch.get_rng_state()
    plan_sizes(ONE_BLOCK, PruneConfig((0.2,), scope="global"), MELS, FRAMES)
    assert torch.equal(state, torch.get_rng_state())


def test_pruned_to_widths_takes_the_least_important_in_one_step(small: Student) -> None:
    twice = prune(prune(small, 0.3, "l1"), 0.3, "l1")
    once = prune_to_widths(small, twice.widths, "l1")
    assert once.widths == twice.widths
    single = prune(small, 0.3, "l1")
    same = prune_to_widths(small, single.widths, "l1")
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), single.state_dict().values(), strict=True))
    with pytest.raises(PruningError, match="cannot be pruned to"):
        prune_to_widths(twice, small.widths)


# --- refusals ---


@pytest.mark.slow
def test_targets_that_cannot_be_met_name_what_can(small: Student) -> None:
    dense = get_deployed_size(small, MELS, FRAMES)[0]
    with pytest.raises(PruningError, match=rf"prune\.target_macs=.*{dense:,}"):
        plan_sizes(SMALL, PruneConfig(n_steps=2, target_macs=float(dense)), MELS, FRAMES)
    smallest = small
    for _ in range(2):
        smallest = pruning.smallest_step(smallest, 1, 0.5)
    least = size_bytes(get_deployed_size(smallest, MELS, FRAMES)[1], "fp16")
    for scope in ("local", "global"):
        impossible = PruneConfig(n_steps=2, target_bytes=0.9 * least, max_ratio=0.5, scope=scope)
        with pytest.raises(PruningError, match=rf"prune\.target_bytes=.*2 step\(s\) is {least:,}:"):
            plan_sizes(SMALL, impossible, MELS, FRAMES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratios": (0.3,), "total_ratio": 0.5, "n_steps": 2}, r"prune\.ratios and prune\.total_ratio "),
        ({"target_macs": 1e6, "target_bytes": 1e4, "n_steps": 1}, r"target_macs and prune\.target_bytes "),
        ({"ratios": (0.3,), "n_steps": 2}, r"prune\.n_steps=2 .* prune\.ratios"),
        ({"n_steps": 2}, r"prune\.n_steps=2 .*prune\.target_bytes"),
        ({"total_ratio": 0.5}, r"prune\.n_steps=None: .*prune\.total_ratio"),
        ({"target_macs": 1e6, "n_steps": 0}, r"prune\.n_steps=0: .*prune\.target_macs"),
        ({"target_bytes": 0.0, "n_steps": 2}, r"prune\.target_bytes=0\.0: expected a number above 0"),
        ({"total_ratio": 1.0, "n_steps": 2}, r"prune\.total_ratio=1\.0: expected a share"),
        ({"step_schedule": "square"}, r"prune\.step_schedule='square': expected one of constant, linear, cubic"),
        ({"scope": "everywhere"}, r"prune\.scope='everywhere': expected one of local, global, isomorphic"),
        ({"lr_mode": "warm"}, r"prune\.lr_mode='warm': expected one of finetune, rewind"),
        ({"criterion": "size"}, r"expected one of l1, l2, lamp, fpgm, random, bn_scale, taylor, hessian"),
        ({"max_ratio": 1.0}, r"prune\.max_ratio=1\.0: expected"),
        ({"importance_clips": 0}, r"prune\.importance_clips=0"),
    ],
)
def test_prune_config_refuses(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneConfig(**values)
