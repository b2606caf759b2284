"""Distillation, metrics, the training loop, configuration and search spaces."""

import copy
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
import yaml

import search_spaces
from ascmodels.checkpoint import CheckpointError
from ascmodels.compress.plan import schedule_sizes
from ascmodels.nessi import get_deployed_size
from ascmodels.students import Student, StudentConfig, build_student
from data.augment import AugmentConfig
from data.cache import open_cache
from data.features import FrontEndConfig, LogMel
from data.tau import DEVICE_GROUPS, SCENES, read_split
from search_spaces import Space, SpaceError, load_space, space_from_dict
from trainables.config.compose import CONFIG_DIR, compose
from trainables.config.distill import DistillConfig
from trainables.config.flags import ALIASES, flags, flags_to_overrides
from trainables.config.schema import ConfigError, TrialConfig, key_types
from trainables.config.train import TrainConfig
from trainables.engine.device import pick_device
from trainables.engine.loop import Epoch, TrainingDiverged, batches, predict, train_epoch
from trainables.engine.losses import kd_loss
from trainables.engine.metrics import measure
from trainables.engine.schedule import learning_rate
from trainables.inputs.clips import Clips
from trainables.teachers.ensemble import combine
from trainables.teachers.logits import folder_hash, load_logits, save_logits

# --- trainables/engine/losses.py ---


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def drawn(seed: int, n: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(n, 10, generator=gen, dtype=torch.float64),
        torch.randint(10, (n,), generator=gen),
        3 * torch.randn(n, 10, generator=gen, dtype=torch.float64),
    )


@pytest.mark.parametrize(("alpha", "temp"), [(0.5, 4.0), (0.02, 2.0), (0.0, 1.0), (1.0, 3.0), (0.3, 0.5)])
def test_kd_loss_equals_the_formula(alpha, temp):
    logits, labels, teacher = drawn(0)
    z, t = logits.numpy(), teacher.numpy()
    hard = -np.log(softmax(z)[np.arange(7), labels.numpy()]).mean()
    p, q = softmax(t / temp), softmax(z / temp)
    soft = (p * np.log(p / q)).sum(axis=1).mean()  # summed over classes, averaged over the batch
    expected = alpha * hard + (1 - alpha) * temp**2 * soft
    assert kd_loss(logits, labels, teacher, alpha, temp).item() == pytest.approx(expected, rel=1e-12)


def test_kd_loss_at_its_ends():
    logits, labels, teacher = drawn(1)
    assert torch.equal(kd_loss(logits, labels, None, 0.3, 4.0), F.cross_entropy(logits, labels))
    assert torch.allclose(kd_loss(logits, labels, teacher, 1.0, 4.0), F.cross_entropy(logits, labels))
    student = teacher.clone().requires_grad_()
    loss = kd_loss(student, labels, teacher, 0.0, 4.0)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    shifted = kd_loss(teacher + 5, labels, teacher, 0.0, 4.0)  # logits count up to a constant
    assert abs(shifted.item()) < 1e-12
    other = logits.clone().requires_grad_()
    kd_loss(other, labels, teacher, 0.0, 4.0).backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 1e-3


def test_soft_loss_tends_to_half_the_mean_squared_difference_of_logits():
    """Hinton et al. 2015, section 2.1: T^2 keeps the scale; at high T it is sum((z - v)^2) / (2 C), both centred."""
    logits, labels, teacher = drawn(2)
    difference = (logits - teacher) - (logits - teacher).mean(dim=1, keepdim=True)
    limit = difference.square().sum(dim=1).mean().item() / 20
    assert kd_loss(logits, labels, teacher, 0.0, 1e4).item() == pytest.approx(limit, rel=1e-3)


