"""Student networks: golden sizes, parameter counts in closed form, blocks, options that are refused."""

import itertools

import numpy as np
import pytest
import torch
import torchinfo
from torch import nn

from ascmodels.config.limits import BYTES_PER_PARAMETER, Limits
from ascmodels.config.student import BRANCHES
from ascmodels.nessi import get_deployed_size, get_torch_size
from ascmodels.students import StudentConfig, Widths, build_student
from ascmodels.students.base import make_divisible
from ascmodels.students.cp_mobile import Block
from ascmodels.students.repconv import KERNELS
from tests.support.ascmodels.students import FOUR, SMALL, features, logits_of, seeded

GRN_STRIDES = ("b2:2x2", "b4:2x1")
PAPER = {"channels_multiplier": 2.3, "expansion_rate": 3.0, "grn": True, "strides": GRN_STRIDES}
SUBSETS = [c for k in range(1, 6) for c in itertools.combinations(BRANCHES, k)]


def layer_costs(model: nn.Module, size: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return torchinfo's (parameters, MACs) of each convolution with the batch normalisation after it, in order."""
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
    """A second make_divisible: round half up to a multiple of 8, and to the next one if that loses more than 10 %."""
    rounded = max(8, 8 * int((channels + 4) // 8))
    return rounded + 8 * (rounded < 0.9 * channels)


def closed_form(config: StudentConfig) -> int:
    """Return the number of parameters of CP-Mobile, or of Rep-Mobile's training form, by formula."""
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
        rounded = make_divisible(float(channels))
        assert rounded == nearest_eight(float(channels))
        assert rounded % 8 == 0
        assert rounded >= 0.9 * channels


def test_every_block_has_the_stride_and_the_shortcut_it_should():
    model = build_student(StudentConfig())
    blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
    assert [type(b.shortcut).__name__ for b in blocks] == [
        *("Identity", "Identity", "AvgPool2d"),  # 32 -> 32, the third strided in time
        *("NoneType", "Identity", "NoneType"),  # 32 -> 56, 56 -> 56, 56 -> 104
    ]
    x = features(1, 64, 40)
    for name, size in [("stem", (16, 10)), ("b3", (16, 5)), ("b4", (8, 5))]:
        sizes_out = []
        layer = model.stem if name == "stem" else model.blocks.get_submodule(name)
        handle = layer.register_forward_hook(lambda *a, sizes_out=sizes_out: sizes_out.append(tuple(a[-1].shape[2:])))
        logits_of(model, x)
        handle.remove()
        assert sizes_out == [size], name


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
        (
            {"branches": ("5x5",)},
            "student.branches: unknown RepConv branch '5x5'; choose from 3x3, 3x1, 1x3, 1x1, identity",
        ),
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


def test_widths_keep_plain_numbers():
    widths = Widths([2.0, 8], np.array([16, 8]), (8, 8))  # type: ignore[arg-type]
    assert widths == Widths((2, 8), (16, 8), (8, 8))
    assert all(type(v) is int for v in (*widths.stem, *widths.expand, *widths.out))
    assert set(KERNELS) == set(FOUR)
    with pytest.raises(ValueError, match="widths for 2 blocks given to a network of 3 blocks"):
        build_student(StudentConfig(**SMALL), widths=widths)
    assert BYTES_PER_PARAMETER == {"fp32": 4, "fp16": 2, "int8": 1}
