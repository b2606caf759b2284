"""Teachers: families, pretrained weights, layer-wise rates, logits files, ensembles, commands."""

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from ascmodels.checkpoint import CheckpointError
from ascmodels.teachers import (
    _CLASSES,
    TeacherModelConfig,
    build_teacher,
    load_teacher,
    parameter_groups,
    save_teacher,
)
from ascmodels.teachers.base import FAMILIES, Teacher
from ascmodels.teachers.timm import Patchout, patch_grid
from data.features import FrontEndConfig, LogMel
from data.tau import SCENES
from trainables import cache_logits, compare_teachers, finetune_teacher
from trainables.config.compose import CONFIG_DIR, compose
from trainables.config.distill import DistillConfig
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.device import set_up_process
from trainables.engine.loop import TrainingDiverged, predict
from trainables.engine.losses import kd_loss
from trainables.inputs.clips import filenames
from trainables.teachers.cached_logits import logits_file, teacher_logits
from trainables.teachers.ensemble import accuracies, combine, greedy
from trainables.teachers.fine_tuning import fine_tuned_teacher, teacher_summary, validation_hash
from trainables.teachers.logits import folder_hash, load_logits, read_manifest, save_logits
from trainables.trial.data import data_key, load_trial_data

N_MELS, FRAMES = 32, 40
AST_TINY = TeacherModelConfig(hidden_size=16, layers=2, heads=2)
VIT_TINY = TeacherModelConfig(family="vit", hidden_size=16, layers=2, heads=2)
CNN_TINY = TeacherModelConfig(family="cnn", name="test_efficientnet")  # timm's own tiny network
DEIT = TeacherModelConfig(family="vit", name="test_vit", stride=8)
ALL = {"ast": AST_TINY, "vit": VIT_TINY, "named vit": DEIT, "cnn": CNN_TINY}


def features(n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, N_MELS, FRAMES, generator=torch.Generator().manual_seed(seed))


def built(config: TeacherModelConfig, n_classes: int = 10, seed: int = 0) -> Teacher:
    torch.manual_seed(seed)
    return build_teacher(config, n_classes, N_MELS, FRAMES)


# --- families ---


def test_every_family_is_built() -> None:
    assert set(_CLASSES) == set(FAMILIES)


@pytest.mark.parametrize("name", ALL)
def test_shapes_and_round_trip(name: str, tmp_path: Path) -> None:
    teacher, x = built(ALL[name]).eval(), features()
    with torch.no_grad():
        logits, embedding = teacher(x), teacher.features(x)
    assert logits.shape == (3, 10)
    assert embedding.shape == (3, teacher.embedding_size)
    extra = {"classes": list(SCENES), "figure": 0.5}
    save_teacher(tmp_path / "t", teacher, extra)
    before = torch.random.get_rng_state()
    loaded, read = load_teacher(tmp_path / "t", SCENES)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert read == extra
    assert not loaded.training
    assert type(loaded) is type(teacher)
    with torch.no_grad():
        assert torch.equal(loaded(x), logits)
        assert torch.equal(loaded.features(x), embedding)
    with pytest.raises(CheckpointError, match=r"classes .*\('bus',\)"):
        load_teacher(tmp_path / "t", ("bus",))
    weights = tmp_path / "t" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="no teacher checkpoint in"):
        load_teacher(tmp_path / "t", SCENES)


@pytest.mark.parametrize("name", ALL)
def test_the_embedding_is_what_the_classifier_sees(name: str) -> None:
    """Logits are an affine function of the embedding: with the network's own last layers."""
    teacher, x = built(ALL[name]).eval(), features()
    with torch.no_grad():
        embedding, logits = teacher.features(x), teacher(x)
        network = teacher.network
        head = network.head if name.endswith("vit") else network.classifier
        assert torch.allclose(head(embedding), logits, atol=1e-6)


