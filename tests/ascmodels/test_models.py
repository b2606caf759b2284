"""Students, RepConv fusion, NeSsi counting, pruning, checkpoints, teachers."""

import copy
import itertools
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchinfo
from torch import nn

from ascmodels import nessi
from ascmodels.checkpoint import CheckpointError, load_student, load_tensors, save_student
from ascmodels.compress.groups import CRITERIA, PruningError
from ascmodels.compress.plan import PruneConfig, schedule_sizes
from ascmodels.compress.pruning import prune
from ascmodels.nessi import Limits, UncountableError, get_deployed_size, get_torch_size, size_bytes
from ascmodels.students import Student, StudentConfig, Widths, build_student
from ascmodels.students.base import make_divisible
from ascmodels.students.cp_mobile import Block
from ascmodels.students.repconv import BRANCHES, KERNELS, RepConv2d
from ascmodels.teachers import TeacherModelConfig, build_teacher, load_teacher, save_teacher
from ascmodels.teachers.ast import fit_frames
from tests.support import workers

ALL = ("3x3", "3x1", "1x3", "1x1", "identity")
FOUR = ALL[:4]
GRN_STRIDES = ("b2:2x2", "b4:2x1")
PAPER = {"channels_multiplier": 2.3, "expansion_rate": 3.0, "grn": True, "strides": GRN_STRIDES}
SUBSETS = [c for k in range(1, 6) for c in itertools.combinations(BRANCHES, k)]
SMALL = {"base_channels": 8, "n_blocks": (2, 1), "strides": ("b2:1x2",)}


