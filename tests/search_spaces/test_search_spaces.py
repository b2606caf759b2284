"""Search spaces: the shipped ones, samples, corners, errors that name key and value."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

import search_spaces
from ascmodels.compress.plan import plan_sizes
from search_spaces import Space, SpaceError, load_space, space_from_dict
from trainables.config.compose import compose
from trainables.config.schema import ConfigError, TrialConfig

SHIPPED = sorted(p.stem for p in search_spaces.FOLDER.glob("*.yaml"))


def in_range(spec: dict[str, Any], value: Any, steps: dict[str, list[int]]) -> bool:
    """Return whether `value` lies in a range, by a second reading of the YAML form."""
    ((kind, limits),) = [(k, v) for k, v in spec.items() if k not in ("step", "min", "item")]
    if kind in ("uniform", "loguniform"):
        at = (value - limits[0]) / spec["step"] if "step" in spec else 0
        return isinstance(value, float) and limits[0] <= value <= limits[1] and abs(at - round(at)) < 1e-9
    if kind == "int":
        return type(value) is int and value in range(limits[0], limits[1] + 1, spec.get("step", 1))
    if kind == "choice":
        return value in limits
    if kind == "subset":
        return value == [m for m in limits if m in value] and len(value) >= spec.get("min", 0)
    low, high = steps[limits]
    return low <= len(value) <= high and all(in_range(spec["item"], v, {}) for v in value)


def test_the_four_spaces_are_shipped():
    assert {"kd", "rep", "prune", "kd_prune", "families"} <= set(SHIPPED)
    for key in ("distill.kd_alpha", "distill.kd_temp", "student.branches", "prune.ratios", "train.lr"):
        assert key in load_space("kd_prune").parameters


@pytest.mark.parametrize("name", ["kd", "kd_prune", "families"])
def test_a_search_can_find_that_distillation_does_not_pay(name):
    """kd_alpha is exactly 1 (no teacher) in some samples."""
    space, study = load_space(name), optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    alphas = {space.sample(study.ask())["distill.kd_alpha"] for _ in range(100)}
    assert alphas == {i / 8 for i in range(9)}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.slow
def test_both_corners_of_a_shipped_space_build_and_are_measurable(name):
    space = load_space(name)
    base = compose(space.base).flat()
    sizes = []
    for corner in space.corners():
        config = TrialConfig.from_flat(base | corner)
        sizes.append(plan_sizes(config.student, config.prune, config.frontend.n_mels, config.frontend.frames))
        assert len(sizes[-1]) == 1 + len(config.prune.ratios)
    lower, upper, *_ = sizes
    assert lower[0] <= upper[0]
    assert all(config.limits.allow(*size) for size in lower)  # the search rejects what exceeds the limits


@pytest.mark.parametrize("name", SHIPPED)
def test_samples_lie_in_range_and_follow_the_seed(name):
    space = load_space(name)
    raw = yaml.safe_load((search_spaces.FOLDER / f"{name}.yaml").read_text())
    steps = {key: spec["int"] for key, spec in (raw.get("auxiliary") or {}).items()}
    base = compose(space.base).flat()

    def sample(seed: int, count: int) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
        return [space.sample(study.ask()) for _ in range(count)]

    values = sample(0, 40)
    for value in values:
        assert set(value) == set(raw["parameters"])
        for key, spec in raw["parameters"].items():
            assert in_range(spec, value[key], steps), (key, value[key])
    for value in values[:3]:
        assert TrialConfig.from_flat(base | value).flat() == base | value
    assert values == sample(0, 40)
    assert values != sample(1, 40)
    for corner in space.corners():
        assert all(in_range(raw["parameters"][key], value, steps) for key, value in corner.items())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_space_survives_json(name):
    space = load_space(name)
    copied = space_from_dict(json.loads(json.dumps(space.as_dict())))
    assert copied == space
    assert copied.as_dict() == space.as_dict()


def test_corners_in_closed_form():
    space = space_from_dict(
        {
            "name": "s",
            "auxiliary": {"steps": {"int": [1, 3]}},
            "parameters": {
                "a": {"uniform": [0, 1], "step": 0.5},
                "b": {"int": [1, 9], "step": 4},
                "c": {"choice": [[1, 2], "x"]},
                "d": {"subset": ["p", "q", "r"], "min": 2},
                "e": {"each": "steps", "item": {"loguniform": [0.5, 2]}},
            },
        }
    )
    lower, upper, choice = space.corners()
    assert choice == lower | {"c": "x"}
    assert lower == {"a": 0.0, "b": 1, "c": [1, 2], "d": ["p", "q"], "e": [0.5]}
    assert upper == {"a": 1.0, "b": 9, "c": "x", "d": ["p", "q", "r"], "e": [2.0, 2.0, 2.0]}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    samples = [space.sample(study.ask()) for _ in range(150)]
    assert {v["a"] for v in samples} == {0.0, 0.5, 1.0}
    assert {v["b"] for v in samples} == {1, 5, 9}
    assert {json.dumps(v["c"]) for v in samples} == {"[1, 2]", '"x"'}
    assert {tuple(v["d"]) for v in samples} == {("p", "q"), ("p", "r"), ("q", "r"), ("p", "q", "r")}
    assert {len(v["e"]) for v in samples} == {1, 2, 3}


GOOD = "parameters:\n  train.lr: {loguniform: [0.001, 0.1]}\n"
EACH = "parameters: {{a: {{each: n, item: {{uniform: [0, 1]}}}}}}\nauxiliary: {{n: {{int: {}}}}}"
# 10^9 times "x" in 300 bytes
BILLION = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)) + GOOD


def test_a_space_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD + "base: [student=cp_mobile]\ndescription: my own\n")
    space = load_space(str(tmp_path / "mine.yaml"))
    assert isinstance(space, Space)
    assert (space.name, space.description, space.base) == ("mine", "my own", ("student=cp_mobile",))
    with pytest.raises(SpaceError, match="unknown search space 'nothing': choose from families, kd, kd_prune, "):
        load_space("nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {a: {uniform: [2, 1]}}", "a: low 2 is above high 1"),
        ("parameters: {a: {int: [9, 1]}}", "a: low 9 is above high 1"),
        ("parameters: {a: {loguniform: [0, 1]}}", "a: a log scale needs low above 0, got 0"),
        ("parameters: {a: {loguniform: [-1, 1]}}", "a log scale needs low above 0"),
        ("parameters: {a: {uniform: [1e-3, 1]}}", r"a: uniform needs \[low, high\].*\['1e-3', 1\]"),
        ("parameters: {a: {uniform: [1]}}", r"needs \[low, high\]"),
        ("parameters: {a: {uniform: [.nan, 1]}}", r"needs \[low, high\]"),
        ("parameters: {a: {uniform: [0, .inf]}}", r"needs \[low, high\]"),
        ("parameters: {a: {int: [1, 2.5]}}", r"int needs \[low, high\]"),
        ("parameters: {a: {int: [1, 9], step: 0}}", "a: step 0 "),
        ("parameters: {a: {uniform: [0, 1], step: 0}}", "a: step 0 "),
        ("parameters: {a: {uniform: [0, 1], step: true}}", "a: step True "),
        ("parameters: {a: {uniform: [0, 1], step: .nan}}", "a: step nan "),
        ("parameters: {a: {uniform: [0, 1], step: 1.0e-400}}", "a: step 0.0 "),
        ("parameters: {a: {uniform: [0, 1], step: 0.3}}", "a: step 0.3 does not lead from 0 to 1"),
        ("parameters: {a: {loguniform: [0.1, 1], step: 0.3}}", "unknown key 'step'"),
        ("parameters: {a: {choice: []}}", "choice needs a list of different"),
        ("parameters: {a: {choice: [1, 1]}}", "choice needs a list of different"),
        ("parameters: {a: {choice: l1}}", "choice needs a list of different"),
        ("parameters: {a: {choice: [2020-01-01]}}", "choice needs a list of different"),
        ("parameters: {a: {subset: [x, y], min: 3}}", "min 3 of 2 members"),
        ("parameters: {a: {subset: [x, y], min: many}}", "min 'many' of 2 members"),
        ("parameters: {a: {subset: [x, y], min: 1.0}}", "min 1.0 of 2 members"),
        ("parameters: {a: {each: n, item: {uniform: [0, 1]}}}", "a: the key `each` is 'n'"),
        ("parameters: {a: {each: [n], item: {uniform: [0, 1]}}}", r"a: the key `each` is \['n'\]"),
        ("parameters: {a: {each: n}}\nauxiliary: {n: {int: [1, 2]}}", r"a\[item\]: expected one of"),
        ("parameters: {a: {each: n, item: {uniform: [1, 0]}}}\nauxiliary: {n: {int: [1, 2]}}", r"a\[item\]: low 1"),
        (GOOD + "auxiliary: {n: {each: m, item: {uniform: [0, 1]}}, m: {int: [1, 2]}}", "n: the key `each` is 'm'"),
        ("parameters: {a: {normal: [0, 1]}}", "a: expected one of uniform, loguniform, int, choice, subset, each"),
        ("parameters: {a: 3}", "a: expected one of"),
        ("parameters: {a: {uniform: [0, 1], int: [0, 1]}}", "a: expected one of"),
        ("parameters: {a: {uniform: [0, 1], log: true}}", "unknown key 'log' in a range of kind uniform"),
        ("parameters: {a: {uniform: [0, 1], 3: 4, x: 5}}", "unknown key '3'"),
        ("parameters: {3: {uniform: [0, 1]}}", "3 is not the name of a configuration key"),
        ("parameters: {}", "must map at least one configuration key"),
        ("parameters: [a]", "must map at least one configuration key"),
        (GOOD + "auxiliary: [n]", "must map at least one"),
        ("paramters: {}", "unknown key 'paramters'; did you mean parameters"),
        (GOOD + "3: 4", "unknown key '3'"),
        (GOOD + "base: student=cp_mobile", r"`base` must be a list of overrides"),
        (GOOD + "base: 3", r"`base` must be a list of overrides"),
        ("", "expected a mapping"),
        ("- a", "expected a mapping"),
        ("a: b: c", "is not YAML"),
        ("parameters: {a: {uniform: [0, 1]}", "is not YAML"),
        (b"\xff\xfe\x00\x81", "is not YAML"),
        ("parameters: {a: {int: [1, 9], step: true}}", "a: step True "),
        ("parameters: {a: {choice: [.nan, 1]}}", "choice needs a list of different"),
        (GOOD + "auxiliary: {n: {int: [1, 2]}}", r"auxiliary\.n="),
        (GOOD + "name: other", "contains .* expected a mapping with the keys"),
        ("parameters: {a: {uniform: [0, 1]}, a: {uniform: [0, 2]}}", "'a' twice"),
        ("parameters: {a: {uniform: [0, 1], uniform: [0, 2]}}", "'uniform' twice"),
        (GOOD + GOOD, "'parameters' twice"),
        ("parameters: {a: {uniform: [0.5, 0.5]}}", "a=.* two equal limits"),
        ("parameters: {a: {int: [3, 3]}}", "a=.* two equal limits"),
        (GOOD + "base: [train.epochs=2, train.epochs=3]", r"`base` sets train\.epochs twice"),
        (EACH.format("[-1, 2]"), r"auxiliary\.n=.*negative length"),
        (EACH.format("[1, 1000000000]"), "a: the list may have 1000000000 entries"),
        (EACH.format("[1, 0x" + "f" * 8000 + "]"), "integer of more than 64 bits"),
        (f"parameters: {{a: {{uniform: [0, {'9' * 400}]}}}}", "integer of more than 64 bits"),
        (f"parameters: {{a: {{uniform: [0, {'9' * 5000}]}}}}", "is not YAML"),
        ("parameters: {a: {int: [0, 9007199254740993]}}", r"int needs \[low, high\]"),
        ("parameters: " + "[" * 20_000, "is not YAML"),
        ("description: 2024-99-99\n" + GOOD, "is not YAML"),
        (GOOD + "description: !!python/name:os.system", "the tag"),
        (GOOD + "description: !!int ''", "the tag"),
        (BILLION, "the alias"),
        (GOOD + "#" * 100_000, "longer than 100,000 bytes"),
    ],
)
def test_bad_spaces_are_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpaceError, match=message) as error:
        load_space(str(path))
    assert str(path) in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SpaceError, match=re.escape(str(path))):
        load_space(str(path))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "."])
def test_a_name_that_no_file_can_have_is_unknown(name):
    with pytest.raises(SpaceError, match="unknown search space"):
        load_space(name)


def test_choices_in_a_list_are_tried_one_by_one():
    each = {"each": "n", "item": {"choice": ["x", "y", "z"]}}
    for limits, length in (([0, 2], 1), ([2, 3], 2)):
        space = space_from_dict({"name": "s", "auxiliary": {"n": {"int": limits}}, "parameters": {"a": each}})
        lower, upper, *tried = space.corners()
        assert (lower["a"], upper["a"]) == (["x"] * limits[0], ["z"] * limits[1])
        assert tried == [{"a": ["y"] * length}, {"a": ["z"] * length}]


def test_a_study_of_an_earlier_version_keeps_its_idle_parts():
    """What a file must not have, the manifest of an earlier study may have: its space is not changed by a resume."""
    parameters = {"train.lr": {"uniform": [0.1, 0.1]}}
    old = {"name": "s", "parameters": parameters, "auxiliary": {"n": {"int": [-1, 2]}}, "base": ["seed=1", "seed=2"]}
    assert space_from_dict(old).as_dict()["parameters"] == parameters


def test_an_unknown_configuration_key_in_a_space_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("parameters: {distill.kd_alfa: {uniform: [0, 1]}}")
    space = load_space(str(tmp_path / "bad.yaml"))
    with pytest.raises(ConfigError, match=r"distill\.kd_alfa; did you mean distill\.kd_alpha"):
        TrialConfig.from_flat(space.corners()[0])


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"base": ["data.dataset_dir=${oc.env:HOME}"]}, "base"),
        ({"parameters": {"augment.dir_dir": {"choice": ["x", "${oc.env:HOME}"]}}}, "augment.dir_dir"),
        ({"parameters": {"student.branches": {"subset": ["3x3", "${oc.env:HOME}"]}}}, "student.branches"),
        ({"parameters": {"distill.teacher_ckpts": {"choice": [["a"], ["b", "${oc.env:HOME}"]]}}}, "teacher_ckpts"),
        ({"parameters": {"data.${oc.env:HOME}": {"uniform": [0, 1]}}}, "data."),
    ],
)
def test_an_interpolation_is_refused(content, key):
    parameters = {"train.lr": {"uniform": [0.1, 0.2]}}
    with pytest.raises(SpaceError) as error:
        space_from_dict({"name": "x", "parameters": parameters} | content, "x.yaml")
    assert "x.yaml: " in str(error.value) and key in str(error.value) and "${oc.env:HOME}" in str(error.value)
