"""Waiting for a storage that is away or full, as long as waiting can help."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

LIMIT_S = 600.0  # how long a driver waits for its storage
POLL_S = 1.0
# errors that no waiting heals; pyarrow's errors of object stores bear no number, but a name
_LASTING = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.EISDIR, errno.ENOTDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EBADF, errno.EXDEV),
}
_LASTING_NAMES = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")
_T = TypeVar("_T")


class Patience:
    """Repeats what fails with OSError until it succeeds; the error after `limit_s` of one outage, however many calls
    fell into it. `warn` is called when an outage begins and when it ends."""

    def __init__(self, warn: Callable[[str], None], limit_s: float = LIMIT_S):
        self._warn, self._limit_s = warn, limit_s
        self._since: float | None = None  # begin of the present outage

    def __call__(self, action: Callable[[], _T]) -> _T:
        while True:
            try:
                result = action()
            except OSError as error:
                if is_lasting(error):
                    raise
                now = time.monotonic()
                if self._since is None:
                    self._since = now
                    self._warn(
                        f"the storage cannot be written ({error}); waiting for it up to {self._limit_s / 60:.0f} min"
                    )
                if now - self._since >= self._limit_s:
                    raise
                time.sleep(POLL_S)
                continue
            if self._since is not None:
                self._since = None
                self._warn("the storage can be written again")
            return result


def is_lasting(error: OSError) -> bool:
    """Whether waiting cannot help: a permission, a read-only disk, a path that cannot be."""
    return error.errno in _LASTING or any(name in str(error) for name in _LASTING_NAMES)
