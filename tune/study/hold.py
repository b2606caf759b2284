"""Exclusive access to a study for one driver: a lock on this machine and, for an object store, a lease and a mirror.

with hold(folder, "s3://bucket/studies/x") as held:      # or hold(folder, None)
    ...
    held.push()
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainables.outputs.storage import Store
from tune.study.lease import StoreLease, StudyLost, lock
from tune.study.manifest import StudyError
from tune.study.store import Mirror


@dataclass(frozen=True)
class Held:
    """A study that only this process may change."""

    folder: Path
    mirror: Mirror | None = None
    lease: StoreLease | None = None

    @property
    def generation(self) -> int:
        """Generation of this driver's lease; 0 without a lease."""
        return self.lease.generation if self.lease else 0

    def check(self) -> None:
        """Raise StudyLost if this driver is known to have lost its lease."""
        if self.lease:
            self.lease.check()

    def ended_elsewhere(self) -> frozenset[str]:
        """Return the names of trials whose info.json is in the object store, so that no local copy is needed."""
        return self.mirror.ended_elsewhere() if self.mirror else frozenset()

    def push(self, last: bool = False) -> None:
        """If the study is in an object store, upload changed files. Only the `last` push is never skipped."""
        if self.mirror:
            self.mirror.push(last)


@contextmanager
def hold(folder: Path, uri: str | None) -> Iterator[Held]:
    """Acquire the study in `folder`, which need not exist yet, or the study at `uri` with its working folder `folder`.

    StudyError if another process holds it, or if the object store cannot be reached.
    """
    with lock(folder):
        if uri is None:
            yield Held(folder)
            return
        try:
            lease = StoreLease(Store(uri))
            lease.acquire()
        except (OSError, ValueError) as error:  # pyarrow raises subclasses of both
            raise StudyError(
                f"{uri} cannot be reached: {error}; check the URI, the network and the credentials"
            ) from error
        try:
            mirror = Mirror(folder, uri, lease.verify)
            try:
                mirror.pull()
            except OSError as error:
                raise StudyError(
                    f"{uri} cannot be read: {error}; check the credentials and the free space in {folder}"
                ) from error
            yield Held(folder, mirror, lease)
        finally:
            with suppress(OSError, StudyLost):
                lease.release()
