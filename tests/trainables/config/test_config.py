"""Configurations of trials: shipped ones, flags, errors that name key and value, flat round trips."""

import itertools
import json
from typing import Any

import pytest
import yaml

from ascmodels.nessi import get_deployed_size
from ascmodels.students import StudentConfig, build_student
from trainables.config.compose import CONFIG_DIR, compose
from trainables.config.distill import DistillConfig
from trainables.config.flags import ALIASES, flags, flags_to_overrides
from trainables.config.schema import ConfigError, TrialConfig, key_types


def from_flags(*words: str) -> TrialConfig:
    return compose(flags_to_overrides(words))


@pytest.mark.slow
def test_every_shipped_configuration_loads():
    """Each shipped student loads with each profile, and no configuration file is left out."""
    students = sorted(p.stem for p in (CONFIG_DIR / "student").glob("*.yaml"))
    profiles = sorted(p.stem for p in (CONFIG_DIR / "profile").glob("*.yaml"))
    networks = {"cp_mobile": "cp_mobile", "cp_mobile_grn": "cp_mobile", "rep_mobile": "rep_mobile"}
    networks |= dict.fromkeys(("tf_sepnet", "tf_sepnet_16", "tf_sepnet_24"), "tf_sepnet")
    assert students == sorted(networks)
    assert profiles == ["full", "quick"]
    loaded = {(s, p): compose([f"student={s}", f"profile={p}"]) for s in students for p in profiles}
    for (student, profile), config in loaded.items():
        for group, name, part in (("student", student, config.student), ("profile", profile, config)):
            for key, value in flatten(yaml.safe_load((CONFIG_DIR / group / f"{name}.yaml").read_text())).items():
                owner: Any = part
                for step in key.split("."):
                    owner = getattr(owner, step)
                if key == "strides":
                    value = sorted(value)
                elif key == "branches":
                    assert set(owner) == set(value)  # the order of keys is that of the code
                    continue
                assert owner == (tuple(value) if isinstance(value, list) else value), (name, key)
        assert config.student.name == networks[student]
    full = loaded["cp_mobile", "full"]
    assert (full.frontend.n_mels, full.frontend.frames) == (256, 65)
    assert full.student == StudentConfig()
    assert get_deployed_size(build_student(full.student), 256, 65) == (29_419_156, 61_148)
    grn = loaded["cp_mobile_grn", "full"].student
    assert get_deployed_size(build_student(grn), 256, 63) == (28_893_280, 126_952)
    assert compose([]) == loaded["rep_mobile", "quick"]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in (tree or {}).items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@pytest.mark.slow
def test_flags_of_the_baseline():
    config = from_flags("--subset=5", "--kd_alpha=0.6", "--kd_temp=3.0", "--teacher_ckpts=a.ckpt,b.ckpt")
    assert config.data.subset == 5
    assert config.distill == DistillConfig(0.6, 3.0, ("a.ckpt", "b.ckpt"))
    config = from_flags("--batch_size", "8", "--n_epochs", "3", "--lr=1e-4", "student=cp_mobile", "profile=full")
    assert (config.train.batch_size, config.train.epochs, config.train.lr) == (8, 3, 1e-4)
    assert config.prune.epochs == 30  # --n_epochs sets the epochs of the dense stage only
    assert config.student.name == "cp_mobile"
    config = from_flags("--ratios=0.3, 0.2", "--branches=[3x3,1x1]", "--strides=b2:2x2", "--grn=true", "--f_max=null")
    assert config.prune.ratios == (0.3, 0.2)
    assert config.student.branches == ("3x3", "1x1")
    assert config.student.strides == ("b2:2x2",)
    assert config.student.grn is True
    assert config.frontend.f_max is None
    assert from_flags("--teacher_ckpts=").distill.teacher_ckpts == ()
    config = from_flags("--teacher.train.lr=0.5", "--train.lr=0.25", "--teacher.model.pretrained=MIT/ast")
    assert (config.teacher.train.lr, config.train.lr, config.teacher.model.pretrained) == (0.5, 0.25, "MIT/ast")


def test_both_forms_say_the_same():
    keys = [
        "distill.kd_alpha=0.25",
        "data.subset=10",
        "prune.criterion=l1",
        "train.device=cpu",
        "data.skip_broken=true",
    ]
    as_flags = ["--" + k.partition(".")[2] for k in keys]
    assert compose(keys) == from_flags(*as_flags)
    assert compose(keys) == from_flags(*itertools.chain.from_iterable(f.split("=") for f in as_flags))


PATHS = [
    *("/data/my sets/tau", "/a,b/c", "/x=1/y=2", "/it's/here", '/say "tau"', "/it's", "'tis", "~/tau", "/ümlaut/ß"),
    *("/a\\b", "/ends\\", "/mixed\\'s", "[tau]", "{tau: 1}", "#tau", "a:b", "1", "true", "/x$y", " padded ", "/end'"),
]


