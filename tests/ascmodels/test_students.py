"""Student families: the catalogue, options and refusals, what every family does."""

import copy
import dataclasses
import itertools
import json

import pytest
import torch

import search_spaces
from ascmodels import nessi
from ascmodels.checkpoint import CheckpointError, load_student, save_student
from ascmodels.compress.plan import plan_sizes
from ascmodels.compress.pruning import prune
from ascmodels.config.prune import PruneConfig
from ascmodels.config.student import FAMILY_OPTIONS
from ascmodels.nessi import get_deployed_size, get_torch_size
from ascmodels.students import FAMILIES, StudentConfig, build_student
from ascmodels.students.base import ACTIVATIONS
from ascmodels.students.cp_mobile import MobileStudent
from ascmodels.students.repconv import RepConv2d
from ascmodels.students.tf_sepnet import TFSepNet
from tests.support.ascmodels.students import MIXED, THREE_STAGES, TINY, features, logits_of, seeded, train_a_little
from tests.support.marks import rest_slow
from trainables.config.compose import compose
from trainables.config.flags import flags_to_overrides
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.deployment import deploy

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
        with pytest.raises(ValueError, match=rf"student\.{option}=.*student\.family={family}: expected"):
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
        ({"family": "tf_sepnet", "base_channels": 0}, r"student\.base_channels=0: expected a finite number above 0"),
    ],
)
def test_student_config_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        StudentConfig(**values)


@pytest.mark.slow
def test_families_and_stage_branches_by_flag_and_by_space():
    config = compose(flags_to_overrides(["student=tf_sepnet", "--activation=hardswish"]))
    assert config.student == StudentConfig(family="tf_sepnet", base_channels=40, activation="hardswish")
    with pytest.raises(ConfigError, match=r"student\.branches=.*student\.family=tf_sepnet"):
        compose(flags_to_overrides(["--family=tf_sepnet"]))  # the default student, Rep-Mobile, sets branches
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


@pytest.mark.parametrize("name", rest_slow([*TINY, *SETS], len(TINY) + 3))
def test_a_fused_student_equals_its_training_form(name):
    config = TINY.get(name) or dataclasses.replace(TINY["rep_mobile"], stage_branches=(name, "1x1+identity", "3x3"))
    model = train_a_little(seeded(config), features(frames=33))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        network, x = copy.deepcopy(model).to(dtype), features(frames=33, seed=5).to(dtype)
        fused = network.fuse()
        assert fused.fused
        assert fused.widths == network.widths
        assert not any(isinstance(m, RepConv2d) for m in fused.modules())
        slow, fast = logits_of(network, x), logits_of(fused, x)
        assert (slow - fast).abs().max() <= bound * slow.abs().max()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # `fuse` returns a copy
    fused = model.fuse()
    assert torch.equal(logits_of(fused.rebuilt(), features(frames=33)), logits_of(fused, features(frames=33)))


def test_each_stage_has_its_own_branches():
    blocks = list(seeded(TINY["rep_mobile"]).blocks)
    found = [list(b.depthwise[0].branches) if isinstance(b.depthwise[0], RepConv2d) else None for b in blocks]  # type: ignore[index,union-attr]
    # b2 is strided, so it has no identity branch
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
    """Train, prune twice with training in between, fuse, round to half precision, save: loading gives equal bits."""
    model = train_a_little(seeded(TINY[name]), features(frames=33))
    expected = plan_sizes(model.config, PruneConfig((0.3, 0.3)), 64, 33)
    for step, size in enumerate(expected):
        if step:
            model = train_a_little(prune(model, 0.3), features(frames=33))
        shipped = deploy(model, "fp16")
        assert get_torch_size(shipped, (1, 1, 64, 33)) == get_deployed_size(model, 64, 33) == size
        assert all(torch.equal(p, p.half().float()) for p in shipped.parameters())
        for kind, network in (("training", model), ("shipped", shipped)):
            save_student(tmp_path / kind, network, {"step": step})
            loaded, extra = load_student(tmp_path / kind, expected=model.config)
            assert extra == {"step": step}
            assert (loaded.widths, loaded.fused) == (network.widths, kind == "shipped")
            assert torch.equal(
                logits_of(loaded, features(frames=33)), logits_of(network.rebuilt(), features(frames=33))
            )
        assert json.loads((tmp_path / "shipped" / "student.json").read_text())["family"] == name
    assert expected[0][0] > expected[1][0] > expected[2][0]


def test_checkpoints_of_before_the_families_load(tmp_path):
    """Checkpoints of format 1 hold the displayed name as `family`, and none of the later options."""
    config = StudentConfig(**THREE_STAGES, branches=("3x3", "1x1"))
    model = train_a_little(seeded(config), features(frames=33))
    save_student(tmp_path / "c", model, {})
    path = tmp_path / "c" / "student.json"
    described = json.loads(path.read_text())
    assert (described["format"], described["family"]) == (1, "rep_mobile")
    for later in ("family", "activation", "stage_branches"):
        del described["config"][later]
    path.write_text(json.dumps(described))
    loaded, _ = load_student(tmp_path / "c", expected=config)
    assert loaded.config == config
    assert torch.equal(logits_of(loaded, features(frames=33)), logits_of(model, features(frames=33)))
    described["config"]["family"] = "squeezenet"
    path.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"student\.family='squeezenet': expected one of"):
        load_student(tmp_path / "c")
