"""Checkpoints that declare more than they hold: they are refused before memory is taken, with an error of one line."""

import json
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ascmodels.checkpoint import CheckpointError, load_student, load_tensors, save_student
from ascmodels.students import StudentConfig
from ascmodels.teachers import TeacherModelConfig, build_teacher, load_teacher, read_extra, save_teacher
from tests.support.ascmodels.students import SMALL, seeded

DEEP = "[" * 100_000
MIB = 2**10  # ru_maxrss is in KiB


@pytest.fixture
def student(tmp_path: Path) -> Path:
    save_student(tmp_path / "student", seeded(StudentConfig(**SMALL)), {})
    return tmp_path / "student"


def refused(load: Callable[[], Any], named: Path) -> None:
    """Check that `load` raises CheckpointError in one line that names `named`, with little memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as error:
        load()
    assert str(named) in str(error.value)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * MIB


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    for key, value in values.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "values",
    [
        {"n_classes": 4_000_000},
        {"n_classes": 10**30},
        {"n_classes": "ten"},
        {"n_classes": None},
        {"config": {"n_blocks": [10**9]}},
        {"config": {"n_blocks": "ab"}},
        {"config": {"n_blocks": [10**9, -(10**9)]}},
        {"widths": {"out": [10**9]}},
        {"widths": {"out": []}},
        {"widths": [3]},
        {"config": []},
        {"extra": 3},
    ],
)
def test_a_student_that_declares_another_size_than_its_weights(student: Path, values: dict[str, Any]) -> None:
    change(student / "student.json", **values)
    refused(lambda: load_student(student), student)


def test_a_file_of_brackets_is_no_student_and_no_teacher(student: Path) -> None:
    for text in (DEEP, f'{{"extra": {DEEP}', "[]"):
        (student / "student.json").write_text(text)
        refused(lambda: load_student(student), student / "student.json")
        (student / "teacher.json").write_text(text)
        refused(lambda: read_extra(student), student / "teacher.json")


def test_weights_of_another_kind_are_refused(student: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(3)}, student / "weights.safetensors")
    refused(lambda: load_student(student), student)
    (student / "weights.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    refused(lambda: load_student(student), student)
    (student / "weights.safetensors").unlink()
    (student / "weights.safetensors").mkdir()
    refused(lambda: load_student(student), student)


class Call:
    """An object whose pickle calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def rewrite(file: Path, compression: int, pickled: bytes | None = None) -> None:
    """Write the archive `file` of `torch.save` anew, with `pickled` in place of its pickle."""
    with zipfile.ZipFile(file) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", compression) as new:
        for name, data in content.items():
            new.writestr(name, pickled if pickled is not None and name.endswith("data.pkl") else data)


@pytest.mark.slow
def test_a_file_of_tensors_takes_no_more_memory_than_its_size(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    torch.save({"t": torch.zeros(2**29, dtype=torch.uint8)}, file)
    rewrite(file, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 2**20
    refused(lambda: load_tensors(file), file)
    for content in (
        {"a": torch.zeros(1).expand(10**10)},
        {"a": [{"b": (torch.zeros(1).expand(10, 10**9),)}]},
        [torch.zeros(3)],
    ):
        torch.save(content, file)
        refused(lambda: load_tensors(file), file)
    torch.save({"t": torch.arange(6).reshape(2, 3).T, "half": torch.arange(6)[2:4]}, file)
    assert load_tensors(file)["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert load_tensors(file)["half"].tolist() == [2, 3]
    for calls in (Call(bytearray, 2**30), [Call(set, [1])], {"a": Call(bytearray, 2**30)}):
        rewrite(file, zipfile.ZIP_STORED, pickle.dumps(calls, protocol=2))
        refused(lambda: load_tensors(file), file)
    rewrite(file, zipfile.ZIP_STORED, pickle.dumps({"n": 3}, protocol=2))
    assert load_tensors(file) == {"n": 3}


@pytest.fixture(scope="module", params=["ast", "vit"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TeacherModelConfig(family=request.param, hidden_size=8, layers=1, heads=2)
    folder = tmp_path_factory.mktemp(request.param) / "teacher"
    save_teacher(folder, build_teacher(config, 2, 16, 24), {"classes": ["a", "b"]})
    assert load_teacher(folder, ("a", "b"))[0].n_classes == 2
    return folder


@pytest.mark.slow  # imports transformers and timm
def test_a_damaged_teacher_is_refused_in_one_line(teacher: Path) -> None:
    """Truncated files, other files, and sizes that the weights do not have."""

    def load() -> Any:
        return load_teacher(teacher, ("a", "b"))

    described = teacher / ("config.json" if (teacher / "config.json").is_file() else "teacher.json")
    for file in (teacher / "teacher.json", described, teacher / "model.safetensors"):
        content = file.read_bytes()
        for damaged in (content[: len(content) // 2], b"", b"[]", DEEP.encode(), pickle.dumps(Call(print, "run"))):
            file.write_bytes(damaged)
            refused(load, teacher)
        file.unlink()
        refused(load, teacher)
        file.write_bytes(content)
    content = described.read_text()
    for large in (
        {"hidden_size": 8_000, "intermediate_size": 32_000},
        {"layers": 10**8, "num_hidden_layers": 10**8},
        {"n_mels": 10**8, "num_mel_bins": 10**8},
        {"hidden_size": "8", "intermediate_size": None},
    ):
        if described.name == "config.json":
            change(described, **large)
        else:
            change(described, model=json.loads(content)["model"] | {"n_mels": large.get("n_mels", 16)})
            changed = json.loads(described.read_text())
            changed["model"]["config"] |= {k: v for k, v in large.items() if k in changed["model"]["config"]}
            described.write_text(json.dumps(changed))
        refused(load, teacher)
        described.write_text(content)
    (teacher / "pytorch_model.bin").write_bytes(pickle.dumps(Call(print, "run")))
    (teacher / "model.safetensors").rename(teacher / "kept")
    refused(load, teacher)
    (teacher / "kept").rename(teacher / "model.safetensors")
    load()
