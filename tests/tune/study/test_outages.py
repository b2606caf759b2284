"""A full disk and an unreachable storage: which errors are retried, and the journal afterwards."""

import errno
import shutil
import signal
import threading
from pathlib import Path

import pytest

from data.signals import interruptible
from tests.support.machines import PATIENCE_S
from tests.support.simulated import fill
from tests.support.tune.journals import commands, created, epoch, newest, opened, started
from trainables.outputs.storage import Store
from tune.study import retry as retry_module
from tune.study import writer as writer_module
from tune.study.journal import read_state, segments
from tune.study.lease import StoreLease, StudyDeleted
from tune.study.retry import Retry
from tune.study.writer import Journal


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_module, "POLL_S", 0.01)


class Failing:
    """A function that raises `error` in its first `times` calls, and counts its calls."""

    def __init__(self, error: OSError, times: int = 10**9):
        self.error, self.left, self.calls = error, times, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise self.error
        return "done"


@pytest.mark.usefixtures("quick")
def test_one_outage_is_waited_for_once_however_many_calls_fall_into_it() -> None:
    warned: list[str] = []
    retry = Retry(warned.append, limit_s=0.1)
    full = OSError(errno.ENOSPC, "no space left on device")
    first, second = Failing(full), Failing(full)
    for action in (first, second):
        with pytest.raises(OSError) as error:
            retry(action)
        assert error.value is full
    assert first.calls > 1
    assert second.calls == 1
    assert len(warned) == 1
    assert retry(lambda: "done") == "done"
    assert len(warned) == 2
    another = Failing(full)
    with pytest.raises(OSError):
        retry(another)
    assert another.calls > 1
    assert len(warned) == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("code", ["ENOSPC", "ENOENT", "ESTALE", "EIO", "EDQUOT", "ETIMEDOUT"])
def test_what_may_pass_is_waited_for(code: str) -> None:
    action = Failing(OSError(getattr(errno, code), "away"), times=3)
    assert Retry(lambda message: None)(action) == "done"
    assert action.calls == 4


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(getattr(errno, code), code) for code in ("EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ENOTDIR")),
        OSError("When uploading part: AWS Error ACCESS_DENIED during CreateMultipartUpload operation"),
        OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"),
    ],
)
def test_what_no_waiting_heals_is_raised_at_once(error: OSError) -> None:
    action = Failing(error)
    with pytest.raises(OSError) as raised:
        Retry(lambda message: None)(action)
    assert raised.value is error
    assert action.calls == 1


def test_a_place_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for study, code in ((tmp_path / ("x" * 300), errno.ENAMETOOLONG), (tmp_path / "file" / "x", errno.ENOTDIR)):
        with pytest.raises(OSError) as error:
            Journal(study, None)
        assert error.value.errno == code


@pytest.mark.usefixtures("quick")
def test_driver_waits_for_a_storage_that_is_away(tmp_path: Path) -> None:
    warned: list[str] = []
    study, away, waits = tmp_path / "study", tmp_path / "away", threading.Event()

    def warn(message: str) -> None:
        warned.append(message)
        waits.set()

    journal = opened(study, retry=Retry(warn))
    journal.append((created(),))
    study.rename(away)
    back = threading.Thread(target=lambda: (waits.wait(), away.rename(study)))
    back.start()
    journal.append((epoch(1),))
    back.join()
    assert read_state(study).trials["t0000"].epochs == 1
    assert len(warned) == 2


@pytest.mark.parametrize("moment", ["before the outage", "in an attempt", "between two attempts"])
def test_a_signal_ends_the_waiting_during_a_search_too(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """During a search, Ray Tune handles the signal: it raises nothing."""
    monkeypatch.setattr(retry_module, "POLL_S", 600.0 if moment == "between two attempts" else 0.01)
    timer = threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT))

    def away() -> None:
        calls.append(moment)
        if moment == "in an attempt" and len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
            assert interrupts.received.wait(PATIENCE_S)
        elif moment == "between two attempts":
            timer.start()
        raise OSError(errno.EIO, "away")

    calls: list[str] = []
    with interruptible() as interrupts:
        signal.signal(signal.SIGINT, lambda *_: None)
        if moment == "before the outage":
            signal.raise_signal(signal.SIGTERM)
            assert interrupts.received.wait(PATIENCE_S)
        with pytest.raises(KeyboardInterrupt) as raised:
            Retry(lambda message: None, limit_s=60.0, interrupts=interrupts)(away)
    assert isinstance(raised.value.__cause__, OSError)
    assert len(calls) == (3 if moment == "in an attempt" else 1)


