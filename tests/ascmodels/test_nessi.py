"""NeSsi: closed forms of MACs and bytes, and layers that cannot be counted (`ascmodels/nessi.py`)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ascmodels.config.limits import Limits, size_bytes
from ascmodels.nessi import UncountableError, _FlopCounter, get_deployed_size, get_torch_size
from ascmodels.students import StudentConfig, build_student
from tests.support.ascmodels.students import ALL, SMALL, seeded


class Hidden(nn.Module):
    """A convolution, followed by work in `forward` that belongs to no layer."""

    def __init__(self, work):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.work = work

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.work(self.conv(x))


HIDDEN = pytest.mark.parametrize(
    "work",
    [
        lambda y: y @ y.transpose(2, 3),
        lambda y: torch.einsum("bcft,bdft->bcd", y, y),
        lambda y: F.conv2d(y, torch.ones(2, 4, 1, 1)),
        lambda y: F.linear(y, torch.ones(3, y.shape[-1])),
        lambda y: F.scaled_dot_product_attention(y, y, y),
    ],
    ids=["matmul", "einsum", "conv2d", "linear", "attention"],
)


@HIDDEN
def test_the_flop_counter_counts_as_pytorchs(work):
    network, x = Hidden(work), torch.zeros(1, 1, 8, 8)
    expected = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with expected:
            network(x)
        with _FlopCounter() as found:
            network(x)
    assert found.flops == expected.get_total_flops() > 2 * 36 * 36


@HIDDEN
def test_work_hidden_in_a_forward_raises(work):
    with pytest.raises(UncountableError, match=r"Hidden runs [\d,]+ MACs outside its layers"):
        get_torch_size(Hidden(work), (1, 1, 8, 8))
    assert get_torch_size(Hidden(F.relu), (1, 1, 8, 8)) == (40 * 36, 40)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(8, 4, batch_first=True),
        nn.GRU(8, 4, batch_first=True),
        nn.MultiheadAttention(8, 2, batch_first=True),
        nn.ConvTranspose2d(1, 2, 3),
        nn.Conv3d(1, 2, 1),
        nn.Bilinear(8, 8, 2),
        nn.Embedding(4, 4),
        nn.Softmax(dim=1),
        nn.Upsample(scale_factor=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_outside_the_convention_raises(layer):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), layer)
    with pytest.raises(UncountableError, match=rf"layer 1 \({type(layer).__name__}\) is not in NeSsi's convention"):
        get_torch_size(model, (1, 1, 8, 8))


def test_unfused_branches_half_precision_and_nothing_at_all_raise():
    size = (1, 1, 32, 24)
    rep = build_student(StudentConfig(**SMALL, branches=ALL))
    with pytest.raises(UncountableError, match=r"blocks\.b1\.depthwise\.0 \(RepConv2d\) still has its branches"):
        get_torch_size(rep, size)
    assert get_torch_size(rep.fuse(), size) == get_deployed_size(rep, 32, 24)
    with pytest.raises(UncountableError, match="is not float32"):
        get_torch_size(build_student(StudentConfig(**SMALL)).half(), size)
    with pytest.raises(UncountableError, match="is not float32"):
        get_torch_size(build_student(StudentConfig(**SMALL)).double(), size)
    with pytest.raises(UncountableError, match="no parameters"):
        get_torch_size(nn.Sequential(nn.ReLU()), size)


def test_a_model_with_its_own_parameters_raises():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gain = nn.Conv2d(1, 2, 1), nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.gain * self.conv(x)

    with pytest.raises(UncountableError, match=r"layer \(root\) \(Scaled\) is not in NeSsi's convention"):
        get_torch_size(Scaled(), (1, 1, 8, 8))


def test_counts_in_closed_form():
    def count(*layers: nn.Module, size: tuple[int, ...] = (1, 3, 12, 10)) -> tuple[int, int]:
        return get_torch_size(nn.Sequential(*layers), size)

    assert count(nn.Conv2d(3, 8, 3, padding=1)) == (8 * 120 * (27 + 1), 8 * 28)
    assert count(nn.Conv2d(3, 6, (3, 1), stride=2, groups=3, bias=False)) == (6 * 5 * 5 * 3, 18)
    assert count(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) == (24 * 120 + 16, 40)
    assert count(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7)) == (28, 28)
    assert count(nn.Conv1d(3, 5, 4), size=(1, 3, 20)) == (5 * 17 * 13, 65)
    assert count(nn.Linear(6, 4, bias=False), size=(1, 9, 6))[1] == 24


@pytest.mark.parametrize("training", [True, False])
def test_a_measured_model_is_as_it_was(training):
    model = seeded(StudentConfig(**SMALL, grn=True)).train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    get_torch_size(model, (1, 1, 32, 24))
    assert all(m.training == training for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    hidden = Hidden(lambda y: y @ y.transpose(2, 3)).train(training)
    with pytest.raises(UncountableError):
        get_torch_size(hidden, (1, 1, 8, 8))
    with pytest.raises(RuntimeError):
        get_torch_size(model, (1, 2, 32, 24))  # the forward pass itself fails
    assert all(m.training == training for m in [*model.modules(), *hidden.modules()])


def test_bytes_and_limits():
    assert [size_bytes(61_148, p) for p in ("fp32", "fp16", "int8")] == [244_592, 122_296, 61_148]
    assert Limits().allow(30_000_000, 64_000)
    assert not Limits().allow(30_000_001, 64_000)
    assert not Limits().allow(30_000_000, 64_001)
    assert Limits(precision="int8").allow(1, 128_000)
    assert not Limits(precision="fp32").allow(1, 32_001)
    for values, message in [
        ({"precision": "int4"}, r"limits\.precision='int4': expected one of fp32, fp16, int8"),
        ({"macs": 0}, r"limits\.macs=0"),
        ({"bytes": -1}, r"limits\.bytes=-1"),
        ({"macs": float("nan")}, r"limits\.macs=nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            Limits(**values)


@pytest.mark.parametrize("size", [(12, 65), (128, 12)])
def test_features_that_are_too_small_for_a_network_are_named(size):
    network = build_student(StudentConfig(family="tf_sepnet", base_channels=8))
    with pytest.raises(UncountableError, match=rf"features of {size[0]} mel bins x {size[1]} frames"):
        get_deployed_size(network, *size)
    assert get_deployed_size(network, 13, 13)[0] > 0
