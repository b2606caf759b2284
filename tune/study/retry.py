"""Repeat a read or write while the storage is unavailable or full, but not after an error that waiting cannot fix."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from data.signals import Interrupts

LIMIT_S = 600.0  # how long a driver waits for its storage
POLL_S = 1.0  # time between two attempts
# errors that waiting cannot fix; pyarrow's object store errors have a name instead of a number
_LASTING = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.EISDIR, errno.ENOTDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EBADF, errno.EXDEV),
}
_LASTING_NAMES = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")
_T = TypeVar("_T")


class Retry:
    """Calls an action, and repeats the call while it raises OSError, for up to `limit_s` seconds.

        retry = Retry(print)                                       # prints its warnings
        retry(lambda: write_manifest(folder, manifest))            # returns the result of the action

    An outage begins with a failed attempt and ends with the next successful one; `warn` is called with a message at
    both times. If the outage lasts longer than `limit_s` seconds, the OSError is raised. An error that waiting cannot
    fix (`is_lasting`) is raised at once.

    After a signal (`interrupts.received`), an action is tried only once: if it fails, KeyboardInterrupt is raised. A
    signal need not do this itself, because during a search Ray Tune handles it, and only notes it.
    """

    def __init__(self, warn: Callable[[str], None], limit_s: float = LIMIT_S, interrupts: Interrupts | None = None):
        self._warn, self._limit_s, self._interrupts = warn, limit_s, interrupts or Interrupts()
        self._since: float | None = None  # start of the present outage; None: there is none

    def __call__(self, action: Callable[[], _T]) -> _T:
        while True:
            try:
                with self._interrupts.storage():
                    result = action()
            except OSError as error:
                if is_lasting(error):
                    raise
                now = time.monotonic()
                if self._since is None:
                    self._since = now
                    self._warn(
                        f"the storage cannot be read or written ({error}); trying again for up to "
                        f"{self._limit_s / 60:.0f} min. Free disk space or restore the connection"
                    )
                if now - self._since >= self._limit_s:
                    raise
                if self._interrupts.received.wait(POLL_S):
                    raise KeyboardInterrupt from error
                continue
            if self._since is not None:
                self._since = None
                self._warn("the storage is available again; continuing")
            return result


def is_lasting(error: OSError) -> bool:
    """Return True if waiting cannot fix `error`, for example a missing permission or a read-only disk."""
    return error.errno in _LASTING or any(name in str(error) for name in _LASTING_NAMES)
