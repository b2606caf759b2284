"""Networks after pruning: consistent groups, sizes of the schedule, refusals (`ascmodels/compress/pruning.py`)."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from ascmodels.checkpoint import load_student, save_student
from ascmodels.compress.groups import CRITERIA
from ascmodels.compress.plan import plan_sizes
from ascmodels.compress.pruning import prune
from ascmodels.config.prune import PruneConfig, PruningError
from ascmodels.nessi import get_deployed_size, get_torch_size
from ascmodels.students import Student, StudentConfig, build_student
from ascmodels.students.cp_mobile import Block
from tests.support.ascmodels.students import ALL, FOUR, SMALL, features, logits_of, seeded, train_a_little


@pytest.mark.slow
def test_golden_pruned_baseline():
    model = build_student(StudentConfig())
    pruned = prune(model, 0.3)
    assert get_torch_size(pruned, (1, 1, 256, 65)) == (14_563_290, 31_101)
    assert get_torch_size(prune(model, 0.3, round_to=8), (1, 1, 256, 65)) == (11_733_940, 25_740)
    sizes = plan_sizes(StudentConfig(), PruneConfig((0.3, 0.3, 0.3)), 256, 65)
    assert [params for _, params in sizes] == [61_148, 31_101, 15_912, 8_334]
    assert sizes[0] == (29_419_156, 61_148)
    assert sizes[1] == (14_563_290, 31_101)


def consistent(model: Student) -> None:
    """Check that the tensors of adjacent layers have matching widths, and that shortcuts join equal widths."""
    w = model.widths
    ins = (w.stem[1], *w.out)
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        assert block.expand[0].weight.shape == (w.expand[i], ins[i], 1, 1)
        assert block.project[0].weight.shape == (w.out[i], w.expand[i], 1, 1)
        depthwise = block.depthwise[0]
        convs = [m for m in depthwise.modules() if isinstance(m, nn.Conv2d)]
        assert convs or model.config.branches == ("identity",)
        for conv in convs:
            assert conv.groups == conv.in_channels == conv.out_channels == w.expand[i]
            assert conv.weight.shape[:2] == (w.expand[i], 1)
        if block.shortcut is not None:
            assert ins[i] == w.out[i]
    assert model.classifier[0].weight.shape == (10, w.out[-1], 1, 1)


@pytest.mark.parametrize(("criterion", "seed"), [(c, s) for s, c in enumerate((*sorted(CRITERIA), "l2"))])
@pytest.mark.slow
def test_pruning_keeps_groups_consistent_and_shrinks_as_the_schedule_says(criterion, seed):
    rng = np.random.default_rng(seed)
    config = StudentConfig(
        base_channels=int(rng.choice([8, 16])),
        channels_multiplier=float(rng.uniform(1.0, 2.3)),
        expansion_rate=float(rng.uniform(1.5, 3)),
        n_blocks=((2, 1), (1, 1, 1), (3,))[seed % 3],
        strides=("b2:2x1", "b3:1x2"),
        grn=seed % 2 == 0,
        branches=() if seed % 3 == 0 else [FOUR, ALL, ("3x3", "1x1"), ("1x3", "identity")][seed % 4],
        rep_stem=seed % 3 == 2,
    )
    ratios = tuple(rng.uniform(0.15, 0.5, size=2).round(3).tolist())
    round_to = (1, 1, 4)[rng.integers(3)]
    expected = plan_sizes(config, PruneConfig(ratios, round_to=round_to), 32, 24)
    model = seeded(config, seed)
    train_a_little(model, features(4, 16, 16)).train()
    shortcuts = [b.shortcut is not None for b in model.blocks]  # type: ignore[union-attr]
    sizes = [get_deployed_size(model, 32, 24)]
    for ratio in ratios:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        random_state = torch.get_rng_state()
        pruned = prune(model, ratio, criterion, round_to, seed)
        assert torch.equal(random_state, torch.get_rng_state())
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert model.training
        assert pruned.training
        consistent(pruned)
        assert [b.shortcut is not None for b in pruned.blocks] == shortcuts  # type: ignore[union-attr]
        for name, value in pruned.state_dict().items():
            assert value.is_contiguous(), name
        model = pruned
        train_a_little(model, features(4, 16, 16))
        assert logits_of(model, features(4, 16, 16)).shape == (4, 10)
        model.train()
        sizes.append(get_deployed_size(model, 32, 24))
    assert sizes == expected
    for (macs, params), (fewer_macs, fewer_params) in itertools.pairwise(sizes):
        assert fewer_macs < macs
        assert fewer_params < params


def test_what_remains_is_a_selection_of_what_was_there():
    """Pruning keeps the weights of the channels with the largest L2 norm of their group, unchanged."""
    model = seeded(StudentConfig(base_channels=16, n_blocks=(1,), strides=()))
    with torch.no_grad():  # make inner channels 3 and 7 of the first block the least important
        block = model.blocks[0]
        for layer in (block.expand[0], block.depthwise[0]):  # type: ignore[union-attr,index]
            layer.weight[[3, 7]] *= 1e-3  # type: ignore[union-attr,index]
        block.project[0].weight[:, [3, 7]] *= 1e-3  # type: ignore[union-attr,index]
        for norm in (block.expand[1], block.depthwise[1]):  # type: ignore[union-attr,index]
            norm.weight[[3, 7]] *= 1e-3  # type: ignore[union-attr,index]
    inner = model.widths.expand[0]
    pruned = prune(model, 2 / inner, "l2")
    keep = [i for i in range(inner) if i not in (3, 7)]
    weight = pruned.blocks[0].depthwise[0].weight  # type: ignore[union-attr,index]
    assert torch.equal(weight, model.blocks[0].depthwise[0].weight[keep])  # type: ignore[union-attr,index]


def test_pruning_adds_no_shortcut_where_widths_become_equal(tmp_path):
    """A block of 8 -> 16 channels is pruned to 8 -> 8. It had no shortcut and gets none, nor when it is loaded."""
    model = seeded(StudentConfig(**SMALL))
    pruned = prune(model, 0.3, round_to=8)
    assert (model.widths.out, pruned.widths.out) == ((8, 8, 16), (8, 8, 8))
    save_student(tmp_path / "c", pruned, {})
    for network in (model, pruned, load_student(tmp_path / "c")[0]):
        blocks: list[Block] = list(network.blocks)  # type: ignore[arg-type]
        assert [b.shortcut is not None for b in blocks] == [True, True, False]


def test_random_pruning_follows_its_seed():
    model = seeded(StudentConfig(**SMALL))
    a, b, c = (prune(model, 0.3, "random", seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_ratios_that_cannot_be_are_refused(ratio):
    with pytest.raises(PruningError, match=r"pruning ratio=.*above 0 and below 1"):
        prune(build_student(StudentConfig(**SMALL)), ratio)
    with pytest.raises(PruningError, match=r"prune\.ratios\[1\]="):
        PruneConfig((0.3, ratio))


def test_steps_that_empty_a_layer_or_remove_nothing_are_refused():
    model = build_student(StudentConfig(**SMALL))
    assert min(model.widths.out) == 8
    with pytest.raises(PruningError, match=r"0\.97 would empty a layer of 8 channel"):
        prune(model, 0.97)
    with pytest.raises(PruningError, match=r"0\.97 would empty a layer"):
        plan_sizes(model.config, PruneConfig((0.2, 0.97)), 32, 24)
    eights = prune(model, 0.05, round_to=8)  # the kept widths are rounded down to multiples of 8
    assert {*eights.widths.expand, *eights.widths.out} == {8}
    with pytest.raises(PruningError, match=r"0\.05 removes no channel from widths Widths"):
        prune(eights, 0.05, round_to=8)
    with pytest.raises(PruningError, match="a fused student cannot be pruned"):
        prune(build_student(StudentConfig(**SMALL, branches=ALL)).fuse(), 0.3)


@pytest.mark.parametrize(("ratio", "round_to"), [(0.5, 1), (0.7, 1), (0.85, 1), (0.3, 4), (0.4, 3)])
def test_repeated_pruning_ends_in_a_refusal_never_in_an_empty_layer(ratio, round_to):
    model = build_student(StudentConfig(**SMALL))
    with pytest.raises(PruningError, match=r"would empty a layer|removes no channel"):
        for _ in range(12):
            model = prune(model, ratio, round_to=round_to)
            consistent(model)
            assert min((*model.widths.stem, *model.widths.expand, *model.widths.out)) >= 1
    assert logits_of(model, features()).shape == (4, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"criterion": "magnitude"}, r"prune\.criterion='magnitude': expected one of l1, l2, lamp, fpgm, random"),
        ({"round_to": 0}, r"prune\.round_to=0"),
        ({"epochs": 0}, r"prune\.epochs=0"),
        ({"lr": 0.0}, r"prune\.lr=0"),
    ],
)
def test_prune_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        PruneConfig(**values)
