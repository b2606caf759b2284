"""Read a file of `torch.save` without a pickle loader: `read_tensors(path)` returns a dict of tensors and plain values.

Such a file is a zip archive. Its entry `<name>/data.pkl` is a pickle, and `<name>/data/<key>` are the bytes of the
storages of its tensors. A pickle is a list of instructions for a stack machine (documented in Python's `pickletools`).
`_run` executes only those instructions that `torch.save` writes for dicts, lists, tuples, numbers, strings, tensors and
parameters. It knows two functions and the types of storages, and none of them is looked up by its name.

`torch.load(weights_only=True)` is not used, because it locates the entries of the archive by another code than a check
in Python: a file can pass the check, and then give other content (a second format before the archive, a name with a NUL
character). It also returns functions and classes as values, and hashes nested tuples for an unlimited time.
"""

import math
import pickletools
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MAX_PICKLE_BYTES = 2**23  # of data.pkl: about 200 bytes a tensor
MAX_DEPTH = 50  # of nested dicts, lists and tuples
MAX_DIMENSIONS = 64  # of a tensor, as in PyTorch
_ORDERED, _TENSOR, _PARAMETER = "OrderedDict", "_rebuild_tensor_v2", "_rebuild_parameter"
_DTYPES = {
    "torch BoolStorage": torch.bool,
    "torch ByteStorage": torch.uint8,
    "torch CharStorage": torch.int8,
    "torch ShortStorage": torch.int16,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch ComplexFloatStorage": torch.complex64,
    "torch ComplexDoubleStorage": torch.complex128,
}
_FUNCTIONS = {
    "collections OrderedDict": _ORDERED,
    f"torch._utils {_TENSOR}": _TENSOR,
    f"torch._utils {_PARAMETER}": _PARAMETER,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclass(frozen=True)
class _Function:
    """A function to which a pickle refers by its name: one of `_FUNCTIONS`."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """The content of a storage, as a tensor with one dimension."""

    content: torch.Tensor


def read_tensors(path: Path, expected: type = dict) -> Any:
    """Return the object of the type `expected` that `torch.save` wrote to the file `path`, with tensors on the CPU.

    No code from the file is executed, and little more memory is taken than the file has bytes. An error of any type is
    raised if the file is damaged, or holds other objects than tensors and plain values.
    """
    if not path.is_file():  # a pipe would never be read to its end
        raise FileNotFoundError(f"{path} is missing or no file")
    with zipfile.ZipFile(path) as archive:
        entries = _entries(archive, path.stat().st_size)
        if "byteorder" in entries and archive.read(entries["byteorder"]).decode() != sys.byteorder:
            raise ValueError(f"its bytes have another order than those of this machine ({sys.byteorder})")
        storages: dict[str, torch.Tensor] = {}

        def storage(key: str) -> torch.Tensor:
            """Return the bytes of the storage `key`. Tensors that share a storage share its memory."""
            if key not in storages:
                entry = entries[f"data/{key}"]
                storages[key] = torch.empty(entry.file_size, dtype=torch.uint8)
                with archive.open(entry) as stream:
                    if stream.readinto(storages[key].numpy()) != entry.file_size:  # type: ignore[attr-defined] - ZipExtFile
                        raise ValueError(f"the storage {key} is truncated")
            return storages[key]

        pickled = archive.read(entries["data.pkl"])
        found = _run(pickled, storage)
    _check_values(found, len(pickled))
    if not isinstance(found, expected):
        raise TypeError(f"it holds a {type(found).__name__} instead of a {expected.__name__}")
    return found


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of `archive`, a file of `size` bytes, by their names without the first folder.

    ValueError if an entry is compressed or has the name of another one, or if the entries are longer than the file.
    """
    found = archive.infolist()
    entries = {entry.filename.partition("/")[2]: entry for entry in found}
    if len(entries) < len(found) or any(entry.compress_type != zipfile.ZIP_STORED for entry in found):
        raise ValueError("its zip archive has a compressed file, or two files of the same name")
    declared = sum(entry.file_size for entry in found)
    if declared > size:
        raise ValueError(f"its zip archive declares {declared:,} bytes of content, but has only {size:,} bytes")
    if entries["data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"its data.pkl has more than {MAX_PICKLE_BYTES:,} bytes")
    return entries


def _run(pickled: bytes, storage: Callable[[str], torch.Tensor]) -> Any:
    """Return the value that the instructions `pickled` build; `storage(key)` returns the bytes of a storage.

    ValueError for an instruction or an object that no file of tensors needs.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks below each mark
    memo: dict[int, Any] = {}
    for operation, argument, _ in pickletools.genops(pickled):
        name: str = operation.name
        argument: Any
        if name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            else:
                _add(stack[-1], items, name == "SETITEMS")
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "APPEND":
            item = stack.pop()
            _add(stack[-1], [item], False)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _add(stack[-1], [key, value], True)
        elif name == "GLOBAL" and argument in _DTYPES:
            stack.append(_DTYPES[argument])
        elif name == "GLOBAL" and argument in _FUNCTIONS:
            stack.append(_Function(_FUNCTIONS[argument]))
        elif name == "BINPERSID":
            stack.append(_typed(stack.pop(), storage))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            _set_metadata(stack[-2], stack.pop())
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            what = f"refers to the Python object {argument}" if name == "GLOBAL" else f"has the instruction {name}"
            raise ValueError(f"it {what}, which no file of tensors needs")
    raise ValueError("it has no last instruction")


def _add(target: Any, items: list[Any], pairs: bool) -> None:
    """Append `items` to the list `target`; or, with `pairs`, set the keys and values `items` in the dict `target`.

    Keys are numbers, strings or None: the hash of nested tuples could take years.
    """
    if not pairs and type(target) is list:
        target.extend(items)
    elif pairs and isinstance(target, dict) and all(isinstance(key, int | float | str | None) for key in items[::2]):
        target.update(zip(items[::2], items[1::2], strict=True))
    else:
        raise ValueError(
            "it adds values to an object that is no list or dict, or has a key that is no number or string"
        )


def _typed(reference: Any, storage: Callable[[str], torch.Tensor]) -> _Storage:
    """Return the storage that a pickle means by ("storage", type, key, device, number of elements)."""
    kind, dtype, key, _, n_elements = reference
    content = storage(key)
    if kind != "storage" or not isinstance(dtype, torch.dtype) or n_elements * dtype.itemsize != len(content):
        raise ValueError(f"the storage {key} has {len(content)} bytes; expected {n_elements} elements of {dtype}")
    return _Storage(content.view(dtype))


def _call(function: Any, arguments: Any) -> Any:
    """Return the ordered dict, tensor or parameter that a pickle builds by calling `function` with `arguments`."""
    name = function.name if isinstance(function, _Function) else ""
    if name == _ORDERED and arguments == ():
        return OrderedDict()
    if name == _TENSOR:
        storage, offset, size, stride, requires_grad, hooks = arguments
        if isinstance(storage, _Storage) and requires_grad in (True, False) and not hooks:
            return _tensor(storage.content, offset, size, stride).requires_grad_(requires_grad)
    if name == _PARAMETER:
        tensor, requires_grad, hooks = arguments
        if isinstance(tensor, torch.Tensor) and requires_grad in (True, False) and not hooks:
            return torch.nn.Parameter(tensor, requires_grad)
    raise ValueError(f"it calls {name or type(function).__name__} with other arguments than a file of tensors")


def _tensor(content: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor with the shape `size` in the elements `content` of its storage.

    Its first element is at `offset`; `stride` has the distance of neighbours in each dimension. ValueError if an
    element is outside `content`, or if the tensor has more elements than `content`.
    """
    if len(size) > MAX_DIMENSIONS:
        raise ValueError(f"it has a tensor with {len(size)} dimensions; expected at most {MAX_DIMENSIONS}")
    n, last = math.prod(size), offset + sum((s - 1) * d for s, d in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or n > len(content) or (n and last >= len(content)):
        raise ValueError(f"it has a tensor {list(size)} that needs more elements than the {len(content)} stored for it")
    return torch.empty(0, dtype=content.dtype).set_(content.untyped_storage(), offset, size, stride)


def _set_metadata(target: Any, state: Any) -> None:
    """Set the attribute `_metadata` of the ordered dict `target`: the versions of the modules of a state_dict."""
    if type(target) is not OrderedDict or not isinstance(state, dict) or state.keys() != {"_metadata"}:
        raise ValueError(f"it sets attributes of the type {type(target).__name__}, which no file of tensors needs")
    target._metadata = state["_metadata"]  # type: ignore[attr-defined] - as `nn.Module.state_dict` does


def _check_values(found: Any, limit: int) -> None:
    """Raise ValueError unless `found` consists of tensors and plain values: at most `limit`, nested to MAX_DEPTH.

    A value that occurs several times counts each time, so that code that walks through `found` ends soon.
    """
    rest, n = [(found, 0)], 0
    while rest:
        value, depth = rest.pop()
        n += 1
        if n > limit or depth > MAX_DEPTH:
            raise ValueError(f"its values are nested deeper than {MAX_DEPTH}, or repeat a value too often")
        if isinstance(value, dict):
            rest += [(part, depth + 1) for part in (*value.values(), *getattr(value, "__dict__", {}).values())]
        elif isinstance(value, list | tuple):
            rest += [(part, depth + 1) for part in value]
        elif not isinstance(value, torch.Tensor | int | float | str | None):
            raise ValueError(f"it has a {type(value).__name__.strip('_').lower()} as a value, instead of a tensor")
