"""Exclusive access of one driver to a study in an object store.

    lease = StoreLease(Store("s3://bucket/x"))
    lease.acquire();  lease.verify();  lease.release()

Object stores have no locks, and pyarrow has no conditional writes. So each driver claims the study by writing an object
with a name of its own, <study>/lease/<generation>-<owner>.json. The generation is one above the highest existing one;
the owner is a random string. The protocol is this:

1. The claim with the highest generation is the valid one. Among claims of the same generation, the first one that the
   store received is valid; if the store received them at the same time, the first name in sort order.
2. After writing its claim, a driver waits SETTLE_S seconds and checks whether a simultaneous claim is the valid one. If
   so, it deletes its own claim and ends.
3. A driver renews its claim by writing <generation>-<owner>.alive every RENEW_S seconds. If there was no renewal for
   FRESH_S seconds, the driver is considered dead, and another driver may claim the study.
4. A driver that was paused or disconnected may have lost the study. So each driver checks its claim (`verify`) before
   it writes to the store, and stops if another claim is valid.

A driver writes only lease objects with its own name, so it cannot damage the claim of its successor. If a driver is
paused during a write to the store, this write may arrive late. It can replace a table by an older version, but it does
not harm the journal (see `after` in tune/study/journal.py).

The age of a claim is the difference of two modification times in the store: the clocks of the machines do not matter.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trainables.outputs.storage import LEASE, Store
from tune.study.manifest import StudyError

FORMAT = 1
FRESH_S = 60.0  # time without a renewal after which a driver is considered dead
RENEW_S = 10.0  # time between two renewals of a claim
SETTLE_S = 2.0  # time in which a simultaneous claim of another driver becomes visible


class StudyLost(RuntimeError):
    """Raised in a driver that must not write to its study any more, because another driver took it over."""


class StudyDeleted(StudyLost):
    """Raised in a driver whose study was deleted."""


@dataclass(frozen=True)
class Claim:
    """The content of a lease object (a file in <study>/lease): it identifies the driver that claims the study."""

    owner: str  # random string of the driver
    host: str
    pid: int
    process: str  # boot id, pid namespace, pid and start time: differs for a later process with the same pid
    released: bool = False
    format: int = FORMAT


@dataclass(frozen=True)
class CurrentClaim:
    """The valid claim on a study, and the time since its last renewal."""

    generation: int  # 1, 2, ...: number of the claim
    claim: Claim
    age_s: float  # seconds since the last renewal

    @property
    def alive(self) -> bool:
        """True if the driver that made the claim seems to run.

        The claim must have been renewed in the last FRESH_S seconds, and must not have been released. If the driver was
        started on this machine, its process must also exist.
        """
        if self.claim.released or self.age_s >= FRESH_S:
            return False
        same_machine = self.claim.process.partition("/")[0] == _machine()
        return not same_machine or _process(self.claim.pid) == self.claim.process


class StoreLease:
    """The claim of this driver on a study in an object store. `store` is the folder of the study.

    `generation` is the number of the claim (1, 2, ...); 0 before `acquire`.
    """

    def __init__(self, store: Store):
        self.store, self.generation = store, 0
        self._claim = Claim(secrets.token_hex(8), socket.gethostname(), os.getpid(), _process(os.getpid()))
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: StudyLost | None = None

    def acquire(self, settle_s: float = SETTLE_S) -> None:
        """Claim the study, and start a thread that renews the claim until `release` is called.

        `settle_s` is the time in seconds to wait for simultaneous claims of other drivers. Raise StudyError if another
        driver runs the study, StudyDeleted if the study is deleted meanwhile, and OSError if the store cannot be
        reached.
        """
        newest = find_claim(self.store)
        if newest and newest.alive:
            raise StudyError(
                f"the study in {self.store.uri} is being run on {newest.claim.host} (process {newest.claim.pid}, last "
                f"renewed {newest.age_s:.0f} s ago); stop this process, or if it is dead, wait "
                f"{FRESH_S - newest.age_s:.0f} s and start again"
            )
        self.generation = newest.generation + 1 if newest else 1
        self._write("json")
        time.sleep(settle_s)
        try:
            self.verify()
        except StudyDeleted:
            raise
        except StudyLost as error:
            with suppress(OSError):
                self.store.files.delete_file(f"{self.store.path}/{self._name('json')}")
            raise StudyError(
                f"{error}. The two drivers were started at the same time; if neither runs now, start one of them again"
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
        """Raise StudyLost if an earlier call of `verify` did so. This call does not access the store."""
        if self._lost:
            raise self._lost

    def verify(self) -> None:
        """Check in the store that this claim is still the valid one. Raise StudyLost if another claim is valid or the
        study was deleted, and OSError if the store cannot be reached."""
        self.check()
        valid = _valid_claim(self.store.stamps(LEASE))
        if valid is None:
            self._lost = StudyDeleted(
                f"the study in {self.store.uri} was deleted while this driver ran; the driver stops and writes nothing "
                "more. To search again, start a new study"
            )
            raise self._lost
        if valid != self._name("json").rpartition("/")[2]:
            try:
                claim = _read(self.store, valid)
            except StudyError:  # a claim of another version of asc-tune, or a damaged one
                claim = None
            by = f"process {claim.pid} on {claim.host}" if claim else "another driver"
            self._lost = StudyLost(
                f"the study in {self.store.uri} was taken over by {by}; this driver stops and writes nothing more. "
                f"To follow the study: python tune/status.py {self.store.uri}"
            )
            raise self._lost

    def release(self) -> None:
        """Stop renewing the claim, and mark it as released, so that another driver can claim the study at once.

        If another driver has taken over the study, nothing is written; StudyLost is raised if this was not known yet.
        Raise OSError if the store cannot be reached.
        """
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
    """Return the valid claim (rule 1 of the module's docstring) on the study whose folder is `store`, or None.

    The driver that made it may have released it or be dead (see `CurrentClaim.alive`). `now_ns` is the present time in
    ns since 1970, from which the time since the last renewal is computed. If it is None, the clock of the store is read
    by writing an object; a caller that must not write passes the time of its own clock. Raise StudyError if the lease
    object is damaged or was written by another version of asc-tune.
    """
    stamps = store.stamps(LEASE)
    valid = _valid_claim(stamps)
    if valid is None:
        return None
    alive = valid.replace(".json", ".alive")
    claim = _read(store, alive if alive in stamps else valid)
    if claim is None:
        return None
    renewed_ns = max(stamps[name][1] for name in (valid, alive) if name in stamps)
    now_ns = _store_time_ns(store) if now_ns is None else now_ns
    return CurrentClaim(int(valid.partition("-")[0]), claim, max(0.0, (now_ns - renewed_ns) / 1e9))


def _valid_claim(stamps: Mapping[str, tuple[int, int]]) -> str | None:
    """Return the name of the lease object with the valid claim, such as 000002-<owner>.json; None if there is none.

    The valid claim is the oldest claim of the highest generation (rule 1 of the module's docstring). `stamps` maps the
    names of all lease objects to (size in bytes, modification time in ns).
    """
    claims = [name for name in stamps if name.endswith(".json") and name.partition("-")[0].isdecimal()]
    return min(claims, key=lambda name: (-int(name.partition("-")[0]), stamps[name][1], name), default=None)


def _read(store: Store, name: str) -> Claim | None:
    """Return the claim in the lease object `name`; None if the object no longer exists. Raise StudyError if its content
    is invalid."""
    try:
        content = json.loads(store.read(f"{LEASE}/{name}"))
        if content["format"] != FORMAT:
            raise ValueError(f"key 'format' is {content['format']!r}; expected {FORMAT} in this version of asc-tune")
        claim = Claim(**content)
        if [type(value) for value in asdict(claim).values()] != [str, str, int, str, bool, int]:
            raise ValueError("a value has another type than asc-tune writes")
        return claim
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"key {error} is missing" if isinstance(error, KeyError) else error
        raise StudyError(
            f"{store.uri}/{LEASE}/{name} is not a readable claim: {problem}. Another version of asc-tune may "
            "be running the study: wait until it ends, or stop it. If nothing runs the study, delete this object"
        ) from error


def _store_time_ns(store: Store) -> int:
    """Return the present time of the store's clock in ns since 1970: the modification time of a new object."""
    probe = f"{LEASE}/clock-{secrets.token_hex(8)}"
    store.write(probe, b"")
    try:
        return store.stamp(probe)[1]
    finally:
        store.files.delete_file(f"{store.path}/{probe}")


def _machine() -> str:
    """Return an identifier of this machine or container. It changes with each boot, and has no "/"."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    names = [
        boot.read_text().strip() if boot.exists() else socket.gethostname(),
        str(namespace.readlink()) if namespace.is_symlink() else "",
    ]
    return " ".join(names).replace("/", "-")


def _process(pid: int) -> str:
    """Return an identifier of the process `pid` on this machine: machine and boot, pid, start time of the process.

    The start time is "ended" if there is no such process. So the identifier shows whether a process still runs, even if
    another process has got its pid.
    """
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "ended"
    return f"{_machine()}/{pid}/{started}"
