"""Exclusive access of one driver to a study: a lock file for a folder, a lease for an object store.

    with lock(folder): ...                       # among drivers on this machine, or on a shared disk with flock
    lease = StoreLease(Store("s3://bucket/x"))
    lease.acquire();  lease.verify();  lease.release()

Object stores have no locks, and pyarrow has no conditional writes. So each driver claims the study with an object of
its own, <study>/lease/000007-<owner>.json. The number (generation) is one above the highest existing one; the owner is
a random string. The claim with the highest number holds the study. Among claims with the same number the first one
that the store received wins; if it received them at the same time, the first name in sort order. A driver waits
SETTLE_S after its claim and checks again, to see a simultaneous claim. If that claim wins, the driver deletes its own.

The owner rewrites 000007-<owner>.alive every RENEW_S; a driver without a renewal for FRESH_S is considered dead. A
driver that was paused or disconnected checks its claim before each write to the store (`verify`) and stops if it has
lost the study. It cannot damage its successor's claim, because it only writes objects with its own name. One exception:
a write that was in progress when the driver was paused may arrive later and replace a table by an older version. The
journal is safe from this (see `after` in journal.py).

Ages are measured with the store's clock only (modification times of objects).
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data.files import locked
from trainables.outputs.storage import LEASE, Store
from tune.study.manifest import StudyError

FORMAT = 1
FRESH_S = 60.0
RENEW_S = 10.0
SETTLE_S = 2.0


class StudyLost(RuntimeError):
    """Another driver took over the study: this driver must not write any more."""


@dataclass(frozen=True)
class Claim:
    """The content of a lease object."""

    owner: str  # random string of the driver
    host: str
    pid: int
    process: str  # boot id, pid namespace, pid and start time: differs for a later process with the same pid
    released: bool = False
    format: int = FORMAT


@dataclass(frozen=True)
class CurrentClaim:
    """The claim that holds a study, and the seconds since its last renewal by the store's clock."""

    generation: int
    claim: Claim
    age_s: float

    @property
    def alive(self) -> bool:
        """Whether the driver of the claim seems to run: it renewed the claim within FRESH_S and did not release it. If
        it runs on this machine, its process must exist, too."""
        if self.claim.released or self.age_s >= FRESH_S:
            return False
        same_machine = self.claim.process.partition("/")[0] == _machine()
        return not same_machine or _process(self.claim.pid) == self.claim.process


def lock_of(folder: Path) -> Path:
    """Return the path of the lock file of the study in `folder`."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a study, whose folder need not exist yet; StudyError names the process that holds it."""
    path = lock_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path, wait=False):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
    except BlockingIOError as error:
        owner = path.read_text(errors="replace")[:200] or "another process"
        raise StudyError(f"the study in {folder} is being run by {owner}; wait until it ends, or stop it") from error