def test_logits_meet_by_filename(tmp_path):
    names = [f"audio/clip-{i}.wav" for i in range(40)]
    logits = 8 * torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    save_logits(tmp_path / "logits.safetensors", names, logits)
    order = np.random.default_rng(0).permutation(40)[:25]
    read = load_logits(tmp_path / "logits.safetensors", [names[i] for i in order])
    assert read.dtype == torch.float32
    assert torch.equal(read, logits[order].half().float())
    assert ((read - logits[order]).abs() <= 2.0**-11 * logits[order].abs() + 2.0**-25).all()  # half a step of fp16
    twice = load_logits(tmp_path / "logits.safetensors", [names[3], names[3]])
    assert torch.equal(twice[0], twice[1])
    with pytest.raises(CheckpointError, match=r"no logits for 2 of 3 clips, first audio/new\.wav"):
        load_logits(tmp_path / "logits.safetensors", [names[0], "audio/new.wav", "audio/newer.wav"])
    assert [p.name for p in tmp_path.iterdir()] == ["logits.safetensors"]


def test_ensemble_is_the_mean_of_logits():
    parts = [torch.full((2, 3), float(v)) for v in (1, 2, 6)]
    assert torch.equal(combine(parts, "logits"), torch.full((2, 3), 3.0))
    assert torch.equal(combine(parts[:1], "logits"), parts[0])


def test_folder_hash_follows_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    first = folder_hash(tmp_path)
    assert folder_hash(tmp_path) == first
    (tmp_path / "b").write_text("3")
    second = folder_hash(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c")
    assert len({first, second, folder_hash(tmp_path)}) == 3


@pytest.mark.parametrize("values", [{"kd_alpha": 1.1}, {"kd_alpha": -0.1}, {"kd_temp": 0.0}, {"kd_temp": -1.0}])
def test_distill_config_refuses(values):
    ((key, value),) = values.items()
    with pytest.raises(ValueError, match=rf"distill\.{key}={value}: expected"):
        DistillConfig(**values)


# --- trainables/engine/metrics.py ---


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_counting_one_by_one(seed):
    rng = np.random.default_rng(seed)
    n = 60
    present = rng.permutation(10)[: rng.integers(3, 11)]
    labels = rng.choice(present, size=n)
    every = [d for members in DEVICE_GROUPS.values() for d in members] + ["x9"]
    devices = rng.choice(every[: rng.integers(2, 11)], size=n)
    logits = rng.normal(size=(n, 10)).astype(np.float32) * 5
    logits[np.arange(n), labels] += 3
    got = measure(logits, labels, devices)

    def accuracy(rows: list[int]) -> float:
        return sum(max(range(10), key=lambda c: logits[i, c]) == labels[i] for i in rows) / len(rows)

    by_class = {SCENES[c]: accuracy([i for i in range(n) if labels[i] == c]) for c in set(labels.tolist())}
    assert got.class_acc == pytest.approx(by_class)
    assert got.macro_avg_acc == pytest.approx(sum(by_class.values()) / len(by_class))
    by_device = {d: accuracy([i for i in range(n) if devices[i] == d]) for d in set(devices.tolist())}
    assert got.device_acc == pytest.approx(by_device)
    members = {**DEVICE_GROUPS, "other": ("x9",)}
    rows = {g: [i for i in range(n) if devices[i] in m] for g, m in members.items()}
    assert got.group_acc == pytest.approx({g: accuracy(r) for g, r in rows.items() if r})
    expected = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
    assert got.loss == pytest.approx(expected, rel=1e-9)
    json.dumps([got.class_acc, got.device_acc, got.group_acc, got.macro_avg_acc])  # plain numbers and texts


def test_macro_average_is_not_the_share_of_clips():
    logits = np.eye(10)[[0] * 9 + [0]]  # nine of class 0 right, the one of class 1 wrong
    labels = np.array([0] * 9 + [1])
    got = measure(logits, labels, np.array(["a"] * 10))
    assert got.macro_avg_acc == 0.5
    assert got.device_acc == {"a": 0.9}
    assert math.isfinite(measure(logits * 1e4, labels, np.array(["a"] * 10)).loss)


# --- trainables/engine/loop.py ---


def test_learning_rate_rises_then_falls_along_a_cosine():
    rates = [learning_rate(s, 100, 2.0, 0.1) for s in range(100)]
    assert rates[:10] == pytest.approx([2 * (s + 1) / 11 for s in range(10)])
    assert rates[10] == 2.0 == max(rates)
    assert rates[55] == pytest.approx(1.0)
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * k / 90) for k in range(90)])
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001
    assert learning_rate(100, 100, 2.0, 0.1) == pytest.approx(0)
    assert learning_rate(0, 100, 2.0, 0.0) == 2.0
    for n in range(1, 12):
        assert all(0 < learning_rate(s, n, 1.0, 0.3) <= 1 for s in range(n))