def test_the_same_seed_gives_the_same_network() -> None:
    for config in ALL.values():
        one, two = built(config).state_dict(), built(config).state_dict()
        assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "beats"}, "teacher.model.family='beats': expected one of ast, vit, cnn"),
        ({"family": "cnn"}, "teacher.model.name=''.* cnn"),
        ({"name": "resnet18"}, "teacher.model.name='resnet18'.*family=ast"),
        ({"dropout": 1.0}, "teacher.model.dropout=1.0: "),
        ({"family": "vit", "patchout_time": -1}, "patchout_time=-1: .*>= 0"),
    ],
)
def test_configs_that_cannot_be(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        TeacherModelConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "cnn", "name": "mobilenetv3_smal_100"}, "did you mean mobilenetv3_small_100 or"),
        ({"family": "cnn", "name": "qqqqqq"}, "timm.list_models"),
        ({"family": "vit", "name": "test_efficientnet"}, "set teacher.model.family=cnn"),
        ({"family": "cnn", "name": "test_vit"}, "name='test_vit' .*family cnn.* 32 mel bins x 40 frames"),
        ({"family": "vit", "patch_size": 33}, "patches of 33 bins x 33 frames"),
        ({"family": "vit", "stride": 9}, "expected stride <= patch"),
        ({"family": "vit", "patchout_freq": 4}, "patchout_freq=4, .* 4 x 5 patches"),
    ],
)
def test_networks_that_cannot_be(values: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        built(TeacherModelConfig(**values))


# --- vit: patches, positions, patchout ---


@pytest.mark.parametrize(("patch", "stride"), [(8, 8), (16, 10), (7, 3), (32, 32)])
def test_patch_grid_counts_what_the_convolution_gives(patch: int, stride: int) -> None:
    out = F.conv2d(torch.zeros(1, 1, N_MELS, FRAMES), torch.zeros(1, 1, patch, patch), stride=stride)
    assert patch_grid(N_MELS, FRAMES, patch, stride) == tuple(out.shape[2:])


@pytest.mark.parametrize(("freq", "time"), [(0, 0), (1, 0), (0, 2), (2, 3)])
def test_patchout_in_training_only(freq: int, time: int) -> None:
    config = replace(VIT_TINY, stride=4, patchout_freq=freq, patchout_time=time)
    teacher = built(config)
    rows, columns = (N_MELS - 8) // 4 + 1, (FRAMES - 8) // 4 + 1
    counts = []
    teacher.network.blocks[0].register_forward_hook(lambda *a: counts.append(a[-1].shape[1]))
    teacher(features())
    teacher.eval()(features())
    assert counts == [1 + (rows - freq) * (columns - time), 1 + rows * columns]


def test_patchout_leaves_out_whole_rows_and_columns() -> None:
    drop = Patchout((4, 5), 1, 2, n_prefix=2)
    tokens = torch.arange(22.0).view(1, 22, 1).expand(2, 22, 3)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        kept = drop(tokens)
        assert torch.equal(kept[:, :2], tokens[:, :2])  # class tokens stay
        cells = kept[0, 2:, 0].long() - 2
        rows, columns = (cells // 5).unique(), (cells % 5).unique()
        assert torch.equal(cells.view(3, 3), 5 * rows[:, None] + columns)  # a whole grid, in order
        seen.add((tuple(rows.tolist()), tuple(columns.tolist())))
    assert len(seen) > 15
    assert torch.equal(drop.eval()(tokens), tokens)


def test_moving_a_patch_moves_its_token() -> None:
    """Frequency is the first axis of the grid, as of our features."""
    teacher = built(VIT_TINY).eval()
    x = torch.zeros(1, 1, N_MELS, FRAMES)
    x[:, :, 8:16, 24:32] = 1.0
    with torch.no_grad():
        tokens = teacher.network.patch_embed(x)[0]
    assert ((tokens - tokens[0]).abs().amax(dim=1) > 1e-6).nonzero().flatten().tolist() == [1 * 5 + 3]


@pytest.fixture(scope="module")
def timm_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ImageNet-like checkpoints as timm writes them: three input channels, 1000 classes."""
    import timm
    from timm.models import save_for_hf

    folders = {}
    for name in ("test_vit", "test_efficientnet"):
        torch.manual_seed(5)
        network = timm.create_model(name, num_classes=1000)
        for module in network.modules():  # statistics that fresh ones would not have
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
        folders[name] = tmp_path_factory.mktemp(name)
        save_for_hf(network, folders[name], safe_serialization=True)
    return folders


@pytest.mark.parametrize("how", ["folder", "file", "torch file"])
def test_pretrained_cnn_of_three_channels(how: str, timm_folders: dict[str, Path], tmp_path: Path) -> None:
    """The first convolution is the sum over the colours, the head is new, everything else is the checkpoint's."""
    folder = timm_folders["test_efficientnet"]
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    source = {"folder": folder, "file": folder / "model.safetensors", "torch file": tmp_path / "weights.pth"}[how]
    if how == "torch file":
        torch.save(stored, source)
    name = "" if how == "folder" else "test_efficientnet"
    teacher = built(TeacherModelConfig(family="cnn", name=name, pretrained=str(source)))
    ours = teacher.network.state_dict()
    assert stored["conv_stem.weight"].shape[1] == 3
    assert torch.equal(ours["conv_stem.weight"], stored["conv_stem.weight"].sum(dim=1, keepdim=True))
    assert ours["classifier.weight"].shape[0] == 10
    for key in set(stored) - {"conv_stem.weight", "classifier.weight", "classifier.bias"}:
        assert torch.equal(ours[key], stored[key]), key
    save_teacher(tmp_path / "t", teacher, {"classes": list(SCENES)})
    loaded, _ = load_teacher(tmp_path / "t", SCENES)  # without the pretrained checkpoint
    with torch.no_grad():
        assert torch.equal(loaded(features()), teacher.eval()(features()))


def test_pretrained_vit_fits_its_positions(timm_folders: dict[str, Path]) -> None:
    folder = timm_folders["test_vit"]
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    teacher = built(TeacherModelConfig(family="vit", pretrained=str(folder), stride=6))
    patch, old = stored["patch_embed.proj.weight"].shape[2], stored["pos_embed"]
    grid = (N_MELS - patch) // 6 + 1, (FRAMES - patch) // 6 + 1
    side = round((old.shape[1] - 1) ** 0.5)
    square = old[0, 1:].reshape(side, side, -1).permute(2, 0, 1)[None]
    fitted = F.interpolate(square, size=grid, mode="bicubic", antialias=True)[0].permute(1, 2, 0).reshape(-1, 64)
    new = teacher.network.pos_embed.detach()
    assert new.shape == (1, 1 + grid[0] * grid[1], 64)
    assert torch.equal(new[0, 0], old[0, 0])
    assert torch.allclose(new[0, 1:], fitted, atol=1e-6)
    assert torch.equal(teacher.network.blocks[1].mlp.fc1.weight, stored["blocks.1.mlp.fc1.weight"])
    assert teacher.config.name == "test_vit"


def test_pretrained_that_cannot_be_used(
    timm_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cnn, vit = timm_folders["test_efficientnet"], timm_folders["test_vit"]
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((cnn / "model.safetensors").read_bytes()[:3000])
    pickled = tmp_path / "pickled.pth"
    torch.save({"conv_stem.weight": Path("code")}, pickled)
    (tmp_path / "empty").mkdir()
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "model.safetensors").write_bytes((cnn / "model.safetensors").read_bytes())
    cases = [
        ("test_efficientnet", torn, "cannot be used"),
        ("test_efficientnet", pickled, "holds more than tensors"),
        ("test_efficientnet", tmp_path / "empty", "cannot be used"),
        ("test_efficientnet", "nobody/nothing", "cannot be used"),
        ("test_efficientnet", tmp_path / "absent.safetensors", "cannot be used"),
        ("test_efficientnet", vit / "model.safetensors", "cannot be used"),  # another architecture's weights
        ("test_resnet", cnn, "test_efficientnet; .*teacher.model.name=test_resnet"),
        ("", cnn / "model.safetensors", "weights file.* teacher.model.name "),
    ]
    for name, source, message in cases:
        with pytest.raises(CheckpointError, match=message):
            built(TeacherModelConfig(family="cnn", name=name, pretrained=str(source)))
    config = json.loads((vit / "config.json").read_text()) | {"model_args": {"depth": 2}}
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / "config.json").write_text(json.dumps(config))
    stored = safetensors.torch.load_file(vit / "model.safetensors")
    kept = {k: v for k, v in stored.items() if not k.startswith("blocks.") or int(k.split(".")[1]) < 2}
    safetensors.torch.save_file(kept, deep / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"teacher\.model\.pretrained=.*deep"):
        built(TeacherModelConfig(family="vit", pretrained=str(deep), stride=8))


# --- layer-wise learning rates ---


@pytest.mark.parametrize("name", ALL)
def test_layer_wise_rates(name: str) -> None:
    teacher = built(ALL[name])
    (uniform,) = parameter_groups(teacher, 1.0)
    assert list(uniform) == ["params"]  # no scale: what was trained before stays as it was
    groups = parameter_groups(teacher, 0.8)
    scales = [group["lr_scale"] for group in groups]
    assert scales == pytest.approx([0.8 ** (len(groups) - 1 - d) for d in range(len(groups))])
    assert scales[-1] == 1.0
    counted = [id(p) for group in groups for p in group["params"]]
    assert sorted(counted) == sorted(id(p) for p in teacher.parameters())
    layer_of = {id(p): d for d, group in enumerate(groups) for p in group["params"]}
    layers = {n: layer_of[id(p)] for n, p in teacher.named_parameters()}
    if name == "cnn":
        assert layers["network.conv_stem.weight"] == 0
        assert layers["network.classifier.weight"] == len(groups) - 1
        return
    n_blocks = len(groups) - 2  # stem, blocks, classifier
    if name == "ast":
        stem, block, head = "embeddings.position", "layers.{}.mlp.fc1.weight", "classifier.dense.weight"
        assert n_blocks == 2
    else:
        stem, block, head = "pos_embed", "blocks.{}.mlp.fc1.weight", "head.weight"
        assert n_blocks == len(teacher.network.blocks)
    found = [next(d for n, d in layers.items() if part in n) for part in (stem, head)]
    assert found == [0, n_blocks + 1]
    for i in range(n_blocks):
        assert next(d for n, d in layers.items() if n.endswith(block.format(i))) == i + 1


# --- ensembles ---


def drawn(k: int = 3, n: int = 30, c: int = 4, seed: int = 0) -> tuple[list[torch.Tensor], np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(c, (n,), generator=generator)
    logits = [torch.randn(n, c, generator=generator) + 0.7 * F.one_hot(labels, c) for _ in range(k)]
    return logits, labels.numpy()


def test_combinations_in_closed_form() -> None:
    logits, _ = drawn()
    assert torch.allclose(combine(logits, "logits"), sum(logits) / 3, atol=1e-6)  # type: ignore[arg-type]
    mean = torch.stack([z.softmax(dim=1) for z in logits]).mean(dim=0)
    assert torch.allclose(combine(logits, "probabilities").softmax(dim=1), mean, atol=1e-6)
    weighted = 0.75 * logits[0] + 0.25 * logits[2]
    assert torch.allclose(combine(logits, "logits", (3, 0, 1)), weighted, atol=1e-6)
    picked = combine(logits, "greedy", (0, 1, 0))
    assert torch.allclose(picked, logits[1].log_softmax(dim=1), atol=1e-6)
    far = [torch.tensor([[0.0, -500.0]]), torch.tensor([[0.0, -800.0]])]
    assert combine(far, "probabilities").isfinite().all()  # a probability of e^-500 is not 0
    for weights, message in (((1, 1), "expected 3, one for each"), ((0, 0, 0), "not all of them 0")):
        with pytest.raises(ValueError, match=message):
            combine(logits, "logits", weights)


def by_hand(logits: list[torch.Tensor], labels: np.ndarray, chosen: tuple[int, ...]) -> tuple[float, float]:
    """Macro accuracy and negative cross-entropy of the mean probabilities of `chosen`, clip by clip."""
    p = np.mean([np.exp(logits[k].double().log_softmax(dim=1).numpy()) for k in chosen], axis=0)
    right = {c: [int(p[i].argmax() == c) for i in np.flatnonzero(labels == c)] for c in set(labels.tolist())}
    accuracy = sum(sum(r) / len(r) for r in right.values()) / len(right)
    return round(accuracy, 12), round(float(np.mean([np.log(p[i, c]) for i, c in enumerate(labels)])), 12)


@pytest.mark.parametrize("seed", range(6))
def test_greedy_selection_against_brute_force(seed: int) -> None:
    logits, labels = drawn(seed=seed)
    found = greedy(logits, labels, n_picks=6)
    chosen: tuple[int, ...] = ()
    for pick, accuracy in zip(found.picks, found.accuracies, strict=True):
        best = max(range(3), key=lambda k, so_far=chosen: by_hand(logits, labels, (*so_far, k)))
        assert pick == best
        chosen += (pick,)
        assert accuracy == by_hand(logits, labels, chosen)[0]
    prefixes = [by_hand(logits, labels, found.picks[: n + 1]) for n in range(6)]
    assert found.kept == max(range(6), key=lambda n: prefixes[n][0]) + 1
    assert found.weights == tuple(found.picks[: found.kept].count(k) / found.kept for k in range(3))
    told = accuracies(logits, labels)
    assert told.ensembles["greedy"] >= max(told.members) - 1e-12  # on the clips that it chose on
    assert told.members == pytest.approx([by_hand(logits, labels, (k,))[0] for k in range(3)])
    pairs = [by_hand(logits, labels, pair)[0] for pair in itertools.combinations_with_replacement(range(3), 2)]
    assert found.accuracies[1] <= max(pairs)


def test_a_teacher_that_is_wrong_gets_no_weight() -> None:
    logits, labels = drawn(k=1, n=200)
    assert greedy([-logits[0], logits[0]], labels).weights == (0, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ensemble": "median"}, "expected one of logits, probabilities, greedy"),
        ({"teacher_ckpts": ("a", "b"), "teacher_weights": (1.0,)}, "expected 2, one for each teacher"),
        ({"teacher_weights": (-1.0, 2.0)}, "expected numbers >= 0"),
        ({"teacher_weights": (float("nan"),)}, "expected numbers >= 0"),
        ({"ensemble": "greedy", "teacher_weights": (1.0,)}, "chooses the weights itself"),
    ],
)
def test_distill_config_refuses(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**values)


# --- logits files ---


def test_logits_files_say_whose_they_are(tmp_path: Path) -> None:
    path, names = tmp_path / "l.safetensors", ["a", "b", "c"]
    logits = torch.randn(3, 10)
    save_logits(path, names, logits, {"classes": list(SCENES), "checkpoint": "x"})
    assert read_manifest(path)["checkpoint"] == "x"
    assert torch.equal(load_logits(path, ["c", "a"], SCENES), logits[[2, 0]].half().float())
    with pytest.raises(CheckpointError, match=r"no logits for 2 of 3 clips, first d"):
        load_logits(path, ["a", "d", "e"])
    with pytest.raises(CheckpointError, match="10 logits a clip"):
        load_logits(path, names, ("bus", "tram"))
    save_logits(path, names, logits[:, :4])  # without a manifest: the number of classes tells
    with pytest.raises(CheckpointError, match="4 logits a clip"):
        load_logits(path, names, SCENES)
    for value in (float("nan"), 1e5, -float("inf")):  # 1e5 is beyond float16
        broken = logits.clone()
        broken[1, 3] = value
        with pytest.raises(CheckpointError, match=r"1 of 3 clips have teacher logits that are not finite .* first b"):
            save_logits(path, names, broken)
    safetensors.torch.save_file({"logits": broken}, path, {"filenames": "a\nb\nc"})
    assert load_logits(path, ["a", "c"]).isfinite().all()
    with pytest.raises(CheckpointError, match="logits of 1 clips are not finite, first b"):
        load_logits(path, names)
    safetensors.torch.save_file({"logits": logits}, path, {"filenames": "a\nb"})
    with pytest.raises(CheckpointError, match=r"holds logits \[3, 10\] for 2 filenames"):
        load_logits(path, ["a"])
    safetensors.torch.save_file({"logits": logits}, path)
    for source in (path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=source.name):
            load_logits(source, ["a"])


# --- fine-tuning, logits and ensembles on clips ---


@pytest.fixture(scope="module")
def words(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for two-epoch teachers of 0.02 M parameters on the tiny data set."""
    set_up_process(1)
    return [
        f"data.dataset_dir='{tiny_tau}'",
        f"data.cache_dir='{tmp_path_factory.mktemp('cache')}'",
        *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "train.device=cpu"),
        *("teacher.train.epochs=2", "teacher.train.min_steps=0", "teacher.train.device=cpu"),
        *("teacher.train.batch_size=16", "teacher.frontend.n_mels=32", "teacher.frontend.hop_length=400"),
    ]


VIT_WORDS = ("teacher.model.family=vit", "teacher.model.hidden_size=16", "teacher.model.heads=2")
CNN_WORDS = ("teacher.model.family=cnn", "teacher.model.name=test_efficientnet")


@pytest.fixture(scope="module")
def teachers(words: list[str]) -> tuple[TrialConfig, tuple[Path, Path]]:
    """A configuration, and a ViT and a CNN that were fine-tuned on its clips."""
    made = [fine_tuned_teacher(compose([*words, *more])) for more in ((*VIT_WORDS, "teacher.lr_decay=0.7"), CNN_WORDS)]
    config = compose(words)
    ckpts = tuple(str(folder) for folder in made)
    return replace(config, distill=replace(config.distill, teacher_ckpts=ckpts)), (made[0], made[1])


@pytest.mark.slow
def test_cached_logits_give_the_loss_of_the_teacher_itself(teachers) -> None:
    """Offline equals online on clips that are not augmented, to float16's rounding (2^-11 of a logit)."""
    config, folders = teachers
    data = load_trial_data(config)
    for folder in folders:
        teacher, extra = load_teacher(folder, SCENES)
        front_end = FrontEndConfig(**extra["frontend"])
        assert front_end.sample_rate != config.frontend.sample_rate  # each hears the clip in its own way
        own = load_trial_data(replace(config, frontend=front_end))
        assert filenames(own.train) == filenames(data.train)
        online = predict(teacher, own.train, LogMel(front_end))
        offline = teacher_logits(config, folder, filenames(data.train))
        bound = online.abs().max().item() * 2**-11
        assert (online - offline).abs().max().item() <= bound
        student = torch.randn(online.shape, generator=torch.Generator().manual_seed(1))
        labels = torch.from_numpy(data.train.labels.copy())
        losses = [kd_loss(student, labels, t, 0.3, 2.0).item() for t in (online, offline)]
        # d loss / d logit is at most (1 - alpha) T p (|log p - log q| + ...) a clip: a few times the bound
        assert losses[0] == pytest.approx(losses[1], abs=50 * bound)
        assert not torch.equal(online, offline)  # they are two computations


@pytest.mark.slow
def test_ensembles_reach_the_training_clips(teachers) -> None:
    config, folders = teachers
    data = load_trial_data(config)
    names, held = filenames(data.train), filenames(data.validation)
    single = [teacher_logits(config, folder, names) for folder in folders]
    keys = set()

    def distilled(**values) -> torch.Tensor:
        changed = replace(config, distill=replace(config.distill, **values))
        keys.add(data_key(changed))
        teacher = load_trial_data(changed).train.teacher
        assert teacher is not None
        return teacher

    assert torch.equal(distilled(), combine(single, "logits"))
    assert torch.equal(distilled(ensemble="probabilities"), combine(single, "probabilities"))
    assert torch.equal(distilled(teacher_weights=(1.0, 3.0)), combine(single, "logits", (1, 3)))
    chosen = greedy([teacher_logits(config, f, held) for f in folders], data.validation.labels)
    assert torch.equal(distilled(ensemble="greedy"), combine(single, "greedy", chosen.weights))
    files = tuple(str(logits_file(config, folder)) for folder in folders)
    assert torch.equal(distilled(teacher_ckpts=files), combine(single, "logits"))  # members that are files
    assert len(keys) == 5  # a reused actor loads anew for each


@pytest.mark.slow
def test_the_manifest_of_cached_logits(teachers) -> None:
    config, folders = teachers
    data = load_trial_data(config)
    path = logits_file(config, folders[0])
    manifest = read_manifest(path)
    assert manifest["classes"] == list(SCENES)
    assert manifest["validation"] == validation_hash(data.validation)
    assert manifest["frontend"]["n_mels"] == 32
    summaries = teacher_summary(path), teacher_summary(folders[0])
    assert summaries[0] == summaries[1]
    everything = {*filenames(data.train), *filenames(data.validation)}
    assert len(load_logits(path, sorted(everything), SCENES)) == len(everything)
    stamp = path.stat().st_mtime_ns
    other_division = replace(config, seed=3)  # the same clips, divided otherwise: the same logits
    assert logits_file(other_division, folders[0]) == path
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_teacher_that_diverges_keeps_its_best_epoch(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import trainables.teachers.fine_tuning as module

    epochs, real = [], module.train_epoch

    def train(teacher, *rest):
        epochs.append(1)
        if len(epochs) == 2:
            raise TrainingDiverged("teacher, epoch 2: the loss is nan at step 1 of 4")
        return real(teacher, *rest)

    monkeypatch.setattr(module, "train_epoch", train)
    config = compose([*words, *VIT_WORDS, "teacher.train.lr=0.01"])
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 1 of 4; .* 1, is saved in ") as error:
        fine_tuned_teacher(config)
    kept = Path(str(error.value).split(" is saved in ")[1].partition(": ")[0])
    _, extra = load_teacher(kept, SCENES)
    assert extra["epoch"] == 1
    assert not kept.with_name(kept.name.removesuffix("-diverged")).exists()  # no teacher of that key
    epochs.clear()
    monkeypatch.undo()
    assert fine_tuned_teacher(config) == kept.with_name(kept.name.removesuffix("-diverged"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_teacher(words: list[str], tmp_path: Path) -> None:
    """Also with what draws in the network: patchout and dropout."""
    random = ("teacher.model.patchout_freq=1", "teacher.model.dropout=0.1", "teacher.train.ema_decay=0.9")
    config = compose([*words, *VIT_WORDS, *random, "teacher.augment.mixup_alpha=0.3", "teacher.train.accumulate=2"])
    again = replace(config, data=replace(config.data, cache_dir=str(tmp_path)))
    torch.manual_seed(1)
    first = fine_tuned_teacher(config)
    torch.manual_seed(2)
    second = fine_tuned_teacher(again)
    assert first.name == second.name
    assert folder_hash(first) == folder_hash(second)
    assert load_teacher(first, SCENES)[0].describe()["config"]["patchout_freq"] == 1


@pytest.mark.slow
def test_a_pretrained_file_is_known_by_its_content(
    words: list[str], timm_folders: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "weights.safetensors"
    stored = safetensors.torch.load_file(timm_folders["test_efficientnet"] / "model.safetensors")
    safetensors.torch.save_file(stored, source)
    config = compose([*words, *CNN_WORDS, f"teacher.model.pretrained='{source}'", "teacher.train.epochs=1"])
    first = fine_tuned_teacher(config)
    assert fine_tuned_teacher(config) == first
    stored["conv_stem.weight"] *= 2
    safetensors.torch.save_file(stored, source)
    assert fine_tuned_teacher(config) != first


def test_amp_that_the_device_lacks(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="fp16"):
        fine_tuned_teacher(compose([*words, *VIT_WORDS, "teacher.train.amp=fp16"]))
    with pytest.raises(ConfigError, match=r"teacher\.lr_decay=0\.0: expected a factor"):
        compose([*words, "teacher.lr_decay=0"])


# --- shipped recipes and commands ---


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIG_DIR / "teacher").glob("*.yaml")))
def test_shipped_recipes_build(name: str) -> None:
    """Each at its full size, without the weights that a hub would give; whatever the profile."""
    quick, full = (compose([f"teacher={name}", f"profile={p}"]).teacher for p in ("quick", "full"))
    assert (quick.frontend, quick.train, quick.augment) == (full.frontend, full.train, full.augment)
    c, sizes = quick, {"hidden_size": 768, "layers": 12, "heads": 12, "patch_size": 16, "stride": 10}
    model = replace(c.model, pretrained=None, **(sizes if name == "ast" else {}))
    with torch.device("meta"):
        teacher = build_teacher(model, 10, c.frontend.n_mels, c.frontend.frames)
    millions = sum(p.numel() for p in teacher.parameters()) / 1e6
    expected = {"ast": 85.3, "vit": 85.4, "cnn": 3.4, "ast_small": 0.4, "vit_small": 0.4, "cnn_small": 0.6}
    assert millions == pytest.approx(expected[name], abs=0.1)


def test_the_default_teacher_stays() -> None:
    assert compose(["teacher=ast_small"]) == compose([])


@pytest.mark.slow
def test_commands(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(tmp_path / "runs")]
    base = [*storage, *(w for w in words if "cache_dir" not in w)]

    def run(command, *more: str) -> tuple[int, str]:
        rc = command.main([*base, *more])
        return rc, " ".join(capsys.readouterr().out.split())

    one, two = (str(tmp_path / name) for name in ("t1.ckpt", "t2.ckpt"))
    rc, told = run(finetune_teacher, *VIT_WORDS, "--out", one)
    assert rc == 0
    assert "validation: macro_avg_acc" in told
    assert one in told
    accuracy = json.loads((Path(one) / "teacher.json").read_text())["val_macro_avg_acc"]
    assert f"macro_avg_acc {accuracy:.1%}" in told
    rc, told = run(finetune_teacher, *VIT_WORDS, "--out", one)
    assert rc == 0
    assert "there already" in told
    rc, told = run(finetune_teacher, *CNN_WORDS, "--out", one)
    assert rc == 2
    assert "another teacher" in told
    (tmp_path / "mine").mkdir()
    rc, told = run(finetune_teacher, *CNN_WORDS, "--out", str(tmp_path / "mine"))
    assert rc == 2
    assert "mine" in told
    assert run(finetune_teacher, *CNN_WORDS, "--out", two)[0] == 0

    rc, told = run(cache_logits, f"--teacher_ckpts={one},{two}")
    assert rc == 0
    for part in ("logits", "probabilities", "greedy", "optimistic", ".safetensors", f"{accuracy:.1%}"):
        assert part in told
    files = sorted((tmp_path / "runs" / "cache").glob("logits-*.safetensors"))
    assert len(files) == 2
    assert run(cache_logits, f"--teacher_ckpts={files[0]},{two}")[0] == 0
    rc, told = run(cache_logits)
    assert rc == 2
    assert "--teacher_ckpts is missing" in told
    rc, told = run(cache_logits, f"--teacher_ckpts={one},{two}", "--teacher_weights=1,2,3")
    assert rc == 2
    assert "expected 2, one for each teacher" in told


@pytest.mark.slow
def test_compare_teachers(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("teacher.model.hidden_size=16", "teacher.model.layers=1", "teacher.train.epochs=1")
    base = ["--storage", str(tmp_path), *(w for w in words if "cache_dir" not in w), *small]
    chosen = ["--teachers", "vit_small,ast_small", "--subsets", "100", "--seeds", "2"]
    assert compare_teachers.main([*base, *chosen]) == 0
    first = (tmp_path / "teachers.csv").read_text()
    (row,) = csv.DictReader(first.splitlines())
    names = ["subset", "seeds", "train_clips", "validation_clips"]
    for name in ("vit_small", "ast_small", "logits", "probabilities", "greedy"):
        names += [name, f"{name}_std"]
    assert list(row) == names
    assert float(row["greedy"]) >= max(float(row["vit_small"]), float(row["ast_small"])) - 1e-9
    folders = sorted((tmp_path / "cache").glob("teacher-????????????????"))
    assert len(folders) == 4
    accuracy = {f: json.loads((f / "teacher.json").read_text()) for f in folders}
    vits = [a["val_macro_avg_acc"] for a in accuracy.values() if a["model"]["config"]["family"] == "vit"]
    assert float(row["vit_small"]) == pytest.approx(sum(vits) / 2, abs=1e-6)
    stamps = [f.stat().st_mtime_ns for f in folders]
    capsys.readouterr()
    assert compare_teachers.main([*base, *chosen]) == 0  # a repeat trains nothing
    assert [f.stat().st_mtime_ns for f in folders] == stamps
    assert (tmp_path / "teachers.csv").read_text() == first
    assert "validation macro accuracy" in capsys.readouterr().out
    for wrong, message in (
        (["--teachers", "vit_smal"], "--teachers: unknown teacher 'vit_smal'; expected some of ast,"),
        (["--teachers", "ast,ast"], "--teachers ast,ast: "),
        (["--subsets", "7"], "--subsets: unknown subset '7'; expected some of 5, 10, 25, 50, 100"),
        (["--seeds", "0"], "--seeds 0: "),
        (["--subset=25"], "--subset=25: "),
    ):
        assert compare_teachers.main([*base, *wrong]) == 2
        assert message in " ".join(capsys.readouterr().out.split())
