"""Files of `torch.save`: valid ones are read as by `torch.load`, and crafted ones give nothing but tensors."""

import io
import os
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ascmodels.checkpoint import CheckpointError, load_tensors
from ascmodels.tensor_file import MAX_PICKLE_BYTES, read_tensors
from tests.support.ascmodels import pickles as p

EVIL = p.pickle_of(p.mapping(t=p.call(p.named("builtins", "bytearray"), p.integer(3))))
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16),
    *(torch.float32, torch.float64, torch.complex64, torch.complex128),
)


def assert_equal(found: Any, expected: Any) -> None:
    """Check that two values have the same types, values and shapes, and tensors the same bits."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        same = ("dtype", "shape", "device", "requires_grad", "is_leaf")
        assert [getattr(found, name) for name in same] == [getattr(expected, name) for name in same]
        assert (found.stride(), found.storage_offset()) == (expected.stride(), expected.storage_offset())
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_equal(found[key], value)
        assert_equal(getattr(found, "_metadata", None), getattr(expected, "_metadata", None))
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def random_value(rng: random.Random, depth: int, shared: list[Any]) -> Any:
    """Return a random plain value or tensor; some are views, and some occur twice."""
    kind = rng.randrange(12 if depth else 8)
    if kind < 3:
        base = torch.randn(rng.randrange(5), rng.randrange(1, 4)).to(rng.choice(DTYPES))
        value = rng.choice((base, base.T, base[1:], base[:, :1], base.reshape(-1), base.sum()))
    elif kind < 7:
        numbers = (rng.getrandbits(rng.randrange(80)), -rng.getrandbits(40), rng.gauss(0, 1e3), 2**31, float("inf"))
        value = rng.choice((*numbers, None, True, "", "é\u202e" * rng.randrange(300)))
    elif kind == 7:
        value = rng.choice(shared) if shared else ()
    else:
        parts = [random_value(rng, depth - 1, shared) for _ in range(rng.randrange(5))]
        keys: list[Any] = [rng.choice((i, f"k{i}", i + 0.5)) for i in range(len(parts))]
        value = rng.choice((parts, tuple(parts), dict(zip(keys, parts, strict=True)), OrderedDict(enumerate(parts))))
    shared.append(value)
    return value


def test_what_torch_writes_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    groups = [{"params": [0, 1], "betas": (0.9, 0.999), "fused": None}, {"params": [2], "betas": (0.9, 0.999)}]
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "mean": model[0].weight.grad}}, "param_groups": groups}
    common = torch.arange(24.0)
    contents = [
        {str(dtype): torch.arange(6).reshape(2, 3).T.to(dtype) for dtype in DTYPES},
        {"model": model.state_dict(), "optimizer": optimizer},
        dict(model.named_parameters()),
        {"a": common, "b": common[4:8], "c": common.reshape(4, 6).T[1:, ::2], "none": torch.empty(0, 3), "x": ()},
        {"many": [torch.zeros(1)] * 1000 + [{}] * 300 + list(range(3000))},
        *({"x": random_value(random.Random(seed), 4, [])} for seed in range(60)),
    ]
    for content in contents:
        torch.save(content, tmp_path / "state.pt")
        found = load_tensors(tmp_path / "state.pt")
        assert_equal(found, torch.load(tmp_path / "state.pt", weights_only=True))
    torch.save(contents[3], tmp_path / "state.pt")
    found = load_tensors(tmp_path / "state.pt")
    found["a"][5] = -1  # one storage is common to the tensors, as when they were saved
    assert (float(found["b"][1]), float(found["c"][4, 0]), float(found["c"][4, 1])) == (-1, -1, 17)


GOOD = p.records({"t": torch.arange(4.0)})
FLOATS = p.storage(4)
NAMED = p.named("torch._utils", "_rebuild_tensor_v2")
SET_STATE = p.values(FLOATS, p.integer(0), p.values(p.integer(9)), p.values(p.integer(1)))
CRAFTED = {
    "a storage larger than its record": p.mapping(t=p.tensor(p.storage(10**6), 0, [10**6], [1])),
    "a storage smaller than its record": p.mapping(t=p.tensor(p.storage(3), 0, [3], [1])),
    "a negative storage": p.mapping(t=p.tensor(p.storage(-4), 0, [1], [1])),
    "a storage of another path": p.mapping(t=p.tensor(p.storage(1, "../byteorder"), 0, [1], [1])),
    "a tensor larger than its storage": p.mapping(t=p.tensor(FLOATS, 0, [10**9], [1])),
    "a tensor that repeats its storage": p.mapping(t=p.tensor(FLOATS, 0, [10**9], [0])),
    "a tensor before its storage": p.mapping(t=p.tensor(FLOATS, -1, [1], [1])),
    "a tensor after its storage": p.mapping(t=p.tensor(FLOATS, 4, [1], [1])),
    "a negative stride": p.mapping(t=p.tensor(FLOATS, 3, [4], [-1])),
    "many dimensions": p.mapping(t=p.tensor(FLOATS, 0, [2**2000] * 3000, [1] * 3000)),
    "hooks": p.mapping(t=p.tensor(FLOATS, 0, [4], [1], p.mapping(h=NAMED))),
    "a state of a tensor": p.mapping(t=p.tensor(FLOATS, 0, [4], [1]) + SET_STATE + b"b"),
    "a state of a dict": p.mapping(t=p.ORDERED_DICT + b")R" + p.mapping(items=NAMED) + b"b"),
    "a function as metadata": p.mapping(t=p.ORDERED_DICT + b")R" + p.mapping(_metadata=NAMED) + b"b"),
    "a function as a value": p.mapping(t=NAMED),
    "a class as a value": p.mapping(t=p.ORDERED_DICT),
    "a dtype as a value": p.mapping(t=p.named("torch", "FloatStorage")),
    "a storage as a value": p.mapping(t=FLOATS),
    "a call of a storage": p.mapping(t=p.call(p.named("torch", "FloatStorage"), p.integer(10**9))),
    "an untyped storage": p.mapping(t=p.call(p.named("torch", "UntypedStorage"), p.integer(10**9))),
    "an ordered dict of values": p.mapping(t=p.call(p.ORDERED_DICT, b"]")),
    "a new object": p.mapping(t=p.ORDERED_DICT + b")\x81"),
    "a builtin": EVIL[2:-1],
    "a name of Python 2": p.mapping(t=p.named("__builtin__", "bytearray")),
    "lists that double 60 times": p.mapping(a=p.doubled(b"l", 60)),
    "tuples that double 60 times as a key": p.mapping(a=p.doubled(b"t", 60), b=b"}h\x3cNs"),
    "a list in itself": p.mapping(t=b"]q\x00h\x00a"),
    "lists nested 10,000 times": p.mapping(t=b"]" * 10_000 + b"a" * 9_999),
    "a list as the whole": b"]",
    "nothing": b"",
    "too long": b"N" * MAX_PICKLE_BYTES,
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_pickle_is_refused(tmp_path: Path, name: str) -> None:
    p.write(tmp_path / "state.pt", GOOD | {"data.pkl": p.pickle_of(CRAFTED[name])})
    with pytest.raises(CheckpointError) as error:
        load_tensors(tmp_path / "state.pt")
    assert str(tmp_path / "state.pt") in str(error.value)
    assert "\n" not in str(error.value)
    p.write(tmp_path / "state.pt", GOOD)
    assert load_tensors(tmp_path / "state.pt")["t"].tolist() == [0, 1, 2, 3]


def archive_of(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


def legacy(content: Any) -> bytes:
    """Return a file of `torch.save` in the format before PyTorch 1.6, a sequence of pickles."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def archives() -> dict[str, bytes]:
    """Return crafted archives whose checked pickle is good, and from which another reader may read EVIL."""
    good, evil = archive_of(GOOD), archive_of(GOOD | {"data.pkl": EVIL})
    nul = archive_of(
        {n: d for n, d in GOOD.items() if n != "data.pkl"} | {"data.pkl__": GOOD["data.pkl"], "DATA.pkl": EVIL}
    )
    header = good.index(b"archive/data.pkl")
    twice = io.BytesIO(good)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", EVIL)
    deflated = io.BytesIO(archive_of({n: d for n, d in GOOD.items() if n != "data.pkl"}))
    with zipfile.ZipFile(deflated, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", GOOD["data.pkl"])
    return {
        "the format before PyTorch 1.6 in front": legacy({"t": bytearray(3)}) + good,
        "only the format before PyTorch 1.6": legacy({"t": torch.zeros(3)}),
        "another archive in front": evil + good,
        "names that differ in case": archive_of({"DATA.PKL": EVIL, **GOOD, "Data.pkl": EVIL}),
        "a name with a NUL character": nul.replace(b"data.pkl__", b"data.pkl\0_"),
        "a local header with another name": good[:header] + b"archive/DATA.PKL" + good[header + 16 :],
        "a code archive (TorchScript)": archive_of(GOOD | {"constants.pkl": EVIL, "code/__torch__.py": b"print()"}),
        "another byte order": archive_of(GOOD | {"byteorder": b"big"}),
        "two entries of the same name": twice.getvalue(),
        "a compressed entry": deflated.getvalue(),
        "other values in the fields of versions": archive_of(
            GOOD | {"version": b"9" * 30, ".format_version": EVIL, ".data/serialization_id": EVIL}
        ),
        "a changed bit in a tensor": good.replace(GOOD["data/0"], b"\x01" + GOOD["data/0"][1:]),
    }


@pytest.mark.parametrize("name", archives())
def test_a_crafted_archive_gives_its_checked_tensors_or_an_error(tmp_path: Path, name: str) -> None:
    file = tmp_path / "state.pt"
    file.write_bytes(archives()[name])
    try:
        assert {k: v.tolist() for k, v in load_tensors(file).items()} == {"t": [0, 1, 2, 3]}
    except CheckpointError as error:
        assert str(file) in str(error) and "\n" not in str(error)


def test_an_archive_of_64_bit_sizes_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "state.pt", "w") as archive:
        for name, data in GOOD.items():
            with archive.open(f"archive/{name}", "w", force_zip64=True) as stream:
                stream.write(data)
    assert read_tensors(tmp_path / "state.pt")["t"].tolist() == [0, 1, 2, 3]


def test_a_pipe_a_device_or_a_folder_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    (tmp_path / "folder.pt").mkdir()
    for name in ("pipe.pt", "zero.pt", "folder.pt", "missing.pt"):
        with pytest.raises(CheckpointError, match=rf"{name} is missing"):
            load_tensors(tmp_path / name)
