"""TF-SepNet: golden sizes, the equations of its paper, pruning."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ascmodels.compress.plan import plan_sizes
from ascmodels.compress.pruning import prune
from ascmodels.config.limits import Limits
from ascmodels.config.prune import PruneConfig
from ascmodels.nessi import get_deployed_size, get_torch_size
from ascmodels.students import StudentConfig, Widths, build_student
from ascmodels.students.tf_sepnet import AdaResNorm, DepthMultiplier, SepConvs, part_sizes
from tests.support.ascmodels.students import TINY, features, seeded, train_a_little
from trainables.config.compose import compose

SHIPPED = {name: compose([f"student={name}"]).student for name in ("tf_sepnet", "tf_sepnet_24", "tf_sepnet_16")}


@pytest.mark.parametrize(
    ("channels", "published", "exact"),
    # arXiv 2309.08200, tables 2 and 4 (K parameters, M MACs, K parameters without AdaResNorm), at F 256, T 64
    [(40, ("53.4", "7.03", "52.3"), (53_370, 7_029_960)), (80, ("196.7", "24.2", None), (196_730, 24_180_080))],
)
def test_golden_tf_sepnet(channels, published, exact):
    model = build_student(StudentConfig(family="tf_sepnet", base_channels=channels))
    macs, params = get_deployed_size(model, 256, 64)
    assert (params, macs) == exact
    assert (f"{params / 1e3:.1f}", f"{macs / 1e6:.{len(published[1].split('.')[1])}f}") == published[:2]
    norms = sum(p.numel() for m in model.modules() if isinstance(m, AdaResNorm) for p in m.parameters())
    assert published[2] in (None, f"{(params - norms) / 1e3:.1f}")


def closed_form(c: int, bins: int, frames: int) -> tuple[int, int]:
    """Return (MACs, parameters) of TF-SepNet with `c` channels, by table 1 and section 2 of the paper."""
    macs = params = 0

    def count(weights: int, bn: int, positions: int) -> None:
        nonlocal macs, params
        macs += weights * positions + 2 * bn
        params += weights + 2 * bn

    def norm(channels: int) -> None:
        nonlocal macs, params
        macs += 2 * channels
        params += 3 * channels

    f, t = -(-bins // 2), -(-frames // 2)
    count(9 * (c // 2), c // 2, f * t)
    f, t = -(-f // 2), -(-t // 2)
    count(9 * 2 * c, 2 * c, f * t)
    norm(2 * c)
    inputs = 2 * c
    for outputs, n_modules, pooled in ((c, 2, 1), (3 * c // 2, 2, 1), (2 * c, 2, 0), (5 * c // 2, 3, 0)):
        half = outputs // 2
        count(inputs * outputs, outputs, f * t)
        for _ in range(n_modules):
            count(2 * 3 * half, outputs, f * t)
            count(half * half, half, t)  # averaged over frequency
            count(half * half, half, f)  # averaged over time
        norm(outputs)
        f, t = (f // 2, t // 2) if pooled else (f, t)
        inputs = outputs
    return macs + (inputs + 1) * 10 * f * t, params + (inputs + 1) * 10


@pytest.mark.slow
@pytest.mark.parametrize("channels", [8, 12, 28, 40])
def test_tf_sepnet_counts_in_closed_form_fused_or_not(channels):
    model = build_student(StudentConfig(family="tf_sepnet", base_channels=channels))
    for size in ((256, 65), (63, 30)):
        expected = closed_form(channels, *size)
        assert get_deployed_size(model, *size) == expected
        assert get_torch_size(model, (1, 1, *size)) == expected
    near = build_student(StudentConfig(family="tf_sepnet", base_channels=channels - 1))
    assert near.widths == model.widths  # rounded to a multiple of 4


@pytest.mark.parametrize("n_modules", [1, 2, 3])
def test_parts_are_a_shuffle_between_two_paths(n_modules):
    for width in range(2**n_modules * 2, 130, 2):
        sizes = part_sizes(width, n_modules)
        paths = [[(part >> m) & 1 for part, n in enumerate(sizes) for _ in range(n)] for m in range(n_modules)]
        assert all(len(p) == width and sum(p) == width // 2 for p in paths)  # every module has two equal halves
        for before, after in itertools.pairwise(paths):  # each path takes half of either path of the preceding module
            for a, b in itertools.product((0, 1), repeat=2):
                n_taken_over = sum(x == a and y == b for x, y in zip(before, after, strict=True))
                assert abs(n_taken_over - width / 4) <= n_modules


@torch.no_grad()
def test_sepconvs_are_the_papers_equations():
    """SepConvs computes equations (1) to (4) of the paper, written out here channel by channel."""
    torch.manual_seed(0)
    sizes = (3, 2, 2, 3)
    for index in (0, 1):
        module = SepConvs(index, sizes, "relu", fused=False)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
                layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        module.eval()
        x = torch.randn(2, sum(sizes), 6, 5)
        actual = torch.cat(module(list(x.split(sizes, dim=1))), dim=1)
        path = torch.tensor([(part >> index) & 1 for part, n in enumerate(sizes) for _ in range(n)])
        expected = x.clone()
        for which, axis, padding in ((0, 2, (1, 0)), (1, 3, (0, 1))):
            conv, norm, _ = module.depthwise[which]  # type: ignore[misc]
            y = F.conv2d(x[:, path == which], conv.weight, padding=padding, groups=5)
            y = norm(y).relu().mean(dim=axis, keepdim=True)
            weight = torch.cat([part[0].weight for part in module.pointwise[which].convs])  # type: ignore[union-attr]
            v = F.conv2d(y, weight).split([n for part, n in enumerate(sizes) if (part >> index) & 1 == which], dim=1)
            v = [part[1](w).relu() for part, w in zip(module.pointwise[which].convs, v, strict=True)]  # type: ignore[union-attr,arg-type]
            expected[:, path == which] += torch.cat(v, dim=1)
        assert torch.allclose(actual, expected, atol=1e-6)


@torch.no_grad()
def test_the_stem_is_the_papers_grouped_convolution():
    torch.manual_seed(0)
    stem = DepthMultiplier(6, "relu").eval()
    grouped = nn.Conv2d(6, 24, 3, 2, 1, groups=6, bias=False)
    for k, branch in enumerate(stem.convs):
        grouped.weight[k::4] = branch[0].weight  # type: ignore[index]
    x = torch.randn(2, 6, 9, 8)
    order = [4 * i + k for k in range(4) for i in range(6)]
    assert torch.allclose(stem(x), grouped(x)[:, order].relu() / (1 + 1e-5) ** 0.5, atol=1e-6)


def test_adaptive_residual_normalisation_by_its_formula():
    norm, x = AdaResNorm(5), torch.randn(3, 5, 4, 6, dtype=torch.float64) * 3 + 1
    norm.double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(-1, 1)
    mean, std = x.mean(dim=(1, 3), keepdim=True), x.var(dim=(1, 3), correction=0, keepdim=True).add(1e-5).sqrt()
    expected = norm.weight * (norm.rho * x + (1 - norm.rho) * (x - mean) / std) + norm.bias
    assert torch.allclose(norm(x), expected, atol=1e-12)
    assert torch.autograd.gradcheck(norm, x[:1, :, :2, :3].clone().requires_grad_())
    assert get_torch_size(AdaResNorm(7), (1, 7, 8, 9)) == (14, 21)


@pytest.mark.slow
def test_pruning_a_tf_sepnet_leaves_a_selection_of_what_was_there():
    """A channel that pruning keeps has its old weights in each layer that it passes, and takes its old paths."""
    model: Any = train_a_little(seeded(StudentConfig(family="tf_sepnet", base_channels=20)), features(frames=33))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)  # distinct scales identify the channels

    def kept(old: Any, new: Any) -> list[int]:
        """Return the channels that pruning kept, recognised by the scales of their batch normalisation."""
        return [old[1].weight.tolist().index(scale) for scale in new[1].weight.tolist()]

    for criterion in ("fpgm", "random"):
        pruned: Any = prune(model, 0.3, criterion, seed=4)
        first = kept(model.stem, pruned.stem)
        assert len(first) == 7
        assert torch.equal(pruned.stem[0].weight, model.stem[0].weight[first])
        for a, b in zip(model.stem[3].convs, pruned.stem[3].convs, strict=True):
            assert kept(a, b) == first
            assert torch.equal(b[0].weight, a[0].weight[first])
        inputs = [10 * k + i for k in range(4) for i in first]
        for name, parameter in model.stem[4].named_parameters():
            assert torch.equal(pruned.stem[4].get_parameter(name), parameter[:, inputs])
        for old, new in zip(model.blocks, pruned.blocks, strict=True):
            sizes = old.transition.sizes
            parts = [kept(a, b) for a, b in zip(old.transition.convs, new.transition.convs, strict=True)]
            for part, a, b in zip(parts, old.transition.convs, new.transition.convs, strict=True):
                assert torch.equal(b[0].weight, a[0].weight[part][:, inputs])
            for module, smaller in zip(old.sepconvs, new.sepconvs, strict=True):
                for path, members in enumerate(module.members):
                    offsets = [sum(sizes[i] for i in members[:j]) for j in range(len(members))]
                    here = [o + c for o, i in zip(offsets, members, strict=True) for c in parts[i]]
                    assert kept(module.depthwise[path], smaller.depthwise[path]) == here
                    assert torch.equal(smaller.depthwise[path][0].weight, module.depthwise[path][0].weight[here])
                    pairs = zip(members, module.pointwise[path].convs, smaller.pointwise[path].convs, strict=True)
                    for i, a, b in pairs:
                        assert kept(a, b) == parts[i]
                        assert torch.equal(b[0].weight, a[0].weight[parts[i]][:, here])
            inputs = [sum(sizes[:i]) + c for i, part in enumerate(parts) for c in part]
            for name, parameter in old.norm.named_parameters():
                assert torch.equal(new.norm.get_parameter(name), parameter[:, inputs])
        assert torch.equal(pruned.classifier[0].weight, model.classifier[0].weight[:, inputs])


def test_widths_that_do_not_fit_are_refused():
    model = build_student(TINY["tf_sepnet"])
    w = model.widths
    for wrong in (Widths(w.stem, w.out, w.out), Widths((6, 20), (), w.out), Widths(w.stem, (), w.out[1:])):
        with pytest.raises(ValueError, match=r"do not fit a tf_sepnet: .*`out` has 20 numbers"):
            build_student(model.config, widths=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_tf_sepnet_is_within_the_limits_of_both_profiles(name):
    for n_mels in (128, 256):
        assert Limits().allow(*get_deployed_size(build_student(SHIPPED[name]), n_mels, 65))


@pytest.mark.slow
def test_golden_pruned_tf_sepnet():
    sizes = plan_sizes(SHIPPED["tf_sepnet"], PruneConfig((0.3,)), 256, 65)
    assert sizes == [(7_320_040, 53_370), (3_976_708, 26_944)]
