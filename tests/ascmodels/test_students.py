"""Student families: options and refusals, per-stage branches, TF-SepNet against its paper and against itself."""

import copy
import dataclasses
import itertools
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import search_spaces
from ascmodels import nessi
from ascmodels.checkpoint import CheckpointError, load_student, save_student
from ascmodels.compress.plan import PruneConfig, schedule_sizes
from ascmodels.compress.pruning import prune
from ascmodels.nessi import Limits, get_deployed_size, get_torch_size
from ascmodels.students import FAMILIES, Student, StudentConfig, Widths, build_student
from ascmodels.students.base import ACTIVATIONS, FAMILY_OPTIONS
from ascmodels.students.cp_mobile import MobileStudent
from ascmodels.students.repconv import RepConv2d
from ascmodels.students.tf_sepnet import AdaResNorm, DepthMultiplier, SepConvs, TFSepNet, part_sizes
from trainables.config.compose import compose
from trainables.config.flags import flags_to_overrides
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.deployment import deploy

MIXED = ("1x1+3x3+identity", "plain", "3x1+1x3")
SMALL = {"base_channels": 8, "n_blocks": (2, 1, 1), "strides": ("b2:1x2",)}
TINY = {
    "cp_mobile": StudentConfig(**SMALL),
    "rep_mobile": StudentConfig(**SMALL, stage_branches=MIXED, activation="silu", grn=True),
    "tf_sepnet": StudentConfig(family="tf_sepnet", base_channels=12),
}
SHIPPED = {name: compose([f"student={name}"]).student for name in ("tf_sepnet", "tf_sepnet_24", "tf_sepnet_16")}


def seeded(config: StudentConfig, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return build_student(config)


def features(n: int = 4, bins: int = 32, frames: int = 33, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 1, bins, frames, generator=torch.Generator().manual_seed(seed))


def trained(model: Student, steps: int = 2) -> Student:
    """Real steps, so that weights, BN statistics and norms are nowhere near where they began."""
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(3)
    model.train()
    for _ in range(steps):
        output = model(features() * 2 + 0.5)
        loss = (output - torch.randn(output.shape, generator=generator)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@torch.no_grad()
def logits_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.eval()(x)


# --- the catalogue, and options that are refused ---


def test_catalogue_names_and_options_agree():
    assert set(FAMILIES) == set(FAMILY_OPTIONS)
    names = {field.name for field in dataclasses.fields(StudentConfig)} - {"family"}
    assert set().union(*FAMILY_OPTIONS.values()) == names
    assert {name: config.name for name, config in TINY.items()} == {name: name for name in TINY}
    assert isinstance(build_student(TINY["rep_mobile"]), MobileStudent)
    assert isinstance(build_student(TINY["tf_sepnet"]), TFSepNet)
    assert StudentConfig(branches=("3x3",), stage_branches=("plain",) * 3).name == "cp_mobile"
    assert StudentConfig(branches=("3x3",), stage_branches=("plain",) * 3, rep_stem=True).name == "rep_mobile"


OTHER = {  # a value of every option that is not its default
    **{"channels_multiplier": 2.0, "expansion_rate": 3.0, "n_blocks": (2, 2), "strides": ("b1:2x2",), "grn": True},
    **{"branches": ("3x3",), "rep_stem": True, "stage_branches": MIXED, "base_channels": 16, "activation": "gelu"},
}


@pytest.mark.parametrize(("family", "option"), [*itertools.product(FAMILY_OPTIONS, OTHER)])
def test_an_option_that_a_family_does_not_use_is_refused(family, option):
    if option in FAMILY_OPTIONS[family]:
        values = {"branches": ("3x3",), option: OTHER[option]} if option == "rep_stem" else {option: OTHER[option]}
        values |= {"strides": ()} if option == "n_blocks" else {}
        build_student(StudentConfig(family=family, **values))
    else:
        with pytest.raises(ValueError, match=rf"student\.{option}=.* means nothing to student\.family={family}; leave"):
            StudentConfig(family=family, **{option: OTHER[option]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "resnet"}, r"student\.family='resnet': expected one of mobile, tf_sepnet"),
        ({"activation": "tanh"}, r"student\.activation='tanh': expected one of relu, relu6, hardswish, silu, gelu"),
        ({"stage_branches": ("3x3", "plain")}, r"expected one entry for each of the 3 stages of n_blocks=\(3, 2, 1\)"),
        ({"stage_branches": ("3x3", "5x5", "plain")}, r"'5x5' is neither plain nor like 3x3\+1x1: unknown RepConv"),
        ({"stage_branches": ("3x3", "", "plain")}, r"student\.stage_branches: '' is neither plain nor like 3x3"),
        ({"stage_branches": ("3x3+3x3", "plain", "plain")}, r"\['3x3', '3x3'\]"),
        ({"stage_branches": ("plain", "identity", "plain")}, "'identity' alone cannot learn"),
        ({"stage_branches": MIXED, "rep_stem": True}, r"rep_stem=True needs student\.branches"),
        ({"family": "tf_sepnet", "base_channels": 0}, r"student\.base_channels=0: expected a number above 0"),
    ],
)
def test_student_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        StudentConfig(**values)


