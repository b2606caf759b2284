"""The audio spectrogram transformer as a teacher (`ascmodels/teachers/ast.py`)."""

import pytest
import torch

from ascmodels.checkpoint import CheckpointError
from ascmodels.teachers import TeacherModelConfig, build_teacher, load_teacher, save_teacher
from ascmodels.teachers.ast import fit_frames
from tests.support.ascmodels.students import features, logits_of

TINY = TeacherModelConfig(hidden_size=16, layers=2, heads=2, patch_size=4, stride=4)
CLASSES = ("bus", "tram", "park")


@pytest.fixture
def offline(monkeypatch):
    """Make Hugging Face libraries fail at once instead of waiting for the network."""
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
    """The patch embedding is a convolution over our features [F, T]: moving a patch in T moves its token."""
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
    ten = build_teacher(config, 10, 16, 24).eval()  # a new classifier, the same features
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
