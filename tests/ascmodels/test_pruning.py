"""Criteria against their formulas, scopes against torch-pruning's own, schedules and targets, every refusal."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from ascmodels.compress import pruning
from ascmodels.compress.groups import CRITERIA, DATA_CRITERIA, PruningError, sensitivities
from ascmodels.compress.plan import PruneConfig, schedule_networks, schedule_sizes, shares, take_step
from ascmodels.compress.pruning import prune, prune_below, prune_to_widths, removed_channels
from ascmodels.nessi import get_deployed_size, size_bytes
from ascmodels.students import Student, StudentConfig, Widths, build_student

MELS, FRAMES = 32, 24
SMALL = StudentConfig(base_channels=16, n_blocks=(1, 1), strides=("b2:2x1",), branches=("3x3", "identity"))
ONE_BLOCK = StudentConfig(base_channels=16, n_blocks=(1,), strides=())


def trained(config: StudentConfig, seed: int = 0) -> Student:
    """Weights, BN scales and statistics that differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = build_student(config)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))  # type: ignore[union-attr]
    return student


@pytest.fixture(scope="module")
def small() -> Student:
    return trained(SMALL)


def clip_losses(n: int) -> Callable[[nn.Module], Iterator[torch.Tensor]]:
    x = torch.randn(n, 1, MELS, FRAMES, generator=torch.Generator().manual_seed(3))
    return lambda model: (F.cross_entropy(model(x[[i]]), torch.tensor([i % 10])) for i in range(n))


def inner_scores(student: Student, criterion: str) -> Any:
    """The formula of a criterion for the channels inside the one block, from its layers by hand."""
    block: Any = student.blocks[0]  # type: ignore[index]
    expand, norms, project = block.expand[0], (block.expand[1], block.depthwise[1]), block.project[0]
    columns = project.weight.flatten(1).T  # [C, outputs]: what reads the channel
    rows = expand.weight.flatten(1)  # [C, inputs]: what makes it
    gammas = [n.weight for n in norms]
    if criterion in ("l1", "l2"):
        p = int(criterion[1])
        return sum(m.abs().pow(p).sum(1) for m in (rows, columns)) + sum(g.abs().pow(p) for g in gammas)
    if criterion == "bn_scale":
        return sum(g.abs() for g in gammas)
    x = torch.randn(6, 1, MELS, FRAMES, generator=torch.Generator().manual_seed(3))
    weights = [expand.weight, project.weight, *gammas]
    each = []
    for i in range(6):
        loss = F.cross_entropy(student.eval()(x[[i]]), torch.tensor([i % 10]))
        each.append(torch.autograd.grad(loss, weights))
    if criterion == "taylor":  # |w * dL/dw| with the gradient of the mean loss; BN left out, as torch-pruning does
        g = [torch.stack(gs).mean(0) for gs in zip(*each, strict=True)][:2]
        parts = [(w * gw).abs().flatten(1) for w, gw in zip(weights, g, strict=False)]
        return parts[0].sum(1) + parts[1].sum(0)
    h = [torch.stack(gs).square().mean(0) for gs in zip(*each, strict=True)]  # w^2 E[g^2]
    parts = [(w.square() * hw) for w, hw in zip(weights, h, strict=True)]
    return parts[0].flatten(1).sum(1) + parts[1].flatten(1).sum(0) + parts[2] + parts[3]


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "taylor", "hessian"])
def test_the_channels_that_leave_are_those_of_the_formulas_lowest_scores(criterion: str) -> None:
    student = trained(ONE_BLOCK, seed=1)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    gradients = sensitivities(student, criterion, clip_losses(6)) if criterion in DATA_CRITERIA else None
    pruned = prune(student, 0.4, criterion, gradients=gradients)
    scores = inner_scores(student, criterion)
    keep = scores.argsort()[len(scores) - pruned.widths.expand[0] :].sort().values
    old: Any = student.blocks[0]  # type: ignore[index]
    new: Any = pruned.blocks[0]  # type: ignore[index]
    assert torch.equal(new.expand[1].weight, old.expand[1].weight[keep])
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_every_criterion_is_known_to_the_configuration() -> None:
    for criterion in (*CRITERIA, *DATA_CRITERIA):
        assert PruneConfig(criterion=criterion).criterion == criterion


