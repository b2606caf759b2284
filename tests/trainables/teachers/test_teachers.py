"""Networks of teachers: families, patches, pretrained weights, layer-wise learning rates."""

import json
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from ascmodels.checkpoint import CheckpointError
from ascmodels.config.teacher import FAMILIES
from ascmodels.teachers import (
    _CLASSES,
    TeacherModelConfig,
    load_teacher,
    parameter_groups,
    save_teacher,
)
from ascmodels.teachers.timm import Patchout, patch_grid
from data.tau import SCENES
from tests.support.trainables.teacher_networks import ALL, FRAMES, N_MELS, VIT_TINY, built, features


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


@pytest.mark.parametrize("name", ["beats", "vit", "named vit", "cnn"])
def test_pretrained_in_a_checkpoint_is_not_followed(name: str, tmp_path: Path, monkeypatch) -> None:
    """The folder has all weights: whoever wrote its teacher.json must not send the reader to a hub."""
    save_teacher(tmp_path / "t", built(ALL[name]), {"classes": list(SCENES)})
    path = tmp_path / "t" / "teacher.json"
    content = json.loads(path.read_text())
    content["model"]["config"]["pretrained"] = "stranger/network"
    path.write_text(json.dumps(content))
    connected, here, real = [], threading.get_ident(), socket.getaddrinfo

    def look_up(host: str, *more: Any, **options: Any) -> list[Any]:
        if threading.get_ident() != here:  # W&B, in a thread that an earlier test left
            return real(host, *more, **options)
        connected.append(host)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    load_teacher(tmp_path / "t", SCENES)
    assert not connected


@pytest.mark.parametrize("name", ALL)
def test_the_embedding_is_what_the_classifier_sees(name: str) -> None:
    """The classifier applied to the embedding gives the logits."""
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
        ({"family": "hubert"}, "teacher.model.family='hubert': expected one of ast, beats, vit, cnn"),
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
        ({"family": "vit", "patchout_freq": 4}, r"patchout_freq=4\b.* below 4\b.* below 5\b"),
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
        remaining = drop(tokens)
        assert torch.equal(remaining[:, :2], tokens[:, :2])  # class tokens are kept
        cells = remaining[0, 2:, 0].long() - 2
        rows, columns = (cells // 5).unique(), (cells % 5).unique()
        assert torch.equal(cells.view(3, 3), 5 * rows[:, None] + columns)  # complete rows and columns, in order
        seen.add((tuple(rows.tolist()), tuple(columns.tolist())))
    assert len(seen) > 15
    assert torch.equal(drop.eval()(tokens), tokens)


def test_moving_a_patch_moves_its_token() -> None:
    """Frequency is the first axis of the patch grid, as in our features."""
    teacher = built(VIT_TINY).eval()
    x = torch.zeros(1, 1, N_MELS, FRAMES)
    x[:, :, 8:16, 24:32] = 1.0
    with torch.no_grad():
        tokens = teacher.network.patch_embed(x)[0]
    assert ((tokens - tokens[0]).abs().amax(dim=1) > 1e-6).nonzero().flatten().tolist() == [1 * 5 + 3]


@pytest.mark.parametrize("how", ["folder", "file", "torch file"])
def test_pretrained_cnn_of_three_channels(how: str, timm_folders: dict[str, Path], tmp_path: Path) -> None:
    """The first convolution is summed over the colours, the head is new, all other weights are the checkpoint's."""
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
        ("test_efficientnet", tmp_path / "absent.safetensors", "absent.safetensors. does not exist"),
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
    assert list(uniform) == ["params"]  # without layer-wise rates there is one group
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
    elif name == "beats":
        stem, block, head = "patches.weight", "layers.{}.rise.weight", "classifier.weight"
        assert n_blocks == 2
    else:
        stem, block, head = "pos_embed", "blocks.{}.mlp.fc1.weight", "head.weight"
        assert n_blocks == len(teacher.network.blocks)
    found = [next(d for n, d in layers.items() if part in n) for part in (stem, head)]
    assert found == [0, n_blocks + 1]
    for i in range(n_blocks):
        assert next(d for n, d in layers.items() if n.endswith(block.format(i))) == i + 1