def train_a_little(model: nn.Module, inputs: torch.Tensor, steps: int = 2, rate: float = 0.05) -> nn.Module:
    """Real steps: weights, BN gammas and betas, and running statistics move away from where they began."""
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    gen = torch.Generator().manual_seed(3)
    model.train()
    for _ in range(steps):
        output = model(inputs * 2 + 0.5)
        loss = (output - torch.randn(output.shape, generator=gen, dtype=output.dtype)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def seeded(config: StudentConfig, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return build_student(config)


@torch.no_grad()
def logits_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.eval()(x)


def features(n: int = 4, bins: int = 32, frames: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 1, bins, frames, generator=torch.Generator().manual_seed(seed))


# --- ascmodels/students/__init__.py ---


def layer_costs(model: nn.Module, size: tuple[int, ...]) -> list[tuple[int, int]]:
    """(params, MACs) of every convolution with the BN after it, in order, as torchinfo counts."""
    rows = []
    for layer in torchinfo.summary(model, input_size=size, verbose=0).summary_list:
        if isinstance(layer.module, nn.Conv2d):
            rows.append((layer.trainable_params, layer.macs))
        elif isinstance(layer.module, nn.BatchNorm2d):
            params, macs = rows.pop()
            rows.append((params + layer.trainable_params, macs + layer.macs))
    return rows


def test_golden_cp_mobile_layer_by_layer():
    rows = layer_costs(build_student(StudentConfig()), (1, 1, 256, 65))
    assert len(rows) == 2 + 6 * 3 + 1
    assert sum(params for params, _ in rows) == 61_148
    assert sum(macs for _, macs in rows) == 29_419_156
    golden = {
        0: (88, 304_144),  # in_c[0]
        1: (2_368, 2_506_816),  # in_c[1]
        2: (2_176, 2_228_352),  # b1 pointwise, depthwise, pointwise
        3: (704, 626_816),
        4: (2_112, 2_228_288),
        9: (704, 331_904),  # b3 depthwise
        19: (12_688, 3_594_448),  # b6 last pointwise
        20: (1_040 + 20, 299_520 + 20),  # classifier: the table's convolution, and its BN
    }
    assert {i: rows[i] for i in golden} == golden


@pytest.mark.parametrize(
    ("config", "frames", "fuse", "golden"),
    [
        ({}, 65, False, (29_419_156, 61_148)),
        (PAPER, 63, False, (28_893_280, 126_952)),
        (PAPER | {"branches": FOUR}, 63, True, (29_106_688, 126_136)),
    ],
)
def test_golden_totals(config, frames, fuse, golden):
    model = build_student(StudentConfig(**config))
    assert get_torch_size(model.fuse() if fuse else model, (1, 1, 256, frames)) == golden
    assert get_deployed_size(model, 256, frames) == golden


def test_golden_training_form_and_the_frame_count_trap():
    assert sum(p.numel() for p in build_student(StudentConfig(**PAPER, branches=FOUR)).parameters()) == 137_560
    limits, model = Limits(precision="int8"), build_student(StudentConfig(**PAPER))
    macs = {frames: get_deployed_size(model, 256, frames)[0] for frames in (63, 64, 65)}
    assert macs[65] == pytest.approx(31.68e6, abs=5e3)
    assert [limits.allow(m, 126_952) for m in macs.values()] == [True, True, False]


def nearest_eight(channels: float) -> int:
    """make_divisible again: round half up to a multiple of 8, one more where that loses over 10 %."""
    rounded = max(8, 8 * int((channels + 4) // 8))
    return rounded + 8 * (rounded < 0.9 * channels)


def closed_form(config: StudentConfig) -> int:
    """Parameters of CP-Mobile or the training form of Rep-Mobile, from the formula."""
    base = nearest_eight(config.base_channels)
    stages = [nearest_eight(base * config.channels_multiplier**i) for i in range(len(config.n_blocks))]
    strides = {}
    for entry in config.strides:
        name, _, stride = entry.partition(":")
        strides[name] = tuple(map(int, stride.split("x")))

    def spatial(inputs: int, outputs: int, groups: int, same: bool, branches: tuple[str, ...]) -> int:
        total = 0
        for branch in branches or ("3x3",):
            if branch == "identity":
                total += 2 * outputs if same else 0
            else:
                height, width = map(int, branch.split("x"))
                total += height * width * inputs * outputs // groups + 2 * outputs
        return total

    stem_branches = config.branches if config.rep_stem else ()
    total = spatial(1, base // 4, 1, False, stem_branches) + spatial(base // 4, base, 1, False, stem_branches)
    current, index = base, 0
    for channels, n_blocks in zip(stages, config.n_blocks, strict=True):
        for _ in range(n_blocks):
            index += 1
            inner = nearest_eight(current * config.expansion_rate)
            same = strides.get(f"b{index}", (1, 1)) == (1, 1)
            total += (current + 2) * inner + spatial(inner, inner, inner, same, config.branches)
            total += (inner + 2) * channels + 2 * config.grn
            current = channels
    return total + 10 * current + 20


@pytest.mark.parametrize("seed", range(20))
def test_parameter_count_equals_the_formula(seed):
    rng = np.random.default_rng(seed)
    n_blocks = tuple(int(n) for n in rng.integers(1, 4, size=rng.integers(1, 4)))
    names = [f"b{i + 1}" for i in range(sum(n_blocks)) if rng.random() < 0.5]
    branches = SUBSETS[rng.integers(len(SUBSETS))] if seed % 3 else ()
    if not set(branches) - {"identity"}:
        branches = ()
    elif names and set(branches) == {"identity"}:
        names = []
    config = StudentConfig(
        base_channels=int(rng.integers(1, 48)),
        channels_multiplier=float(rng.uniform(1, 2.5)),
        expansion_rate=float(rng.uniform(1, 3.5)),
        n_blocks=n_blocks,
        strides=tuple(f"{name}:{rng.integers(1, 3)}x{rng.integers(1, 3)}" for name in names),
        grn=bool(rng.random() < 0.5),
        branches=branches,
        rep_stem=bool(branches) and seed % 2 == 0,
    )
    model = build_student(config)
    assert sum(p.numel() for p in model.parameters()) == closed_form(config)
    assert logits_of(model, features()).shape == (4, 10)
    assert config.name == ("rep_mobile" if branches else "cp_mobile")


def test_make_divisible_in_closed_form():
    for channels in np.linspace(0.5, 400, 1999):
        got = make_divisible(float(channels))
        assert got == nearest_eight(float(channels))
        assert got % 8 == 0
        assert got >= 0.9 * channels


def test_every_block_has_the_stride_and_the_shortcut_it_should():
    model = build_student(StudentConfig())
    blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
    assert [type(b.shortcut).__name__ for b in blocks] == [
        *("Identity", "Identity", "AvgPool2d"),  # 32 -> 32, the third strided in time
        *("NoneType", "Identity", "NoneType"),  # 32 -> 56, 56 -> 56, 56 -> 104
    ]
    x = features(1, 64, 40)
    for name, size in [("stem", (16, 10)), ("b3", (16, 5)), ("b4", (8, 5))]:
        seen = []
        layer = model.stem if name == "stem" else model.blocks.get_submodule(name)
        handle = layer.register_forward_hook(lambda *a, seen=seen: seen.append(tuple(a[-1].shape[2:])))
        logits_of(model, x)
        handle.remove()
        assert seen == [size], name


def test_weights_follow_the_seed():
    a, b, c = (seeded(StudentConfig(**SMALL), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_channels": 0}, r"student\.base_channels=0"),
        ({"expansion_rate": -1.0}, r"student\.expansion_rate=-1"),
        ({"n_blocks": ()}, r"student\.n_blocks=\(\)"),
        ({"n_blocks": (2, 0)}, r"student\.n_blocks=\(2, 0\)"),
        ({"strides": ("b7:2x2",)}, r"student\.strides .*'b7': .*b1, b2, b3, b4, b5, b6"),
        ({"strides": ("b1",)}, r"student\.strides: 'b1'"),
        ({"strides": ("b1:2x2", "b1:2x1")}, r"student\.strides: 'b1:2x[12]'"),
        ({"branches": ("5x5",)}, "unknown RepConv branch '5x5'; choose from 3x3, 3x1, 1x3, 1x1, identity"),
        ({"branches": ("3x3", "3x3")}, r"\['3x3', '3x3'\]"),
        ({"branches": ("identity",)}, "alone cannot learn"),
        ({"rep_stem": True}, r"rep_stem=True needs student\.branches"),
    ],
)
def test_student_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        StudentConfig(**values)


def test_order_of_branches_and_strides_does_not_matter():
    one = StudentConfig(branches=("identity", "1x1", "3x3"), strides=("b4:2x1", "b3:1x2"))
    two = StudentConfig(branches=("3x3", "identity", "1x1"), strides=("b3:1x2", "b4:2x1"))
    assert one == two
    assert one.branches == ("3x3", "1x1", "identity")


# --- ascmodels/students/repconv.py ---


def bounding_box(names: list[str]) -> tuple[int, int]:
    sizes = [(1, 1) if n == "identity" else tuple(int(v) for v in n.split("x")) for n in names]
    return max(s[0] for s in sizes), max(s[1] for s in sizes)


@pytest.mark.parametrize("branches", SUBSETS, ids="+".join)
def test_fusion_is_exact_for_every_branch_set(branches):
    """After real training steps, depthwise and dense, strided and not, in single and double precision."""
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


@pytest.mark.parametrize("branches", [b for b in SUBSETS if b != ("identity",)], ids="+".join)
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
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # a copy was fused


def test_identity_needs_equal_shapes_and_is_left_out_elsewhere():
    assert list(RepConv2d(4, 4, ALL).branches) == list(ALL)
    assert list(RepConv2d(4, 4, ALL, (2, 1)).branches) == list(FOUR)
    assert list(RepConv2d(4, 8, ALL).branches) == list(FOUR)


def test_a_branch_sum_by_hand():
    """1x1 with weight 2 and BN at rest, plus identity: 3 x / sqrt(1 + eps)."""
    block = RepConv2d(1, 1, ["1x1", "identity"]).eval()
    nn.init.constant_(block.branches["1x1"][0].weight, 2.0)  # type: ignore[index]
    x = torch.full((1, 1, 2, 2), 5.0)
    assert torch.allclose(block(x), torch.full_like(x, 15 / (1 + 1e-5) ** 0.5))
    assert torch.allclose(block.fuse()(x), torch.full_like(x, 15 / (1 + 1e-5) ** 0.5))


# --- ascmodels/nessi.py ---


class Hidden(nn.Module):
    """A convolution, then work that no layer owns up to."""

    def __init__(self, work):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.work = work

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.work(self.conv(x))


@pytest.mark.parametrize(
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
        get_torch_size(model, (1, 2, 32, 24))  # it cannot be run at all
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


# --- ascmodels/compress/pruning.py ---


@pytest.mark.slow
def test_golden_pruned_baseline():
    model = build_student(StudentConfig())
    pruned = prune(model, 0.3)
    assert get_torch_size(pruned, (1, 1, 256, 65)) == (14_563_290, 31_101)
    assert get_torch_size(prune(model, 0.3, round_to=8), (1, 1, 256, 65)) == (11_733_940, 25_740)
    sizes = schedule_sizes(StudentConfig(), PruneConfig((0.3, 0.3, 0.3)), 256, 65)
    assert [params for _, params in sizes] == [61_148, 31_101, 15_912, 8_334]
    assert sizes[0] == (29_419_156, 61_148)
    assert sizes[1] == (14_563_290, 31_101)


def consistent(model: Student) -> None:
    """Widths of neighbours agree by the shapes of the tensors, and shortcuts join equal widths."""
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
    expected = schedule_sizes(config, PruneConfig(ratios, round_to=round_to), 32, 24)
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
    """The weights that stay are those of the heaviest channels, untouched: l2 of the group, checked by hand."""
    model = seeded(StudentConfig(base_channels=16, n_blocks=(1,), strides=()))
    with torch.no_grad():  # channels 3 and 7 of the first block's inside are made to matter least
        block = model.blocks[0]
        for layer in (block.expand[0], block.depthwise[0]):  # type: ignore[union-attr,index]
            layer.weight[[3, 7]] *= 1e-3  # type: ignore[union-attr,index]
        block.project[0].weight[:, [3, 7]] *= 1e-3  # type: ignore[union-attr,index]
        for norm in (block.expand[1], block.depthwise[1]):  # type: ignore[union-attr,index]
            norm.weight[[3, 7]] *= 1e-3  # type: ignore[union-attr,index]
    inner = model.widths.expand[0]
    pruned = prune(model, 2 / inner, "l2")
    keep = [i for i in range(inner) if i not in (3, 7)]
    got = pruned.blocks[0].depthwise[0].weight  # type: ignore[union-attr,index]
    assert torch.equal(got, model.blocks[0].depthwise[0].weight[keep])  # type: ignore[union-attr,index]


def test_pruning_adds_no_shortcut_where_widths_become_equal(tmp_path):
    """8 -> 16 channels becomes 8 -> 8; the block had no shortcut and gets none, from a checkpoint neither."""
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
        schedule_sizes(model.config, PruneConfig((0.2, 0.97)), 32, 24)
    eights = prune(model, 0.05, round_to=8)  # what is kept is rounded down to multiples of 8
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


# --- ascmodels/checkpoint.py ---


@pytest.fixture(scope="module")
def networks() -> dict[str, Student]:
    """A trained training form, its pruned form, and both fused."""
    model = train_a_little(seeded(StudentConfig(**SMALL, branches=ALL, rep_stem=True, grn=True)), features())
    assert isinstance(model, Student)
    pruned = train_a_little(prune(model, 0.3, "fpgm"), features())
    assert isinstance(pruned, Student)
    plain = train_a_little(seeded(StudentConfig(**SMALL)), features())
    assert isinstance(plain, Student)
    return {
        "plain": plain,
        "dense": model,
        "pruned": pruned,
        "fused": model.fuse(),
        "pruned and fused": pruned.fuse(),
    }


@pytest.mark.slow
def test_round_trips_here_and_in_a_fresh_process_are_bit_equal(networks, tmp_path, fresh_processes):
    random_state = torch.get_rng_state()
    x, arguments = features(), []
    torch.save(x, tmp_path / "inputs.pt")
    extra = {"classes": ["a", "b"], "figures": {"accuracy": 0.1}}
    for name, model in networks.items():
        folder = tmp_path / "deep" / name
        save_student(folder, model, extra)
        loaded, read = load_student(folder, expected=model.config)
        assert read == extra
        assert (loaded.widths, loaded.fused, loaded.config) == (model.widths, model.fused, model.config)
        assert not loaded.training
        assert list(loaded.state_dict()) == list(model.state_dict())
        assert torch.equal(logits_of(loaded, x), logits_of(model, x))
        assert sorted(p.name for p in folder.iterdir()) == ["student.json", "weights.safetensors"]
        arguments.append((folder, tmp_path / "inputs.pt", tmp_path / f"{name}.pt"))
    assert torch.equal(random_state, torch.get_rng_state())
    chosen = [arguments[2], arguments[4]]
    assert fresh_processes(workers.write_logits, *chosen) == [0, 0]
    for (_, _, result), name in zip(chosen, ("pruned", "pruned and fused"), strict=True):
        assert torch.equal(torch.load(result, weights_only=True), logits_of(networks[name], x))
    assert len({p.name for p in (tmp_path / "deep").iterdir()}) == len(networks)  # no leftovers beside


def test_another_architecture_is_refused_by_the_field(networks, tmp_path):
    save_student(tmp_path / "c", networks["pruned"], {})
    expected = replace(networks["pruned"].config, base_channels=16, grn=False)
    with pytest.raises(CheckpointError) as error:
        load_student(tmp_path / "c", expected)
    assert "base_channels: 8 in the checkpoint, 16 expected" in str(error.value)
    assert "grn: True in the checkpoint, False expected" in str(error.value)
    assert "rep_stem" not in str(error.value)
    assert str(tmp_path / "c") in str(error.value)


def test_a_description_that_does_not_fit_the_weights_is_refused(networks, tmp_path):
    save_student(tmp_path / "a", networks["dense"], {})
    save_student(tmp_path / "b", networks["pruned"], {})
    (tmp_path / "b" / "weights.safetensors").replace(tmp_path / "a" / "weights.safetensors")
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_student(tmp_path / "a")


@pytest.mark.parametrize(
    ("file", "keep", "message"),
    [
        ("weights.safetensors", 0.5, "is damaged"),
        ("weights.safetensors", 0.0, "is damaged"),
        ("weights.safetensors", None, "no student checkpoint in .*weights.safetensors"),
        ("student.json", 0.5, "is damaged"),
        ("student.json", 0.0, "is damaged"),
        ("student.json", None, "no student checkpoint in .*student.json"),
    ],
)
def test_truncated_and_missing_files_are_named(networks, tmp_path, file, keep, message):
    save_student(tmp_path / "c", networks["plain"], {})
    path = tmp_path / "c" / file
    content = path.read_bytes()
    path.unlink() if keep is None else path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match=message):
        load_student(tmp_path / "c")
    with pytest.raises(CheckpointError, match="no student checkpoint"):
        load_student(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99: .* 1,"),
        ({"widths": None}, "lacks or misspells"),
        ({"config": {"colour": "red"}}, "colour"),
        ({"config": {"branches": ["9x9"]}}, "9x9"),
        ({"widths": {"stem": [2, 8], "expand": [8], "out": [8]}}, "1 blocks"),
        ({"extra": ...}, "extra"),
        ({"fused": ...}, "fused"),
    ],
)
def test_a_wrong_description_is_a_checkpoint_error(networks, tmp_path, change, message):
    save_student(tmp_path / "c", networks["plain"], {})
    path = tmp_path / "c" / "student.json"
    description = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in description.items() if v is not ...}))
    with pytest.raises(CheckpointError, match=message):
        load_student(tmp_path / "c")


def test_a_description_of_something_else_is_a_checkpoint_error(networks, tmp_path):
    save_student(tmp_path / "c", networks["plain"], {})
    for text in ("[]", "3", "null", '"text"', b"\xff\xfe\x00"):
        path = tmp_path / "c" / "student.json"
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
        with pytest.raises(CheckpointError):
            load_student(tmp_path / "c")


def test_a_failed_save_leaves_the_old_checkpoint(networks, tmp_path, monkeypatch):
    folder, x = tmp_path / "c", features()
    save_student(folder, networks["plain"], {"n": 1})
    with pytest.raises(TypeError):
        save_student(folder, networks["pruned"], {"n": object()})  # fails after the weights were written
    loaded, extra = load_student(folder)
    assert extra == {"n": 1}
    assert torch.equal(logits_of(loaded, x), logits_of(networks["plain"], x))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]

    def refuse(*_):
        raise OSError("no space")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no space"):
        save_student(folder, networks["pruned"], {"n": 2})
    monkeypatch.undo()
    assert load_student(folder)[1] == {"n": 1}
    save_student(folder, networks["pruned"], {"n": 2})
    assert load_student(folder)[1] == {"n": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_replacing_never_shows_half_a_checkpoint(networks, tmp_path, monkeypatch):
    """At every call that touches the disk, the folder is whole (the old or the new one) or not there."""
    folder = tmp_path / "c"
    save_student(folder, networks["plain"], {"n": 1})
    seen = []

    def watch(name: str, owner, function):
        def watched(*arguments, **options):
            if folder.exists():
                seen.append((name, load_student(folder)[1]["n"]))
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    for name in ("unlink", "rmdir", "rename", "replace"):
        watch(name, os, getattr(os, name))
    save_student(folder, networks["plain"], {"n": 2})
    monkeypatch.undo()
    assert load_student(folder)[1] == {"n": 2}
    assert {n for _, n in seen} == {1, 2}


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"state": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol=2))
    torch.save({"model": build_student(StudentConfig(**SMALL))}, tmp_path / "module.pt")
    torch.save({"t": torch.arange(5), "n": [1, "a", None]}, tmp_path / "good.pt")
    for name in ("bomb.pt", "bare.pt", "module.pt"):
        with pytest.raises(CheckpointError, match=rf"{name} is damaged or holds more than tensors"):
            load_tensors(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    good = load_tensors(tmp_path / "good.pt")
    assert torch.equal(good["t"], torch.arange(5))
    assert good["n"] == [1, "a", None]
    content = (tmp_path / "good.pt").read_bytes()
    (tmp_path / "good.pt").write_bytes(content[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(tmp_path / "good.pt")
    with pytest.raises(CheckpointError, match=r"gone\.pt is missing"):
        load_tensors(tmp_path / "gone.pt")
    torch.load(tmp_path / "bomb.pt", weights_only=False)  # the bomb does work
    assert (tmp_path / "exploded").exists()


# --- ascmodels/teachers/__init__.py ---

TINY = TeacherModelConfig(hidden_size=16, layers=2, heads=2, patch_size=4, stride=4)
CLASSES = ("bus", "tram", "park")


@pytest.fixture
def offline(monkeypatch):
    """Nothing may wait for the network."""
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.slow
def test_a_tiny_transformer_is_one_over_patches():
    teacher = build_teacher(TINY, 3, 16, 24).eval()
    x = features(5, 16, 24)
    assert logits_of(teacher, x).shape == (5, 3)
    embeddings = teacher.network.audio_spectrogram_transformer.embeddings
    assert embeddings.position_embeddings.shape == (1, 2 + 4 * 6, 16)
    torch.manual_seed(0)
    one = build_teacher(TINY, 3, 16, 24)
    torch.manual_seed(0)
    two = build_teacher(TINY, 3, 16, 24)
    assert torch.equal(logits_of(one, x), logits_of(two, x))
    with pytest.raises(ValueError, match=r"hidden_size=10 is not a multiple of heads=4"):
        TeacherModelConfig(hidden_size=10)
    with pytest.raises(ValueError, match=r"teacher\.model\.stride=0"):
        TeacherModelConfig(stride=0)


@pytest.mark.slow
def test_a_teacher_sees_time_and_frequency_the_right_way_round():
    """Its first patch embedding is a convolution over [F, T] of our features: moving a patch in T moves its token."""
    teacher = build_teacher(TINY, 3, 16, 24).eval()
    x = torch.zeros(1, 1, 16, 24)
    x[:, :, 4:8, 20:24] = torch.randn(4, 4)
    patches = teacher.network.audio_spectrogram_transformer.embeddings.patch_embeddings
    seen = []
    handle = patches.register_forward_hook(lambda *a: seen.append(a[-1]))
    logits_of(teacher, x)
    handle.remove()
    (tokens,) = seen  # [1, 4 * 6, hidden], frequency-major
    moved = (tokens - tokens[:, :1]).abs().amax(dim=2)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [1 * 6 + 5]


@pytest.mark.slow
def test_teacher_round_trip(tmp_path, offline):
    torch.manual_seed(0)
    teacher, x = build_teacher(TINY, 3, 16, 24).eval(), features(5, 16, 24)
    extra = {"classes": list(CLASSES), "frontend": {"n_mels": 16}}
    save_teacher(tmp_path / "t", teacher, extra)
    loaded, read = load_teacher(tmp_path / "t", CLASSES)
    assert read == extra
    assert not loaded.training
    assert torch.equal(logits_of(loaded, x), logits_of(teacher, x))
    with pytest.raises(CheckpointError, match=r"\('bus', 'tram', 'park'\).*\('bus',\)"):
        load_teacher(tmp_path / "t", ("bus",))
    with pytest.raises(CheckpointError, match="no teacher checkpoint in"):
        load_teacher(tmp_path / "nowhere", CLASSES)
    weights = tmp_path / "t" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="no teacher checkpoint in"):
        load_teacher(tmp_path / "t", CLASSES)


def test_pretrained_from_a_folder_with_the_same_frames(tmp_path, offline):
    torch.manual_seed(0)
    source, x = build_teacher(TINY, 3, 16, 24).eval(), features(5, 16, 24)
    source.network.save_pretrained(tmp_path / "ast")
    config = TeacherModelConfig(pretrained=str(tmp_path / "ast"))
    same = build_teacher(config, 3, 16, 24).eval()
    assert torch.equal(logits_of(same, x), logits_of(source, x))  # the checkpoint's shape, not the config's
    ten = build_teacher(config, 10, 16, 24).eval()  # another head, the same features
    assert logits_of(ten, x).shape == (5, 10)
    spectra = x.squeeze(1).transpose(1, 2)
    with torch.no_grad():
        bodies = [t.network.audio_spectrogram_transformer(spectra).last_hidden_state for t in (source, ten)]
    assert torch.equal(*bodies)


def test_pretrained_with_other_frames_interpolates_positions_in_time(tmp_path, offline):
    torch.manual_seed(0)
    source = build_teacher(TINY, 3, 16, 24)
    old = source.network.audio_spectrogram_transformer.embeddings.position_embeddings
    with torch.no_grad():
        old.normal_()
        old[:, 2:] = (
            torch.arange(6.0).repeat(4)[None, :, None]  # a ramp in time, another in frequency
            + 100 * torch.arange(4.0).repeat_interleave(6)[None, :, None]
            + torch.randn(1, 1, 16)
        )
    source.network.save_pretrained(tmp_path / "ast")
    longer = build_teacher(TeacherModelConfig(pretrained=str(tmp_path / "ast")), 3, 16, 48)
    new = longer.network.audio_spectrogram_transformer.embeddings.position_embeddings
    assert new.shape == (1, 2 + 4 * 12, 16)
    assert torch.equal(new[:, :2], old[:, :2])  # class and distillation tokens stay
    grid = new[0, 2:].detach().reshape(4, 12, 16)
    # bilinear, half-pixel centres: new position i lies at old (i + 0.5) / 2 - 0.5, held at the ends
    ramp = ((torch.arange(12) + 0.5) / 2 - 0.5).clamp(0, 5)
    expected = old[0, 2].detach() + ramp[None, :, None] + 100 * torch.arange(4.0)[:, None, None]
    assert torch.allclose(grid, expected, atol=1e-3)
    assert logits_of(longer, features(2, 16, 48)).shape == (2, 3)
    assert longer.network.config.max_length == 48
    assert fit_frames(longer.network, 48) is longer.network


def test_pretrained_that_does_not_fit_or_is_not_there(tmp_path, offline):
    build_teacher(TINY, 3, 16, 24).network.save_pretrained(tmp_path / "ast")
    with pytest.raises(CheckpointError, match=r"teacher\.frontend\.n_mels=32.*n_mels=16"):
        build_teacher(TeacherModelConfig(pretrained=str(tmp_path / "ast")), 3, 32, 24)
    for name in (str(tmp_path / "gone"), "nobody/no-such-ast"):
        with pytest.raises(CheckpointError, match=r"neither a local folder .* nor a hub name"):
            build_teacher(TeacherModelConfig(pretrained=name), 3, 16, 24)


def test_widths_keep_plain_numbers():
    widths = Widths([2.0, 8], np.array([16, 8]), (8, 8))  # type: ignore[arg-type]
    assert widths == Widths((2, 8), (16, 8), (8, 8))
    assert all(type(v) is int for v in (*widths.stem, *widths.expand, *widths.out))
    assert set(KERNELS) == set(FOUR)
    with pytest.raises(ValueError, match="widths for 2 blocks given to a network of 3 blocks"):
        build_student(StudentConfig(**SMALL), widths=widths)
    assert nessi.BYTES_PER_PARAMETER == {"fp32": 4, "fp16": 2, "int8": 1}