class StoreLease:
    """This driver's claim on the study in `store`."""

    def __init__(self, store: Store):
        self.store, self.generation = store, 0
        self._claim = Claim(secrets.token_hex(8), socket.gethostname(), os.getpid(), _process(os.getpid()))
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: StudyLost | None = None

    def acquire(self, settle_s: float = SETTLE_S) -> None:
        """Claim the study; StudyError if another driver holds it. A thread renews the claim until `release`."""
        newest = find_claim(self.store)
        if newest and newest.alive:
            raise StudyError(
                f"the study in {self.store.uri} is being run on {newest.claim.host} (process {newest.claim.pid}, last "
                f"renewed {newest.age_s:.0f} s ago); stop it there, or wait {FRESH_S - newest.age_s:.0f} s if it "
                "is dead"
            )
        self.generation = newest.generation + 1 if newest else 1
        self._write("json")
        time.sleep(settle_s)
        try:
            self.verify()
        except StudyLost as error:
            with suppress(OSError):
                self.store.files.delete_file(f"{self.store.path}/{self._name('json')}")
            raise StudyError(
                f"{error}. Two drivers were started at the same time; if none runs now, start one of them again"
            ) from error
        self._write("alive")
        for name in self.store.names(LEASE):
            number = name.partition("-")[0]
            if number.isdecimal() and int(number) < self.generation - 1:
                with suppress(OSError):
                    self.store.files.delete_file(f"{self.store.path}/{LEASE}/{name}")
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise StudyLost if an earlier `verify` found the claim lost; does not access the store."""
        if self._lost:
            raise self._lost

    def verify(self) -> None:
        """Check the claim in the store. StudyLost if another driver holds it; OSError if the store is unreachable."""
        self.check()
        first = _first_claim(self.store.stamps(LEASE))
        if first is None:
            self._lost = StudyLost(
                f"the study in {self.store.uri} was deleted; this driver stops and writes nothing more"
            )
            raise self._lost
        if first != self._name("json").rpartition("/")[2]:
            try:
                claim = _read(self.store, first)
            except StudyError:  # written by another version
                claim = None
            by = f"process {claim.pid} on {claim.host}" if claim else "another driver"
            self._lost = StudyLost(
                f"the study in {self.store.uri} was taken over by {by}; this driver stops and writes nothing more"
            )
            raise self._lost

    def release(self) -> None:
        """Release the study, unless it was lost."""
        self._ended.set()
        if self._thread:
            self._thread.join(2 * RENEW_S)  # otherwise it might write after the release
        if self._lost is None:
            self.verify()
            self._claim = replace(self._claim, released=True)
            self._write("alive")

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self.verify()
                self._write("alive")
            except StudyLost:
                return
            except OSError:
                continue  # the store is unavailable; `verify` decides when it is back

    def _name(self, ending: str) -> str:
        return f"{LEASE}/{self.generation:06d}-{self._claim.owner}.{ending}"

    def _write(self, ending: str) -> None:
        self.store.write(self._name(ending), json.dumps(asdict(self._claim)).encode())


def find_claim(store: Store, now_ns: int | None = None) -> CurrentClaim | None:
    """Return the claim that holds the study in `store`; None if there is none.

    The age of the claim needs the store's time, which is read by writing an object. A caller without permission to
    write passes the time of its own clock (`now_ns`). StudyError for a claim that this version cannot read.
    """
    stamps = store.stamps(LEASE)
    first = _first_claim(stamps)
    if first is None:
        return None
    alive = first.replace(".json", ".alive")
    claim = _read(store, alive if alive in stamps else first)
    if claim is None:
        return None
    renewed_ns = max(stamps[name][1] for name in (first, alive) if name in stamps)
    now_ns = _store_time_ns(store) if now_ns is None else now_ns
    return CurrentClaim(int(first.partition("-")[0]), claim, max(0.0, (now_ns - renewed_ns) / 1e9))


def _first_claim(stamps: Mapping[str, tuple[int, int]]) -> str | None:
    """Return the name of the claim that holds the study: the highest number, then the first that the store received."""
    claims = [name for name in stamps if name.endswith(".json") and name.partition("-")[0].isdecimal()]
    return min(claims, key=lambda name: (-int(name.partition("-")[0]), stamps[name][1], name), default=None)


def _read(store: Store, name: str) -> Claim | None:
    """Return the content of a claim; None if it was removed meanwhile."""
    try:
        content = json.loads(store.read(f"{LEASE}/{name}"))
        if content["format"] != FORMAT:
            raise ValueError(f"field 'format' is {content['format']}; this version of asc-tune reads format {FORMAT}")
        return Claim(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(
            f"{store.uri}/{LEASE}/{name} is not a valid claim of a driver ({error}): another version may run the "
            "study. Stop it, or delete this object if no driver runs"
        ) from error


def _store_time_ns(store: Store) -> int:
    """Return the present time of the store's clock in ns, from the modification time of a new object."""
    probe = f"{LEASE}/clock-{secrets.token_hex(8)}"
    store.write(probe, b"")
    try:
        return store.stamp(probe)[1]
    finally:
        store.files.delete_file(f"{store.path}/{probe}")


def _machine() -> str:
    """Return an identifier of this boot of this machine or container, within which a pid is unique."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    names = [
        boot.read_text().strip() if boot.exists() else socket.gethostname(),
        str(namespace.readlink()) if namespace.is_symlink() else "",
    ]
    return " ".join(names).replace("/", "-")


def _process(pid: int) -> str:
    """Return an identifier of the process with this pid on this machine; it changes when the process ends."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "ended"
    return f"{_machine()}/{pid}/{started}"