@pytest.mark.parametrize("paths", [PATHS[i : i + 3] for i in range(0, len(PATHS), 3)], ids=" ".join)
def test_paths_may_hold_anything(paths):
    words = [f"--{flag}={path}" for flag, path in zip(("dataset_dir", "split_dir", "cache_dir"), paths, strict=True)]
    assert flags_to_overrides(words) == flags_to_overrides([part for w in words for part in w.split("=", 1)])
    listable = [p for p in paths if "," not in p and p.strip("[] ") == p]  # commas separate members of a list
    config = from_flags(*words, f"--teacher_ckpts={','.join(listable)}")
    assert [config.data.dataset_dir, config.data.split_dir, config.data.cache_dir] == paths
    assert config.distill.teacher_ckpts == tuple(listable)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kd_alfa=1"], r"unknown flag --kd_alfa; did you mean kd_alpha"),
        (["--criterium=l1"], r"unknown flag --criterium; did you mean criterion"),
        (["--qqqq=1"], r"unknown flag --qqqq; `--help` lists all flags"),
        (["distill.kd_alfa=1"], r"unknown configuration key distill\.kd_alfa; did you mean distill\.kd_alpha"),
        (["++distill.kd_alfa=1"], "kd_alfa"),
        (["optim.lr=1"], r"unknown configuration key optim\.lr; did you mean"),
        (["lr=1"], r"unknown configuration key lr; did you mean teacher\.train\.lr or train\.lr or prune\.lr"),
        (["student=resnet"], "student/resnet"),
        (["--kd_alpha"], "--kd_alpha needs a value"),
        (["kd_alpha"], "unexpected argument 'kd_alpha'"),
        (["--kd_alpha=1.5"], r"distill\.kd_alpha=1\.5: expected a weight in \[0, 1\]"),
        (["--kd_alpha=big"], r"distill\.kd_alpha"),
        (["--kd_alpha=null"], r"distill\.kd_alpha"),
        (["--kd_temp=0"], r"distill\.kd_temp=0"),
        (["--subset=7"], r"data\.subset=7: expected one of 5, 10, 25, 50, 100"),
        (["--batch_size=2.5"], r"train\.batch_size"),
        (["--batch_size=1"], r"train\.batch_size=1"),
        (["--ratios=0.3,1.0"], r"prune\.ratios\[1\]=1\.0"),
        (["--criterion=best"], r"prune\.criterion='best': expected one of"),
        (["--branches=7x7"], r"unknown RepConv branch '7x7'; choose from"),
        (["--strides=b9:2x2"], r"student\.strides .*'b9'"),
        (["--precision=int2"], r"limits\.precision='int2'"),
        (["--seed=-1"], r"seed=-1: expected 0 to"),
        (["--hop_length=0"], r"frontend\.hop_length=0"),
        (["teacher.model.heads=3"], r"teacher\.model\.hidden_size=128 is not a multiple of heads=3"),
        (["train.lr=1e-3,1e-2"], r"train\.lr"),
        (["train.lr=}{"], "}"),
    ],
)
def test_bad_words_are_configuration_errors_that_name_them(words, message):
    with pytest.raises(ConfigError, match=message):
        from_flags(*words)


def test_flat_round_trip():
    config = from_flags("--ratios=0.3,0.2", "--teacher_ckpts=a b,c", "--seed=7", "--f_max=9000", "profile=full")
    flat = config.flat()
    assert set(flat) == set(key_types())
    assert TrialConfig.from_flat(flat) == config
    assert TrialConfig.from_flat(json.loads(json.dumps(flat))) == config
    assert flat["prune.ratios"] == [0.3, 0.2]
    assert flat["frontend.f_max"] == 9000.0
    assert TrialConfig.from_flat({}) == TrialConfig()
    assert TrialConfig.from_flat({"train.lr": 1}).train.lr == 1.0
    assert hash(config.student) == hash(TrialConfig.from_flat(flat).student)  # sizes are cached by this hash


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distill.kd_alfa": 0.5}, r"unknown configuration key distill\.kd_alfa; did you mean distill\.kd_alpha"),
        ({"distill": {"kd_alpha": 0.5}}, "unknown configuration key distill"),
        ({"trial": "t1"}, "unknown configuration key trial"),
        ({"train.lr": "fast"}, r"train\.lr='fast'"),
        ({"train.lr": None}, r"train\.lr=None"),
        ({"train.epochs": 2.5}, r"train\.epochs=2\.5"),
        ({"prune.ratios": 0.3}, r"prune\.ratios=0\.3"),
        ({"student.branches": "3x3"}, r"student\.branches='3x3'"),
        ({"distill.kd_alpha": 2}, r"distill\.kd_alpha=2\.0"),
    ],
)
def test_from_flat_refuses(values, message):
    with pytest.raises(ConfigError, match=message):
        TrialConfig.from_flat(values)


def test_every_flag_reaches_the_key_it_names():
    known = key_types()
    for flag, key in flags().items():
        assert key in known
        assert not key.startswith("teacher.")
        assert flag in ALIASES or key.endswith(flag)
    assert flags()["lr"] == "train.lr"
    assert flags()["epochs"] == "train.epochs"