def test_batches_partition_the_clips():
    for n, size in itertools.product((1, 2, 5, 31, 32, 33, 64, 257), (2, 3, 32, 256)):
        parts = batches(n, size, np.random.default_rng(0))
        assert sorted(np.concatenate(parts).tolist()) == list(range(n))
        sizes = [len(p) for p in parts]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1  # no tiny last one
        assert len(parts) == -(-n // size)
    first, again, other = (np.concatenate(batches(50, 8, np.random.default_rng(s))).tolist() for s in (0, 0, 1))
    assert first == again != other
    assert first != sorted(first)


FRONT_END = FrontEndConfig(8000, 512, 400, 250, 16)
OFF = AugmentConfig(roll_s=0, freq_mask=0, time_mask=0, mixstyle_p=0)


@pytest.fixture(scope="module")
def clips(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """The tiny training split with teacher logits whose first column is the clip's number."""
    table = read_split(tiny_tau, "split100")
    cache = open_cache(tiny_tau, list(table.filename), 8000, tmp_path_factory.mktemp("cache"), progress=False)
    teacher = torch.randn(len(table), 10, generator=torch.Generator().manual_seed(0))
    teacher[:, 0] = torch.arange(len(table))
    return Clips(cache, cache.rows(list(table.filename)), table.label.to_numpy(), table.device.to_numpy(str), teacher)


def new_student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return build_student(StudentConfig(base_channels=8, n_blocks=(1, 1), strides=("b1:2x2",), branches=("3x3", "1x1")))


def run_epoch(clips: Clips, seed: int, model: Student | None = None, augment: AugmentConfig | None = None) -> Any:
    model = model or new_student()
    augment = augment or AugmentConfig(freq_mask=4, time_mask=3, mixstyle_p=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    epoch = Epoch(
        *(LogMel(FRONT_END), augment, TrainConfig(batch_size=16)),
        lambda logits, labels, teacher: kd_loss(logits, labels, teacher, 0.5, 4.0),
        lambda i: 0.01,
        np.random.default_rng(seed),
    )
    return train_epoch(model, optimizer, clips, epoch).loss, {k: v.clone() for k, v in model.state_dict().items()}


def test_an_epoch_depends_on_its_generator_alone(clips):
    loss, state = run_epoch(clips, 0)
    torch.manual_seed(123)
    np.random.seed(123)
    model = new_student()
    before = torch.get_rng_state()
    again_loss, again = run_epoch(clips, 0, model)
    assert torch.equal(before, torch.get_rng_state())
    assert loss == again_loss
    assert all(torch.equal(state[k], again[k]) for k in state)
    other_loss, other = run_epoch(clips, 1)
    assert loss != other_loss
    assert not all(torch.equal(state[k], other[k]) for k in state)


def test_an_epoch_shows_every_clip_once_with_its_own_label_and_teacher(clips):
    model, seen, rates = new_student(), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def loss_of(logits, labels, teacher):
        loss = F.cross_entropy(logits, labels)
        seen.append((teacher[:, 0].long(), labels, loss.item()))
        rates.append(optimizer.param_groups[0]["lr"])
        return loss

    epoch = Epoch(
        *(LogMel(FRONT_END), OFF, TrainConfig(batch_size=16), loss_of),
        lambda i: 0.01 * (i + 1),
        np.random.default_rng(0),
    )
    mean = train_epoch(model, optimizer, clips, epoch).loss
    numbers = torch.cat([n for n, _, _ in seen])
    assert sorted(numbers.tolist()) == list(range(50))
    assert torch.cat([y for _, y, _ in seen]).tolist() == clips.labels[numbers].tolist()
    assert mean == pytest.approx(sum(len(n) * loss for n, _, loss in seen) / 50, rel=1e-5)
    assert [len(n) for n, _, _ in seen] == [13, 13, 12, 12]
    assert rates == pytest.approx([1.0, 0.01, 0.02, 0.03])  # as step i's loss is seen, step i - 1's rate still stands
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.04)


def test_training_learns(clips):
    """Not a bar for accuracy: the loss on the training clips falls far below chance."""
    model = new_student()
    hard = replace(clips, teacher=None)
    losses = [run_epoch(hard, epoch, model, OFF)[0] for epoch in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    got = measure(predict(model, clips, LogMel(FRONT_END)).numpy(), clips.labels, clips.devices)
    assert got.macro_avg_acc > 0.3


def test_a_loss_that_is_not_finite_stops_the_epoch(clips):
    model = new_student()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(TrainingDiverged, match="the loss is nan at step 1 of 4"):
        run_epoch(clips, 0, model)
    broken = replace(clips, teacher=torch.full((50, 10), float("inf")))
    with pytest.raises(TrainingDiverged):
        run_epoch(broken, 0)


def test_predictions_are_those_of_each_clip_alone(clips):
    model = new_student().train()
    run_epoch(clips, 0, model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    together = predict(model, clips, LogMel(FRONT_END), batch_size=16)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    front_end, alone = LogMel(FRONT_END), copy.deepcopy(model).eval()
    with torch.no_grad():
        singly = torch.cat([alone(front_end(clips.cache.batch(clips.rows[i : i + 1]))) for i in range(50)])
    assert torch.allclose(together, singly, atol=1e-5)
    assert together.shape == (50, 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match=r"train\.device='cuda', but PyTorch sees no CUDA device"):
        pick_device("cuda")
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    "values",
    [
        *({"epochs": 0}, {"batch_size": 1}, {"threads": 0}, {"lr": 0.0}, {"lr": float("nan")}),
        *({"weight_decay": -1.0}, {"warmup": 1.0}, {"device": "tpu"}),
    ],
)
def test_train_config_refuses(values):
    ((key, value),) = values.items()
    with pytest.raises(ValueError, match=rf"train\.{key}='?{value}"):
        TrainConfig(**values)


# --- trainables/config/schema.py ---


def from_flags(*words: str) -> TrialConfig:
    return compose(flags_to_overrides(words))


@pytest.mark.slow
def test_every_shipped_configuration_loads():
    """Each student under each profile, and every file takes part."""
    students = sorted(p.stem for p in (CONFIG_DIR / "student").glob("*.yaml"))
    profiles = sorted(p.stem for p in (CONFIG_DIR / "profile").glob("*.yaml"))
    networks = {"cp_mobile": "cp_mobile", "cp_mobile_grn": "cp_mobile", "rep_mobile": "rep_mobile"}
    networks |= dict.fromkeys(("tf_sepnet", "tf_sepnet_16", "tf_sepnet_24"), "tf_sepnet")
    assert students == list(networks)
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
                    assert set(owner) == set(value)  # their order is the code's own
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
    assert config.prune.epochs == 30  # --n_epochs is the dense stage's
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
    listable = [p for p in paths if "," not in p and p.strip("[] ") == p]  # commas part the members of a list
    config = from_flags(*words, f"--teacher_ckpts={','.join(listable)}")
    assert [config.data.dataset_dir, config.data.split_dir, config.data.cache_dir] == paths
    assert config.distill.teacher_ckpts == tuple(listable)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kd_alfa=1"], r"unknown flag --kd_alfa; did you mean kd_alpha"),
        (["--criterium=l1"], r"unknown flag --criterium; did you mean criterion"),
        (["--qqqq=1"], r"unknown flag --qqqq; `--help` lists them"),
        (["distill.kd_alfa=1"], r"unknown configuration key distill\.kd_alfa; did you mean distill\.kd_alpha"),
        (["++distill.kd_alfa=1"], "kd_alfa"),
        (["optim.lr=1"], r"unknown configuration key optim\.lr; did you mean"),
        (["lr=1"], "'lr'"),
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
    assert hash(config.student) == hash(TrialConfig.from_flat(flat).student)  # sizes are cached by it


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


# --- search_spaces ---

SHIPPED = sorted(p.stem for p in search_spaces.FOLDER.glob("*.yaml"))


def in_range(spec: dict[str, Any], value: Any, steps: dict[str, list[int]]) -> bool:
    """Whether a value can come from a range: the YAML form read again."""
    ((kind, limits),) = [(k, v) for k, v in spec.items() if k not in ("step", "min", "item")]
    if kind in ("uniform", "loguniform"):
        return isinstance(value, float) and limits[0] <= value <= limits[1]
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


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.slow
def test_both_corners_of_a_shipped_space_build_and_are_measurable(name):
    space = load_space(name)
    base = compose(space.base).flat()
    sizes = []
    for corner in space.corners():
        config = TrialConfig.from_flat(base | corner)
        sizes.append(schedule_sizes(config.student, config.prune, config.frontend.n_mels, config.frontend.frames))
        assert len(sizes[-1]) == 1 + len(config.prune.ratios)
    lower, upper, *_ = sizes
    assert lower[0] <= upper[0]
    assert all(config.limits.allow(*size) for size in lower)  # the upper one may be too large: the search rejects it


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
                "a": {"uniform": [0, 1]},
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
    drawn = [space.sample(study.ask()) for _ in range(150)]
    assert {v["b"] for v in drawn} == {1, 5, 9}
    assert {json.dumps(v["c"]) for v in drawn} == {"[1, 2]", '"x"'}
    assert {tuple(v["d"]) for v in drawn} == {("p", "q"), ("p", "r"), ("q", "r"), ("p", "q", "r")}
    assert {len(v["e"]) for v in drawn} == {1, 2, 3}


GOOD = "parameters:\n  train.lr: {loguniform: [0.001, 0.1]}\n"


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
        ("parameters: {a: {uniform: [1e-3, 1]}}", r"needs \[low, high\] as numbers \(1\.0e-3, not 1e-3\)"),
        ("parameters: {a: {uniform: [1]}}", r"needs \[low, high\]"),
        ("parameters: {a: {uniform: [.nan, 1]}}", r"needs \[low, high\]"),
        ("parameters: {a: {uniform: [0, .inf]}}", r"needs \[low, high\]"),
        ("parameters: {a: {int: [1, 2.5]}}", r"int needs \[low, high\]"),
        ("parameters: {a: {int: [1, 9], step: 0}}", "a: step 0 "),
        ("parameters: {a: {choice: []}}", "choice needs a list of different"),
        ("parameters: {a: {choice: [1, 1]}}", "choice needs a list of different"),
        ("parameters: {a: {choice: l1}}", "choice needs a list of different"),
        ("parameters: {a: {choice: [2020-01-01]}}", "choice needs a list of different"),
        ("parameters: {a: {subset: [x, y], min: 3}}", "min 3 of 2 members"),
        ("parameters: {a: {subset: [x, y], min: many}}", "min 'many' of 2 members"),
        ("parameters: {a: {subset: [x, y], min: 1.0}}", "min 1.0 of 2 members"),
        ("parameters: {a: {each: n, item: {uniform: [0, 1]}}}", "a: each names 'n'"),
        ("parameters: {a: {each: [n], item: {uniform: [0, 1]}}}", r"a: each names \['n'\]"),
        ("parameters: {a: {each: n}}\nauxiliary: {n: {int: [1, 2]}}", r"a\[item\]: expected one of"),
        ("parameters: {a: {each: n, item: {uniform: [1, 0]}}}\nauxiliary: {n: {int: [1, 2]}}", r"a\[item\]: low 1"),
        (GOOD + "auxiliary: {n: {each: m, item: {uniform: [0, 1]}}, m: {int: [1, 2]}}", "n: each names 'm'"),
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
    ],
)
def test_bad_spaces_are_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpaceError, match=message) as error:
        load_space(str(path))
    assert str(path) in str(error.value)


def test_an_unknown_configuration_key_in_a_space_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("parameters: {distill.kd_alfa: {uniform: [0, 1]}}")
    space = load_space(str(tmp_path / "bad.yaml"))
    with pytest.raises(ConfigError, match=r"distill\.kd_alfa; did you mean distill\.kd_alpha"):
        TrialConfig.from_flat(space.corners()[0])
