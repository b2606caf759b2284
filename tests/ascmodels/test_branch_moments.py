"""Training of a depthwise RepConv as one convolution equals its branches (`ascmodels/students/branch_moments.py`)."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ascmodels.config.student import BRANCHES, StudentConfig
from ascmodels.students import Student
from ascmodels.students.branch_moments import _Moments
from ascmodels.students.repconv import RepConv2d
from tests.support.ascmodels.students import ALL, TINY, features, seeded
from tests.support.marks import rest_slow

SUBSETS = [c for k in range(1, 6) for c in itertools.combinations(BRANCHES, k)]
SUBSETS.sort(key=lambda names: names not in [ALL, ("1x1",), ("3x1", "1x1"), ("3x3", "identity"), ("1x3",)])


def sum_of_layers(block: RepConv2d, x: torch.Tensor) -> torch.Tensor:
    """The reference: each branch with its own batch normalisation."""
    first, *others = (branch(x) for branch in block.branches.values())
    for other in others:
        first = first + other
    return first


def trained(block: RepConv2d, x: torch.Tensor, run: Callable[[RepConv2d, torch.Tensor], torch.Tensor]) -> dict:
    """Return output, gradients and running statistics of a copy of `block` after one step of a loss of all outputs."""
    block, x = copy.deepcopy(block).train(), x.clone().requires_grad_()
    output = run(block, x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (output * weights.to(output)).sum().backward()
    found = {name: p.grad for name, p in block.named_parameters()} | dict(block.named_buffers())
    return found | {"output": output.detach(), "x": x.grad}


def is_called(monkeypatch: pytest.MonkeyPatch) -> list:
    calls, forward = [], _Moments.forward

    def counted(*values):
        calls.append(1)
        return forward(*values)

    monkeypatch.setattr(_Moments, "forward", staticmethod(counted))
    return calls


@pytest.mark.parametrize("stride", [(1, 1), (1, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("branches", rest_slow(SUBSETS, 5), ids="+".join)
def test_one_convolution_equals_the_branches(branches, stride, monkeypatch):
    if branches == ("identity",) and stride != (1, 1):
        return
    torch.manual_seed(0)
    block = RepConv2d(6, 6, branches, stride, groups=6)
    for branch in block.branches.values():
        nn.init.normal_(branch[-1].weight, 1.0, 0.3)  # type: ignore[index]
        nn.init.normal_(branch[-1].bias, 0.0, 0.3)  # type: ignore[index]
    x = torch.relu(torch.randn(5, 6, 13, 8) + torch.randn(1, 6, 1, 1)).to(memory_format=torch.channels_last)
    calls = is_called(monkeypatch)
    exact = trained(copy.deepcopy(block).double(), x.double(), sum_of_layers)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        typed = copy.deepcopy(block).to(dtype)
        plain = trained(typed, x.to(dtype), sum_of_layers)
        found = trained(typed, x.to(dtype), lambda b, values: b(values))
        assert found.keys() == exact.keys()
        for name, expected in exact.items():
            # the exact gradient of some kernels is 0, because batch normalisation removes their scale
            scale = expected.abs().max() + exact["x"].abs().max() * (name not in ("x", "output"))
            error, error_of_plain = ((v[name] - expected).abs().max() for v in (found, plain))
            assert error <= max(bound * scale, 3 * error_of_plain), name
    assert len(calls) == 2  # it did not run the branches


@pytest.mark.parametrize("stride", [(1, 1), (1, 2), (2, 1)])
def test_gradients_of_the_moments_are_those_of_finite_differences(stride):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)]
    for size in ((3, 3), (1, 3)):
        values.append(torch.randn(3, 1, *size, generator=generator, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda x, *kernels: _Moments.apply(x, stride, True, *kernels), values)
    assert torch.autograd.gradcheck(lambda x: _Moments.apply(x, stride, True), values[:1])


@pytest.mark.parametrize("rep_stem", [False, True])
def test_a_step_of_a_rep_mobile_equals_that_with_separate_branches(rep_stem, monkeypatch):
    config = StudentConfig(base_channels=16, n_blocks=(2, 1), strides=("b2:1x2",), branches=ALL, rep_stem=rep_stem)

    def step(dtype: torch.dtype) -> Student:
        student = seeded(config).to(dtype).train()
        student(features(8, 32, 24).to(dtype)).square().mean().backward()
        return student

    calls = is_called(monkeypatch)
    actual = step(torch.float32)
    assert len(calls) == 3  # one for each block: the stem's convolutions are not depthwise
    monkeypatch.setattr(RepConv2d, "_is_one_convolution", lambda block, x: False)
    expected = step(torch.float64)
    assert len(calls) == 3
    scale = max(p.grad.abs().max() for p in expected.parameters() if p.grad is not None)
    for a, e in zip(actual.parameters(), expected.parameters(), strict=True):
        assert a.grad is not None
        assert e.grad is not None
        assert (a.grad - e.grad).abs().max() <= 1e-5 * scale
    for (name, a), e in zip(actual.named_buffers(), expected.buffers(), strict=True):
        assert torch.allclose(a.to(e), e, rtol=1e-5, atol=1e-6), name


def test_the_separate_branches_are_used_where_they_are_needed(monkeypatch):
    """In evaluation mode (pruning traces them), for mixed precision, and if a channel has a single value."""
    calls = is_called(monkeypatch)
    block = RepConv2d(4, 4, ALL, groups=4)
    x = torch.randn(2, 4, 5, 5)
    block.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        block.train()(x)
    RepConv2d(4, 4, ("3x3", "1x1"))(x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(torch.randn(1, 4, 1, 1))
    assert not calls
    block(x)
    assert calls


def test_relu_in_place_has_bit_equal_gradients():
    for name, config in TINY.items():
        gradients = []
        for inplace in (True, False):
            student = seeded(config).train()
            activations = [m for m in student.modules() if isinstance(m, nn.ReLU)]
            assert all(m.inplace for m in activations)
            assert bool(activations) == (config.activation == "relu"), name
            for module in activations:
                module.inplace = inplace
            student(features(4, 32, 32)).square().mean().backward()
            gradients.append([p.grad for p in student.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)), name