@pytest.mark.parametrize("criterion", ["l2", "lamp", "fpgm", "random", "bn_scale"])
@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_a_scope_chooses_what_torch_pruning_itself_would(small: Student, scope: str, criterion: str) -> None:
    theirs = trained(SMALL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        pruner = tp.pruner.BasePruner(
            theirs,
            torch.zeros(1, 1, 64, 64),
            importance=CRITERIA[criterion](),  # type: ignore[arg-type]
            pruning_ratio=0.25,
            global_pruning=scope != "local",
            isomorphic=scope == "isomorphic",
            ignored_layers=[*theirs.unprunable(), *(m for m in theirs.modules() if getattr(m, "out_channels", 9) <= 2)],
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            channel_groups={},
        )
        pruner.step()
    ours = prune(small, 0.25, criterion, seed=5, scope=scope, max_ratio=0.99)
    assert ours.widths == theirs.widths
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_amount_removed_is_the_exact_share_rounded_up() -> None:
    """Against rational arithmetic, for every total up to 128 and every ratio in hundredths."""
    differs_from_torch_prunings = 0
    for total in range(1, 129):
        for hundredths in range(101):
            exact = math.ceil(Fraction(hundredths, 100) * total)
            assert removed_channels(total, hundredths / 100) == exact
            kept = 1 - hundredths / 100  # as a limit on a layer has it
            assert total - removed_channels(total, kept) == math.floor(Fraction(hundredths, 100) * total)
            theirs = total - int(total * (1 - hundredths / 100))
            assert theirs in (exact, exact + 1)
            differs_from_torch_prunings += theirs != exact
    assert differs_from_torch_prunings == 68
    composed = 1 - (1 - 0.75) / (1 - 0.5)  # as a schedule's steps are made: not 0.5 but for rounding
    assert [removed_channels(total, composed) for total in (2, 64, 100_000)] == [1, 32, 50_000]


@pytest.mark.parametrize(
    ("total", "ratio"),
    [(10, 0.8), (20, 0.9), (25, 0.56), (50, 0.34), (50, 0.78), (60, 0.55), (32, 0.3), (48, 0.35), (33, 0.01), (7, 0.5)],
)
def test_networks_lose_that_amount_and_torch_prunings_own_at_most_one_more(total: int, ratio: float) -> None:
    widths = Widths((total, total), (total,), (total,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = build_student(ONE_BLOCK, widths=widths)
        student = build_student(ONE_BLOCK, widths=widths)
    pruned = prune(student, ratio, "l2").widths
    removed = total - pruned.expand[0]
    assert set(flat_widths(pruned)) == {total - removed}
    assert removed == math.ceil(Fraction(str(ratio)) * total)
    *_, planned = schedule_networks(ONE_BLOCK, PruneConfig((ratio,)), MELS, FRAMES, widths=widths)
    assert planned[2] == pruned
    pruner = tp.pruner.BasePruner(
        theirs,
        torch.zeros(1, 1, 64, 64),
        importance=CRITERIA["l2"](),  # type: ignore[arg-type]
        pruning_ratio=ratio,
        ignored_layers=theirs.unprunable(),
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        channel_groups={},
    )
    pruner.step()
    assert total - theirs.widths.expand[0] == total - int(total * (1 - ratio))
    assert total - theirs.widths.expand[0] - removed in (0, 1)


def test_a_layer_never_loses_more_than_its_share(small: Student) -> None:
    """One layer made worthless: torch-pruning would skip it or take it whole; here it keeps what it must."""
    student = trained(SMALL)
    block: Any = student.blocks[1]  # type: ignore[index]
    with torch.no_grad():
        for layer in (block.expand[0], block.expand[1], block.project[0]):
            layer.weight[: 30 if layer is not block.project[0] else None] *= 1e-4
    for scope in ("global", "isomorphic"):
        for max_ratio in (0.3, 0.6):
            pruned = prune(student, 0.2, "l1", scope=scope, max_ratio=max_ratio)
            for old, new in zip(flat(student), flat(pruned), strict=True):
                assert new >= old - int(old * max_ratio)
    with pytest.raises(PruningError, match=r"0\.7 .* \d+ of \d+ channels .*prune\.max_ratio"):
        prune(small, 0.7, scope="global", max_ratio=0.5)
    with pytest.raises(PruningError, match=r"prune\.max_ratio"):
        prune(small, 0.7, scope="isomorphic", max_ratio=0.5)


def test_round_to_keeps_multiples_in_every_scope(small: Student) -> None:
    for scope in ("local", "global", "isomorphic"):
        pruned = prune(small, 0.3, round_to=4, scope=scope)
        changed = [new for old, new in zip(flat(small), flat(pruned), strict=True) if new != old]
        assert changed
        assert all(width % 4 == 0 for width in changed)


def flat(student: Student) -> list[int]:
    return flat_widths(student.widths)


def flat_widths(widths: Widths) -> list[int]:
    return [width for part in asdict(widths).values() for width in part]


def test_criteria_that_cannot_rank_say_so() -> None:
    fresh = build_student(SMALL)
    for scope in ("local", "global"):
        with pytest.raises(PruningError, match=r"criterion bn_scale: .* all 1; "):
            prune(fresh, 0.3, "bn_scale", scope=scope)
    for criterion in DATA_CRITERIA:
        with pytest.raises(PruningError, match=f"criterion {criterion} .*gradients"):
            prune(fresh, 0.3, criterion)
        with pytest.raises(PruningError, match=f"criterion {criterion} .* 0 clips"):
            sensitivities(fresh, criterion, lambda _: iter(()))


def test_a_dead_layer_goes_first_and_does_not_spoil_the_ranking(small: Student) -> None:
    """Taylor scores of a layer without gradient are 0 / 0 after normalisation."""
    dead = {k: torch.full_like(v, not k.startswith("blocks.b2")) for k, v in small.named_parameters()}
    pruned = prune(small, 0.2, "taylor", scope="global", max_ratio=0.5, gradients=dead)
    assert pruned.widths.expand[1] == small.widths.expand[1] - int(small.widths.expand[1] * 0.5)


# --- schedules ---


def test_schedules_have_their_closed_forms() -> None:
    assert shares("constant", 0.75, 2) == pytest.approx((0.5, 0.75))
    assert shares("linear", 0.6, 3) == pytest.approx((0.2, 0.4, 0.6))
    assert shares("cubic", 0.64, 4) == pytest.approx([0.64 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)])
    constant = PruneConfig(n_steps=3, total_ratio=1 - 0.7**3).step_ratios
    assert constant == pytest.approx((0.3, 0.3, 0.3))
    for name in ("constant", "linear", "cubic"):
        ratios = PruneConfig(n_steps=4, total_ratio=0.8, step_schedule=name).step_ratios
        left = 1.0
        for ratio in ratios:
            left *= 1 - ratio
        assert left == pytest.approx(0.2)
    assert PruneConfig((0.3, 0.2)).step_ratios == (0.3, 0.2)
    assert PruneConfig(n_steps=2, target_macs=25).targets(100) == pytest.approx((50, 25))
    assert PruneConfig(n_steps=2, target_macs=25, step_schedule="linear").targets(100) == pytest.approx((62.5, 25))


def test_equal_ratios_are_the_constant_schedule() -> None:
    """`total_ratio` in constant steps removes what the same explicit ratios do."""
    explicit = schedule_sizes(SMALL, PruneConfig((0.25, 0.25)), MELS, FRAMES)
    assert schedule_sizes(SMALL, PruneConfig(n_steps=2, total_ratio=1 - 0.75**2), MELS, FRAMES) == explicit


@pytest.mark.parametrize(
    "n_steps", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.slow
def test_targets_are_met_from_below_at_every_step(small: Student, scope: str, n_steps: int) -> None:
    dense = get_deployed_size(small, MELS, FRAMES)
    step_schedule = ("constant", "linear", "cubic")[n_steps % 3]
    name, whole = (("macs", dense[0]), ("bytes", size_bytes(dense[1], "int8")))[(n_steps + len(scope)) % 2]
    aim: Any = {f"target_{name}": 0.35 * whole}
    config = PruneConfig(n_steps=n_steps, scope=scope, step_schedule=step_schedule, **aim)
    student, measured = small, whole
    for step, target in enumerate(config.targets(whole), 1):
        student = take_step(student, config, step, dense, MELS, FRAMES, "int8")
        macs, params = get_deployed_size(student, MELS, FRAMES)
        measured = macs if name == "macs" else size_bytes(params, "int8")
        assert 0.7 * target < measured <= target
    assert measured <= 0.35 * whole


@pytest.mark.parametrize(("scope", "round_to"), [("local", 1), ("global", 1), ("isomorphic", 1), ("local", 4)])
@pytest.mark.slow
def test_the_network_below_a_target_is_the_largest_there_is(small: Student, scope: str, round_to: int) -> None:
    """Brute force: of all networks along the ranking none between the one found and the target."""

    def size(network: Student) -> float:
        return sum(p.numel() for p in network.parameters())

    sizes = {size(prune(small, r, round_to=round_to, scope=scope)) for r in torch.linspace(0.02, 0.5, 25).tolist()}
    for share in (0.75, 0.5):
        target = share * size(small)
        found = size(prune_below(small, target, size, round_to=round_to, scope=scope))
        assert found <= target
        assert found >= max(s for s in sizes if s <= target)
    assert size(prune_below(small, size(small), size)) == size(small)  # met already: nothing leaves


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
        assert sizes == schedule_sizes(SMALL, config, MELS, FRAMES)
    assert not PruneConfig((0.3,), scope="global").exact
    assert not PruneConfig((0.3,), scope="isomorphic").exact
    started = schedule_sizes(SMALL, PruneConfig((0.2,)), MELS, FRAMES, widths=prune(small, 0.3).widths)
    assert started == schedule_sizes(SMALL, PruneConfig((0.3, 0.2)), MELS, FRAMES)[1:]
    state = torch.get_rng_state()
    schedule_sizes(ONE_BLOCK, PruneConfig((0.2,), scope="global"), MELS, FRAMES)
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
        schedule_sizes(SMALL, PruneConfig(n_steps=2, target_macs=float(dense)), MELS, FRAMES)
    smallest = small
    for _ in range(2):
        smallest = pruning.smallest_step(smallest, 1, 0.5)
    least = size_bytes(get_deployed_size(smallest, MELS, FRAMES)[1], "fp16")
    for scope in ("local", "global"):
        impossible = PruneConfig(n_steps=2, target_bytes=0.9 * least, max_ratio=0.5, scope=scope)
        with pytest.raises(PruningError, match=rf"prune\.target_bytes=.*2 step\(s\) is {least:,}:"):
            schedule_sizes(SMALL, impossible, MELS, FRAMES)


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
