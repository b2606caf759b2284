"""Wait while the storage is unavailable or full, as long as waiting can help."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

LIMIT_S = 600.0  # how long a driver waits for its storage
POLL_S = 1.0
# errors that do not go away by waiting; pyarrow's object store errors have a name instead of a number
_LASTING = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.EISDIR, errno.ENOTDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EBADF, errno.EXDEV),
}
_LASTING_NAMES = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")
_T = TypeVar("_T")


class Patience:
    """Repeats an action that fails with OSError until it succeeds, or raises the error after `limit_s` of one outage.

    An outage may span several calls. `warn` is called when an outage begins and when it ends. An error that waiting
    cannot end (`is_lasting`) is raised at once.
    """

    def __init__(self, warn: Callable[[str], None], limit_s: float = LIMIT_S):
        self._warn, self._limit_s = warn, limit_s
        self._since: float | None = None  # start of the present outage; None: there is none

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
                        f"the storage cannot be written ({error}); waiting up to {self._limit_s / 60:.0f} min for it"
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
    """Return whether waiting cannot help: a missing permission, a read-only disk, an invalid path."""
    return error.errno in _LASTING or any(name in str(error) for name in _LASTING_NAMES)
