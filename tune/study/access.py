"""Acquire and release exclusive access to a study, so that only one process changes it at a time.

with open_study(Path("runs/x"), None) as access:               # a study in a local folder
    ...
with open_study(folder, "s3://bucket/studies/x") as access:    # a study in an object store; folder: its local copy
    ...
    access.push()                                              # uploads the changed files of the local copy

A lock file excludes other processes on this machine. For a study in an object store, a lease excludes drivers on other
machines (tune/study/lease.py), and a mirror copies files between the store and `folder` (tune/study/store.py).
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data.files import locked
from data.signals import Interrupts
from data.untrusted import linked_out
from trainables.outputs.storage import Store
from tune.study.lease import StoreLease, StudyLost
from tune.study.manifest import StudyError
from tune.study.store import Mirror


@dataclass(frozen=True)
class StudyAccess:
    """A study to which this process has exclusive access, given by `open_study`."""

    folder: Path  # for a study in an object store: its local working folder
    mirror: Mirror | None = None  # None (like `lease`) if the study is not in an object store
    lease: StoreLease | None = None

    @property
    def generation(self) -> int:
        """The number of this driver's claim on the study (1, 2, ...; see tune/study/lease.py); 0 if the study is not in
        an object store."""
        return self.lease.generation if self.lease else 0

    def check(self) -> None:
        """Raise StudyLost if another driver is known to have taken over the study in the object store.

        This call does not access the store. A thread of the lease does so every 10 s and records the result.
        """
        if self.lease:
            self.lease.check()

    def ended_elsewhere(self) -> frozenset[str]:
        """Return the names of the trials that have an info.json in the object store; an empty set without a store.

        If such a trial has ended by the journal, all its files are in the store, so they need not be restored in the
        local folder. The set also has running trials with a measured network, whose files may be incomplete.
        """
        return self.mirror.ended_elsewhere() if self.mirror else frozenset()

    def push(self, last: bool = False) -> None:
        """Upload changed files if the study is in an object store.

        A call that follows another one within some seconds does nothing, unless `last` is True.
        """
        if self.mirror:
            self.mirror.push(last)


def check_links(folder: Path) -> None:
    """Raise StudyError if a symbolic link in the study's folder `folder` leads out of it."""
    if problem := linked_out(folder):
        raise StudyError(problem)


def lock_of(folder: Path) -> Path:
    """Return the path of the lock file for the study in `folder`: a hidden file next to this folder."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock the study in `folder` for the duration of the `with` block. The folder need not exist yet. If the study is
    already locked, raise StudyError, which names the process that locked it."""
    path = lock_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():  # somebody else's link in a shared folder: the text below would replace its target's
        raise StudyError(f"the lock {path} is a symbolic link; expected a file: remove the link")
    try:
        with locked(path, wait=False):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
    except BlockingIOError as error:
        owner = path.read_text(errors="replace")[:200] or "another process"
        raise StudyError(
            f"the study in {folder} is being run by {owner}; wait until this process ends, or stop it"
        ) from error


@contextmanager
def open_study(folder: Path, uri: str | None, interrupts: Interrupts | None = None) -> Iterator[StudyAccess]:
    """Acquire exclusive access to a study, and release it at the end of the `with` block.

    If `uri` is None, the study is in `folder`. Otherwise it is at this URI in an object store, and `folder` is the
    local copy in which this process works; its files are updated from the store first. Neither the study nor the folder
    need exist yet. Raise StudyError if another process has access, if the object store cannot be reached or read, or if
    the folder has a symbolic link that leads out of it: the study would read, write and delete files elsewhere.
    `interrupts` limits the time for the object store after a signal.
    """
    interrupts = interrupts or Interrupts()
    with lock(folder):
        check_links(folder)
        if uri is None:
            yield StudyAccess(folder)
            return
        try:
            with interrupts.storage():
                lease = StoreLease(Store(uri))
                lease.acquire()
        except (OSError, ValueError) as error:  # pyarrow raises subclasses of both
            raise StudyError(
                f"{uri} cannot be reached: {error}; check the URI, the network and the credentials"
            ) from error
        try:
            mirror = Mirror(folder, uri, lease.verify)
            try:
                with interrupts.storage():
                    mirror.pull()
            except OSError as error:
                raise StudyError(
                    f"{uri} cannot be copied to {folder}: {error}; check the credentials and the free disk space"
                ) from error
            yield StudyAccess(folder, mirror, lease)
        finally:
            with suppress(OSError, StudyLost), interrupts.storage():
                lease.release()
