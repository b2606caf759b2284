"""Prevent and record each change of files outside a folder, so that no input of tests/bench/fuzz.py damages a machine.

An audit hook (PEP 578) sees what Python code does. What native code writes is not seen, so the inputs have no path or
link that leads out of the folder.
"""

import os
import sys
from collections import Counter
from pathlib import Path

# event -> positions of the arguments (changed path, file descriptor of the directory to which it is relative)
_CHANGES = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.link": ((1, 3),),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def guard(place: Path) -> Counter[str]:
    """From now on, refuse to change a file outside `place`; return a counter that receives the refused paths."""
    refused = Counter[str]()
    inside = (f"{os.path.realpath(place)}/", "/dev/", "/proc/")

    def watch(event: str, arguments: tuple) -> None:
        changed: list[str] = []
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike) and arguments[2] & _WRITES:
            changed.append(os.path.realpath(os.fsdecode(arguments[0])))
        for position, directory in _CHANGES.get(event, ()):
            base = Path(f"/proc/self/fd/{arguments[directory]}" if arguments[directory] >= 0 else "")
            path = base / os.fsdecode(arguments[position])
            changed.append(os.path.realpath(path.parent) + f"/{path.name}")  # the name itself, not what it leads to
        for path in changed:
            if not path.startswith(inside) and not path.endswith(".pyc") and "/__pycache__" not in path:
                refused[path] += 1
                raise PermissionError(f"{event} of {path}, outside {place}")

    sys.addaudithook(watch)
    return refused
