"""Hash of the code that a training's figures depend on.

code_hash()                              hash of this process's code
check_code(hash of the driver's code)    ConfigError in a worker that runs other code
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
    """Return a hash of every Python file of the packages in `SHAPING`, computed at the first call in this process."""
    return hashlib.sha256(json.dumps(code_files(SHAPING)).encode()).hexdigest()[:16]


def check_code(expected: str | None) -> None:
    """Raise ConfigError if this process runs other code than the driver, whose hash is `expected` (None: no check)."""
    if expected is not None and expected != code_hash():
        raise ConfigError(
            f"this worker on {socket.gethostname()} runs code with hash {code_hash()} in "
            f"{Path(__file__).resolve().parents[2]}; expected {expected}, the hash of the driver's code: install the "
            "driver's version on every machine and do not edit it while a study runs"
        )


def code_files(packages: Iterable[str]) -> dict[str, str]:
    """Return the hash of every Python file of `packages` (folders or single files), by path."""
    root = Path(__file__).parents[2]
    paths = [p for name in packages for p in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))]
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in sorted(paths)}
