"""The files that the authors of BEATs and PaSST publish: random weights in their layouts give the networks' outputs."""

from pathlib import Path

import pytest
import torch

from ascmodels.checkpoint import CheckpointError
from ascmodels.config.teacher import TeacherModelConfig
from ascmodels.teachers import Teacher, build_teacher, load_teacher, parameter_groups, save_teacher
from data.tau import SCENES
from tests.support.ascmodels.published import BEATS_CFG, beats_shapes, passt_shapes, weights, write_beats, write_passt

# embeddings (first six values) of independent implementations with the same weights and features: speechbrain 1.1.2
# (BEATs) and hear21passt 0.0.26 (PaSST); 400 frames give 200 patches, so some distances share a bias
BEATS = {
    98: [-0.17261, -0.07377, 0.01247, 0.97696, 0.75068, -0.56073],
    400: [-0.18192, -0.35601, 0.06189, 1.08972, 0.65520, -0.32682],
}
PASST = [-1.43736, -0.83313, 0.08796, -0.44211, 1.12194, 0.88871]


def features(frames: int) -> torch.Tensor:
    return torch.randn(1, 1, 128, frames, generator=torch.Generator().manual_seed(0))


def beats(path: Path, frames: int = 98, **changes: object) -> Teacher:
    config = TeacherModelConfig(family="beats", pretrained=str(path), stride=16, **changes)  # type: ignore[arg-type]
    return build_teacher(config, len(SCENES), 128, frames).eval()


def passt(path: Path, frames: int = 101, n_mels: int = 128, stride: int = 10) -> Teacher:
    name = "deit_tiny_distilled_patch16_224"
    config = TeacherModelConfig(family="vit", name=name, pretrained=str(path), stride=stride)
    return build_teacher(config, len(SCENES), n_mels, frames).eval()


@pytest.mark.parametrize("frames", BEATS)
def test_beats_equals_an_independent_implementation(tmp_path: Path, frames: int) -> None:
    teacher = beats(write_beats(tmp_path / "b.pt"), frames)
    with torch.no_grad():
        found = teacher.features(features(frames))
    assert found.shape == (1, teacher.embedding_size)
    assert found[0, :6].tolist() == pytest.approx(BEATS[frames], abs=2e-5)


def test_passt_equals_an_independent_implementation(tmp_path: Path) -> None:
    teacher = passt(write_passt(tmp_path / "p.pt"))
    with torch.no_grad():
        found = teacher.features(features(101))
    assert found[0, :6].tolist() == pytest.approx(PASST, abs=1e-4)


@pytest.mark.parametrize("kind", ["beats", "passt"])
def test_fine_tuned_and_loaded_again(tmp_path: Path, kind: str) -> None:
    """A step of training changes every tensor; the saved teacher does not need the published file."""
    path = write_beats(tmp_path / "b.pt") if kind == "beats" else write_passt(tmp_path / "p.pt")
    teacher = (beats(path, dropout=0.1) if kind == "beats" else passt(path)).train()
    before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(teacher, 0.75), lr=1e-3)
    x = features(98 if kind == "beats" else 101)
    torch.nn.functional.cross_entropy(teacher(x), torch.tensor([3])).backward()
    optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in teacher.named_parameters())
    save_teacher(tmp_path / "t", teacher.eval(), {"classes": list(SCENES)})
    path.unlink()
    loaded, _ = load_teacher(tmp_path / "t", SCENES)
    with torch.no_grad():
        assert torch.equal(loaded(x), teacher(x))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"deep_norm": False}, "deep_norm=False"),
        ({"max_distance": 1280}, "max_distance=1280"),
        ({"encoder_ffn_embed_dim": 64}, "encoder_ffn_embed_dim=64"),
        ({"encoder_embed_dim": "x"}, "encoder_ffn_embed_dim"),
        ({"encoder_layers": 10**6}, "1000000 layers"),
        ({"encoder_layers": 3}, "layers.2."),
        ({"encoder_attention_heads": 5}, "encoder_attention_heads=5"),
    ],
)
def test_other_beats_are_refused(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    path = write_beats(tmp_path / "b.pt", **changes)
    with pytest.raises(CheckpointError) as error:
        beats(path)
    assert named in str(error.value) and str(path) in str(error.value)


def test_files_that_are_not_beats_are_refused(tmp_path: Path) -> None:
    model = weights(beats_shapes())
    for name, content in {
        "no_cfg": {"model": model},
        "passt": weights({"cls_token": (1, 1, 8)}),
        "missing": {"cfg": BEATS_CFG, "model": {k: v for k, v in model.items() if "fc1" not in k}},
        "wide": {"cfg": BEATS_CFG, "model": model | {"layer_norm.weight": torch.zeros(513)}},
        "text": {"cfg": BEATS_CFG, "model": model | {"layer_norm.weight": "x"}},
    }.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError) as error:
            beats(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(CheckpointError, match="absent"):
        beats(tmp_path / "absent.pt")


def test_passt_for_other_features_is_refused(tmp_path: Path) -> None:
    path = write_passt(tmp_path / "p.pt")
    for words in ({"n_mels": 64}, {"stride": 16}, {"frames": 1200}):
        with pytest.raises(CheckpointError, match="12 rows"):
            passt(path, **words)
    torch.save(weights({k: v for k, v in passt_shapes().items() if k != "time_new_pos_embed"}), path)
    with pytest.raises(CheckpointError, match="cannot be used"):
        passt(path)
