"""Checkpoints of students: round trips, damaged files, failed writes (`ascmodels/checkpoint.py`)."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ascmodels.checkpoint import CheckpointError, load_student, load_tensors, save_student
from ascmodels.compress.pruning import prune
from ascmodels.students import Student, StudentConfig, build_student
from tests.support import workers
from tests.support.ascmodels.students import ALL, SMALL, features, logits_of, seeded, train_a_little


@pytest.fixture(scope="module")
def networks() -> dict[str, Student]:
    """Return trained networks: a plain and a dense training form, the pruned dense one, and the fused forms."""
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
    assert len({p.name for p in (tmp_path / "deep").iterdir()}) == len(networks)  # no temporary folders are left


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
    with pytest.raises(CheckpointError, match=r"stem\.2\.branches\.3x3\.0\.weight .*\[8, 2, 3, 3\]"):
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
        ({"widths": None}, "Widths"),
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
    """Before each call that touches the disk, the folder is the complete old one, the complete new one, or absent."""
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
    """An object that writes a file when it is unpickled."""

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
    torch.load(tmp_path / "bomb.pt", weights_only=False)  # loading it as a pickle does write the file
    assert (tmp_path / "exploded").exists()
