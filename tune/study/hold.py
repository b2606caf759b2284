"""A study in the hands of one driver: locked here, leased and brought up to date where it lies in an object store.

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
    """A study that this process alone may change."""

    folder: Path
    mirror: Mirror | None = None
    lease: StoreLease | None = None

    @property
    def generation(self) -> int:
        """Number of this driver's claim; 0 without a lease."""
        return self.lease.generation if self.lease else 0

    def check(self) -> None:
        """StudyLost when another driver is known to have the study."""
        if self.lease:
            self.lease.check()

    def ended_elsewhere(self) -> frozenset[str]:
        """Trials whose info.json lies in an object store and need not be written here."""
        return self.mirror.ended_elsewhere() if self.mirror else frozenset()

    def push(self, last: bool = False) -> None:
        """Send to an object store what has changed here."""
        if self.mirror:
            self.mirror.push(last)


@contextmanager
def hold(folder: Path, uri: str | None) -> Iterator[Held]:
    """Take the study in `folder`, which need not exist yet, or at `uri`, of which `folder` is the working folder.

    StudyError while another process has it, or where the store cannot be reached.
    """
    with lock(folder):
        if uri is None:
            yield Held(folder)
            return
        try:
            lease = StoreLease(Store(uri))
            lease.acquire()
        except (OSError, ValueError) as error:  # pyarrow's are kinds of both
            raise StudyError(f"{uri} cannot be reached: {error}") from error
        try:
            mirror = Mirror(folder, uri, lease.verify)
            try:
                mirror.pull()
            except OSError as error:
                raise StudyError(f"{uri} cannot be read: {error}") from error
            yield Held(folder, mirror, lease)
        finally:
            with suppress(OSError, StudyLost):
                lease.release()
