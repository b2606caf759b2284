"""One lock for everything that two processes might build or run at once."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, which ends with the process however it dies. Without `wait`, BlockingIOError when
    another holds it. Exclusive on one machine, and on a shared file system that has flock."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
