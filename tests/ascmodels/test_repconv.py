"""RepConv: fusing the branches of a convolution is exact (`ascmodels/students/repconv.py`)."""

import copy
import itertools

import pytest
import torch
from torch import nn

from ascmodels.config.student import BRANCHES
from ascmodels.students import StudentConfig
from ascmodels.students.repconv import RepConv2d
from tests.support.ascmodels.students import ALL, FOUR, features, logits_of, seeded, train_a_little
from tests.support.marks import rest_slow

SUBSETS = [c for k in range(1, 6) for c in itertools.combinations(BRANCHES, k)]


def bounding_box(names: list[str]) -> tuple[int, int]:
    sizes = [(1, 1) if n == "identity" else tuple(int(v) for v in n.split("x")) for n in names]
    return max(s[0] for s in sizes), max(s[1] for s in sizes)


@pytest.mark.parametrize("branches", rest_slow(SUBSETS, 8), ids="+".join)
def test_fusion_is_exact_for_every_branch_set(branches):
    """Checked after training steps, for depthwise and dense, strided and unstrided blocks, in float32 and float64."""
    for (inputs, outputs, groups), stride in itertools.product([(6, 6, 6), (6, 6, 1), (4, 6, 2)], [(1, 1), (2, 1)]):
        works = set(branches) - {"identity"} or (inputs == outputs and stride == (1, 1))
        if not works:
            with pytest.raises(ValueError, match=r"identity needs stride 1 and equal channels"):
                RepConv2d(inputs, outputs, branches, stride, groups)
            continue
        torch.manual_seed(0)
        trained = RepConv2d(inputs, outputs, branches, stride, groups)
        train_a_little(trained, torch.randn(3, inputs, 7, 6))
        for branch in trained.branches.values():
            norm = branch[-1]  # type: ignore[index]
            assert (norm.running_mean.abs() > 1e-3).any()
            assert ((norm.weight - 1).abs() > 1e-3).any()
        for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
            block, x = copy.deepcopy(trained).to(dtype), torch.randn(3, inputs, 7, 6, dtype=dtype)
            fused = block.fuse()
            assert isinstance(fused, nn.Conv2d)
            assert fused.kernel_size == bounding_box(list(block.branches))
            assert fused.weight.dtype == dtype
            slow, fast = logits_of(block, x), logits_of(fused, x)
            assert slow.shape == fast.shape
            assert (slow - fast).abs().max() <= bound * slow.abs().max()


@pytest.mark.parametrize("branches", rest_slow([b for b in SUBSETS if b != ("identity",)], 8), ids="+".join)
def test_a_fused_student_equals_its_training_form(branches):
    model = seeded(
        StudentConfig(base_channels=8, n_blocks=(1, 1), strides=("b2:1x2",), branches=branches, rep_stem=True)
    )
    train_a_little(model, features(4, 16, 16))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        network, x = copy.deepcopy(model).to(dtype), features(4, 16, 16, seed=5).to(dtype)
        fused = network.fuse()
        assert fused.fused
        assert not network.fused
        assert not any(isinstance(m, RepConv2d) for m in fused.modules())
        slow, fast = logits_of(network, x), logits_of(fused, x)
        assert (slow - fast).abs().max() <= bound * slow.abs().max()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # `fuse` returns a copy


def test_identity_needs_equal_shapes_and_is_left_out_elsewhere():
    assert list(RepConv2d(4, 4, ALL).branches) == list(ALL)
    assert list(RepConv2d(4, 4, ALL, (2, 1)).branches) == list(FOUR)
    assert list(RepConv2d(4, 8, ALL).branches) == list(FOUR)


def test_a_branch_sum_by_hand():
    """A 1x1 branch of weight 2 with initial batch normalisation, plus identity: 3 x / sqrt(1 + eps)."""
    block = RepConv2d(1, 1, ["1x1", "identity"]).eval()
    nn.init.constant_(block.branches["1x1"][0].weight, 2.0)  # type: ignore[index]
    x = torch.full((1, 1, 2, 2), 5.0)
    assert torch.allclose(block(x), torch.full_like(x, 15 / (1 + 1e-5) ** 0.5))
    assert torch.allclose(block.fuse()(x), torch.full_like(x, 15 / (1 + 1e-5) ** 0.5))
