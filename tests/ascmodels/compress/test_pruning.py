"""Criteria of pruning against their formulas, and scopes against torch-pruning's own."""

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

from ascmodels.compress.groups import CRITERIA, DATA_CRITERIA, sensitivities
from ascmodels.compress.plan import plan_networks
from ascmodels.compress.pruning import prune, removed_channels
from ascmodels.config.prune import PruneConfig, PruningError
from ascmodels.students import Student, Widths, build_student
from tests.support.ascmodels.untrained import FRAMES, MELS, ONE_BLOCK, SMALL, trained


def clip_losses(n: int) -> Callable[[nn.Module], Iterator[torch.Tensor]]:
    x = torch.randn(n, 1, MELS, FRAMES, generator=torch.Generator().manual_seed(3))
    return lambda model: (F.cross_entropy(model(x[[i]]), torch.tensor([i % 10])) for i in range(n))


def inner_scores(student: Student, criterion: str) -> Any:
    """Return the scores of the inner channels of the only block, by the criterion's formula from its layers."""
    block: Any = student.blocks[0]  # type: ignore[index]
    expand, norms, project = block.expand[0], (block.expand[1], block.depthwise[1]), block.project[0]
    columns = project.weight.flatten(1).T  # [C, outputs]: the weights that read the channel
    rows = expand.weight.flatten(1)  # [C, inputs]: the weights that compute it
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
    """Compare with rational arithmetic for every number of channels up to 128 and every ratio in hundredths."""
    differs_from_torch_prunings = 0
    for total in range(1, 129):
        for hundredths in range(101):
            exact = math.ceil(Fraction(hundredths, 100) * total)
            assert removed_channels(total, hundredths / 100) == exact
            kept = 1 - hundredths / 100  # the limit of a layer is computed in this form
            assert total - removed_channels(total, kept) == math.floor(Fraction(hundredths, 100) * total)
            theirs = total - int(total * (1 - hundredths / 100))
            assert theirs in (exact, exact + 1)
            differs_from_torch_prunings += theirs != exact
    assert differs_from_torch_prunings == 68
    composed = 1 - (1 - 0.75) / (1 - 0.5)  # a step of a plan is computed in this form: 0.5, but for rounding
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
    *_, planned = plan_networks(ONE_BLOCK, PruneConfig((ratio,)), MELS, FRAMES, widths=widths)
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
    """No layer loses more than `max_ratio`, not even one of almost no importance, which torch-pruning would remove."""
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
    """A layer without gradient has Taylor scores of 0 / 0 after normalisation, which must not become NaN."""
    dead = {k: torch.full_like(v, not k.startswith("blocks.b2")) for k, v in small.named_parameters()}
    pruned = prune(small, 0.2, "taylor", scope="global", max_ratio=0.5, gradients=dead)
    assert pruned.widths.expand[1] == small.widths.expand[1] - int(small.widths.expand[1] * 0.5)