@pytest.mark.parametrize("deleted", ["", "journal", "journal/000001-0001.jsonl"])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("segment_bytes", [1_000_000, 1])
def test_a_study_that_is_deleted_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: str, again: bool, segment_bytes: int
) -> None:
    """Not even if a folder with a copy of the study has taken its place."""
    monkeypatch.setattr(writer_module, "SEGMENT_BYTES", segment_bytes)
    study, warned = tmp_path / "study", list[str]()
    journal = opened(study, retry=Retry(warned.append, limit_s=0.1))
    journal.append((created(),))
    shutil.copytree(study, tmp_path / "copy")
    if (study / deleted).is_dir():
        shutil.rmtree(study / deleted)
    else:
        for segment in segments(study):
            segment.path.unlink()
    if again:
        shutil.copytree(tmp_path / "copy", study, dirs_exist_ok=True)
    before = sorted(study.rglob("*"))
    with pytest.raises(StudyDeleted, match=str(study)):
        journal.append((epoch(1),))
    assert not warned and sorted(study.rglob("*")) == before


@pytest.mark.usefixtures("quick")
def test_another_storage_in_the_place_of_ours_is_not_written(tmp_path: Path) -> None:
    """The place may hold an empty folder, as an unmounted disk leaves it, or a copy of the study."""
    study = tmp_path / "study"
    journal = opened(study, retry=Retry(lambda message: None, limit_s=0.05))
    journal.append((created(),))
    path = newest(study)
    content = path.read_bytes()
    study.rename(tmp_path / "away")
    (study / "journal").mkdir(parents=True)
    for there in (None, content):
        if there is not None:
            path.write_bytes(there)
        with pytest.raises(OSError):
            journal.append((epoch(1),))
        assert (path.read_bytes() if there is not None else None) == there
    (tmp_path / "away" / "journal" / path.name).replace(path)
    journal.append((epoch(1),))
    assert path.read_bytes().startswith(content)
    assert read_state(study).trials["t0000"].epochs == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("segment_bytes", [1_000_000, 1])
def test_full_disk_loses_nothing_and_is_waited_for(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    """A partial line or segment is removed again; the driver continues as soon as there is space."""
    monkeypatch.setattr(writer_module, "SEGMENT_BYTES", segment_bytes)
    study, n, impatient = small_disk / "study", 0, True
    filler = small_disk / "filler"

    def warn(message: str) -> None:
        if not impatient and filler.exists():
            filler.unlink()

    retry = Retry(warn, limit_s=0.05)
    journal = opened(study, retry=retry)
    journal.append((created(),))
    fill(filler)
    with pytest.raises(OSError) as error:
        while True:
            journal.append((started("y" * 3000),))
            n += 1
    assert error.value.errno == errno.ENOSPC
    assert len(commands(study)) == n
    assert newest(study).read_bytes()[-1:] in (b"\n", b"")
    impatient = False
    retry(lambda: None)  # the outage is over
    journal.append((started("z" * 3000),))
    journal.append((epoch(1),))
    assert not filler.exists()
    assert commands(study)[n:] == ["z" * 3000]
    assert read_state(study).trials["t0000"].epochs == 1


@pytest.mark.parametrize("keep_store", [False, True])
def test_a_study_that_is_deleted_while_it_is_claimed_has_not_two_drivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_store: bool
) -> None:
    store = Store(str(tmp_path / "study"))
    store.write("study.json", b"{}")
    deleted = tmp_path / "study" / "lease" if keep_store else tmp_path / "study"
    monkeypatch.setattr("tune.study.lease.time.sleep", lambda seconds: shutil.rmtree(deleted))
    with pytest.raises(StudyDeleted, match="deleted"):
        StoreLease(store).acquire()
    assert not deleted.exists()
