"""Hash of the code that can change the result of a training.

All processes of a study must run the same code. So the driver passes its `code_hash()` to the workers, and each worker
compares this hash with that of its own code (`check_code`).
"""

import hashlib
import json
import socket
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from trainables.config.schema import ConfigError

SHAPING = ("ascmodels", "data", "trainables")  # packages whose code can change the result of a training


@cache
def code_hash() -> str:
    """Return a hash of all Python files of the packages ascmodels, data and trainables.

    It is computed once per process: files that are edited later do not change it.
    """
    return hashlib.sha256(json.dumps(code_files(SHAPING)).encode()).hexdigest()[:16]


def check_code(expected: str | None) -> None:
    """Raise ConfigError if this process does not run the driver's code.

    `expected` is the `code_hash()` of the driver; None: nothing is checked.
    """
    if expected is not None and expected != code_hash():
        raise ConfigError(
            f"this worker on {socket.gethostname()} runs code with hash {code_hash()} in "
            f"{Path(__file__).resolve().parents[2]}; expected {expected}, the hash of the driver's code: install the "
            "driver's version on every machine and do not edit it while a study runs"
        )


def code_files(packages: Iterable[str]) -> dict[str, str]:
    """Return a dict from the path of each Python file in `packages` to the hash of its content.

    `packages` are paths of folders or Python files. All paths are relative to the root of the repository.
    """
    root = Path(__file__).parents[2]
    paths = [p for name in packages for p in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))]
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in sorted(paths)}
