"""Instructions of pickles, from which tests write files in the format of `torch.save` that `torch.save` never writes.

    write(path, records({"t": tensor}) | {"data.pkl": pickle_of(mapping(t=text("x")))})

Each function returns the bytes of the instructions that put one value on the stack (see Python's `pickletools`).
"""

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ORDERED_DICT = b"ccollections\nOrderedDict\n"


def pickle_of(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def values(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + values(*arguments) + b"R"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(n_elements: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return values(text("storage"), named("torch", kind), text(key), text("cpu"), integer(n_elements)) + b"Q"


def tensor(
    content: bytes, offset: int, size: Sequence[int], stride: Sequence[int], hooks: bytes = ORDERED_DICT + b")R"
) -> bytes:
    shape, steps = (values(*map(integer, numbers)) for numbers in (size, stride))
    return call(named("torch._utils", "_rebuild_tensor_v2"), content, integer(offset), shape, steps, b"\x88", hooks)


def doubled(kind: bytes, times: int) -> bytes:
    """Return a list of values, each of which contains the one before it twice; the last one is in the memo.

    `kind` is b"t" (tuples) or b"l" (lists).
    """
    parts = [text("leaf") + b"q\x00"]
    for i in range(times):
        twice = b"h" + bytes([i, ord("h"), i])
        parts.append((b"]q" + bytes([i + 1]) + b"(" + twice + b"e") if kind == b"l" else b"(" + twice + b"t")
        parts.append(b"q" + bytes([i + 1]))
    return b"](" + b"".join(parts) + b"e"


def records(content: Any) -> dict[str, bytes]:
    """Return the entries of the archive that `torch.save` writes for `content`, without the archive's first folder."""
    stream = io.BytesIO()
    torch.save(content, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, entries: Mapping[str, bytes]) -> None:
    """Write an archive with the `entries`, not compressed, to `path`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