@pytest.mark.slow
def test_families_and_stage_branches_by_flag_and_by_space():
    config = compose(flags_to_overrides(["student=tf_sepnet", "--activation=hardswish"]))
    assert config.student == StudentConfig(family="tf_sepnet", base_channels=40, activation="hardswish")
    with pytest.raises(ConfigError, match=r"means nothing to student\.family=tf_sepnet"):
        compose(flags_to_overrides(["--family=tf_sepnet"]))  # on top of Rep-Mobile's branches
    config = compose(flags_to_overrides(["--stage_branches=3x3+1x1,plain,identity+3x3"]))
    assert config.student.stage_branches == ("3x3+1x1", "plain", "3x3+identity")
    choices = [["plain", "plain", "3x3+1x1"], list(MIXED)]
    space = search_spaces.space_from_dict(
        {"name": "s", "parameters": {"student.stage_branches": {"choice": choices}}, "base": ["student=cp_mobile"]}
    )
    base = compose(space.base).flat()
    sampled = [TrialConfig.from_flat(base | corner).student for corner in space.corners()]
    assert {student.stage_branches for student in sampled} == {
        ("plain", "plain", "3x3+1x1"),
        ("3x3+1x1+identity", "plain", "3x1+1x3"),
    }


# --- what every family does ---


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(256, 65), (64, 64), (33, 17), (47, 31), (16, 16)])
def test_features_and_logits_have_their_shapes(name, size):
    model, x = seeded(TINY[name]).eval(), features(2, *size)
    maps = model.features(x)
    assert maps.shape[:2] == (2, model.classifier[0].in_channels)
    strides = {"tf_sepnet": (16, 16)}.get(name, (4, 8))
    kept = [-(-n // 4) // (s // 4) if name == "tf_sepnet" else -(-n // s) for n, s in zip(size, strides, strict=True)]
    assert list(maps.shape[2:]) == kept
    assert torch.equal(model(x), model.classifier(maps).mean(dim=(2, 3)))
    assert model(x).shape == (2, 10)
    assert build_student(TINY[name], n_classes=3)(x).shape == (2, 3)


STAGES = [c for k in (1, 2, 5) for c in itertools.combinations(("3x3", "3x1", "1x3", "1x1", "identity"), k)]
SETS = ["plain", *("+".join(s) for s in STAGES if s != ("identity",))]


@pytest.mark.parametrize("name", [*TINY, *SETS])
def test_a_fused_student_equals_its_training_form(name):
    config = TINY.get(name) or dataclasses.replace(TINY["rep_mobile"], stage_branches=(name, "1x1+identity", "3x3"))
    model = trained(seeded(config))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        network, x = copy.deepcopy(model).to(dtype), features(seed=5).to(dtype)
        fused = network.fuse()
        assert fused.fused
        assert fused.widths == network.widths
        assert not any(isinstance(m, RepConv2d) for m in fused.modules())
        slow, fast = logits_of(network, x), logits_of(fused, x)
        assert (slow - fast).abs().max() <= bound * slow.abs().max()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # a copy was fused
    fused = model.fuse()
    assert torch.equal(logits_of(fused.rebuilt(), features()), logits_of(fused, features()))


def test_each_stage_has_its_own_branches():
    blocks = list(seeded(TINY["rep_mobile"]).blocks)
    found = [list(b.depthwise[0].branches) if isinstance(b.depthwise[0], RepConv2d) else None for b in blocks]  # type: ignore[index,union-attr]
    # b2 is strided, and its stage's identity left out
    assert found == [["3x3", "1x1", "identity"], ["3x3", "1x1"], None, ["3x1", "1x3"]]
    everywhere = StudentConfig(branches=("3x3", "1x1"))
    a, b = seeded(everywhere), seeded(dataclasses.replace(everywhere, branches=(), stage_branches=("1x1+3x3",) * 3))
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow
def test_activations_change_nothing_but_themselves(activation):
    assert prune(seeded(dataclasses.replace(TINY["cp_mobile"], activation=activation)), 0.3).widths.stem == (2, 5)
    for name in ("cp_mobile", "tf_sepnet"):
        relu, other = (seeded(dataclasses.replace(TINY[name], activation=a)) for a in ("relu", activation))
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in relu.state_dict().items())
        found = {type(m) for m in other.modules() if isinstance(m, tuple(ACTIVATIONS.values()))}
        assert found == {ACTIVATIONS[activation]}
    assert get_deployed_size(other, 64, 33) == get_deployed_size(build_student(TINY["tf_sepnet"]), 64, 33)
    assert set(ACTIVATIONS.values()) <= set(nessi._FREE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cp_mobile", "rep_mobile", "tf_sepnet"])
def test_a_trial_of_its_own_by_hand(name, tmp_path):
    """Train, prune twice with training between, fuse, round to half, measure, save, load: bit for bit."""
    model = trained(seeded(TINY[name]))
    expected = schedule_sizes(model.config, PruneConfig((0.3, 0.3)), 64, 33)
    for step, size in enumerate(expected):
        if step:
            model = trained(prune(model, 0.3))
        shipped = deploy(model, "fp16")
        assert get_torch_size(shipped, (1, 1, 64, 33)) == get_deployed_size(model, 64, 33) == size
        assert all(torch.equal(p, p.half().float()) for p in shipped.parameters())
        for kind, network in (("training", model), ("shipped", shipped)):
            save_student(tmp_path / kind, network, {"step": step})
            loaded, extra = load_student(tmp_path / kind, expected=model.config)
            assert extra == {"step": step}
            assert (loaded.widths, loaded.fused) == (network.widths, kind == "shipped")
            assert torch.equal(logits_of(loaded, features()), logits_of(network.rebuilt(), features()))
        assert json.loads((tmp_path / "shipped" / "student.json").read_text())["family"] == name
    assert expected[0][0] > expected[1][0] > expected[2][0]


def test_checkpoints_of_before_the_families_load(tmp_path):
    """Format 1 as it was: the shown name as family, and none of the later options."""
    config = StudentConfig(**SMALL, branches=("3x3", "1x1"))
    model = trained(seeded(config))
    save_student(tmp_path / "c", model, {})
    path = tmp_path / "c" / "student.json"
    described = json.loads(path.read_text())
    assert (described["format"], described["family"]) == (1, "rep_mobile")
    for later in ("family", "activation", "stage_branches"):
        del described["config"][later]
    path.write_text(json.dumps(described))
    loaded, _ = load_student(tmp_path / "c", expected=config)
    assert loaded.config == config
    assert torch.equal(logits_of(loaded, features()), logits_of(model, features()))
    described["config"]["family"] = "squeezenet"
    path.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"student\.family='squeezenet': expected one of"):
        load_student(tmp_path / "c")


# --- TF-SepNet against its paper ---


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
    """(MACs, parameters) of TF-SepNet-c, from table 1 and the text of section 2."""
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
        for before, after in itertools.pairwise(paths):  # each takes half of either path of the module before
            for a, b in itertools.product((0, 1), repeat=2):
                taken = sum(x == a and y == b for x, y in zip(before, after, strict=True))
                assert abs(taken - width / 4) <= n_modules


@torch.no_grad()
def test_sepconvs_are_the_papers_equations():
    """Equations (1) to (4) written out channel by channel: d, mean, p, and the broadcast sum."""
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
        got = torch.cat(module(list(x.split(sizes, dim=1))), dim=1)
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
        assert torch.allclose(got, expected, atol=1e-6)


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
    """Every channel that stays has its own weights in every layer that it passes, and its paths."""
    model: Any = trained(seeded(StudentConfig(family="tf_sepnet", base_channels=20)))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)  # each channel is known by its own

    def kept(old: Any, new: Any) -> list[int]:
        """Channels of a convolution and its BN that stay, told by the scales of the BN."""
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
        with pytest.raises(ValueError, match="do not fit a tf_sepnet: expected 20 parts in out, no expand"):
            build_student(model.config, widths=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_tf_sepnet_is_within_the_limits_of_both_profiles(name):
    for n_mels in (128, 256):
        assert Limits().allow(*get_deployed_size(build_student(SHIPPED[name]), n_mels, 65))


@pytest.mark.slow
def test_golden_pruned_tf_sepnet():
    sizes = schedule_sizes(SHIPPED["tf_sepnet"], PruneConfig((0.3,)), 256, 65)
    assert sizes == [(7_320_040, 53_370), (3_976_708, 26_944)]
