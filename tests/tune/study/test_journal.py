"""The journal: durability, rotation, fences, and what a kill, a full disk and a storage that is away leave of it."""

import errno
import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.power_loss import Disk
from tests.support.simulated import fill
from tune.study import journal as journal_module
from tune.study import waiting
from tune.study.events import (
    DriverStarted,
    EpochReported,
    PointMeasured,
    TrialCreated,
    TrialEnded,
    TrialRestored,
    encode,
)
from tune.study.journal import Journal, JournalError, Reading, next_generation, read_events, read_state, segments
from tune.study.lease import StudyLost
from tune.study.log import StudyLog
from tune.study.state import StudyState
from tune.study.waiting import Patience

TIME = {"time": "2026-01-05T09:30:00+00:00"}


def created(name: str = "t0000") -> TrialCreated:
    return TrialCreated(trial=name, config_id=name, replicate=0, params={}, values={})


def epoch(epochs: int, name: str = "t0000") -> EpochReported:
    return EpochReported(trial=name, stage=0, epoch=epochs, epochs=epochs, figures={"val_macro_avg_acc": epochs / 10})


def started(command: str) -> DriverStarted:
    return DriverStarted(command=command)


def commands(study: Path) -> list[str]:
    """What `started` events of the journal say, in their order."""
    return [event.command for event in read_events(study) if isinstance(event, DriverStarted)]


def opened(study: Path, **options: Any) -> Journal:
    """The journal of a new driver, which has read what its predecessors wrote."""
    reading = Reading(study)
    list(reading)
    return Journal(study, reading.after, **options)


def newest(study: Path) -> Path:
    return segments(study)[-1].path


def names(study: Path) -> list[str]:
    return [segment.path.name for segment in segments(study)]


# durability


def test_an_event_is_on_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first of a new segment, whose name must be on disk, and at each size of a file that was fsynced."""
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 400)
    disk = Disk(tmp_path, monkeypatch)
    journal, last = opened(tmp_path / "study"), 0
    for i in range(12):
        journal.append((started(f"{i}"), started(f"{i}, too")))
        assert disk.surely() == disk.now()
        assert len(disk.calls) > last
        last = len(disk.calls)
    assert len(segments(tmp_path / "study")) > 3
    made = [i for i, call in enumerate(disk.calls) if call == ("fsync", "study/journal")]
    assert len(made) == len(segments(tmp_path / "study"))
    assert len(commands(tmp_path / "study")) == 24


def test_no_byte_is_acknowledged_before_its_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[int, int] = {}  # inode -> bytes when it was fsynced last
    fsync = os.fsync

    def recorded(handle: int) -> None:
        fsync(handle)
        sizes[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    monkeypatch.setattr(os, "fsync", recorded)
    journal = opened(tmp_path)
    for i in range(5):
        journal.append((started(f"{i}"),))
        assert sizes[newest(tmp_path).stat().st_ino] == newest(tmp_path).stat().st_size


def test_events_of_one_append_are_written_together_and_in_order(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(())
    journal.append((created(), epoch(1)))
    journal.append((epoch(2),))
    assert [e.kind for e in read_events(tmp_path)] == ["trial_created", "epoch_reported", "epoch_reported"]
    assert read_state(tmp_path).trials["t0000"].epochs == 2


def test_what_cannot_be_written_is_not_applied(tmp_path: Path) -> None:
    lost = StudyLost("another driver has it")

    def check() -> None:
        if journal is not None:
            raise lost

    journal: Journal | None = None
    journal = opened(tmp_path, check=check)
    log = StudyLog(journal.append)
    before = newest(tmp_path).read_bytes()
    with pytest.raises(StudyLost):
        log.add(created())
    assert not log.state.trials
    assert newest(tmp_path).read_bytes() == before


# segments


def test_segments_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 300)
    for driver in range(3):
        journal = opened(tmp_path)
        for i in range(8):
            journal.append((started(f"{driver}.{i}"),))
        journal.close()
    assert commands(tmp_path) == [f"{driver}.{i}" for driver in range(3) for i in range(8)]
    assert {name[:7] for name in names(tmp_path)} == {"000001-", "000002-", "000003-"}
    assert len(names(tmp_path)) > 6
    for segment in segments(tmp_path)[:-1]:
        assert segment.path.stat().st_size < 300 + 200


def test_the_segment_after_the_9999th(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 1)
    journal = opened(tmp_path)
    journal._number = 9_996
    for i in range(6):
        journal.append((started(f"{i}"),))
    assert names(tmp_path)[-2:] == ["000001-10001.jsonl", "000001-10002.jsonl"]
    assert commands(tmp_path) == [f"{i}" for i in range(6)]


def test_segments_sort_as_numbers(tmp_path: Path) -> None:
    expected = ["998.jsonl", "999.jsonl", "1000.jsonl", "1001.jsonl"]
    expected += [f"{n}.jsonl" for n in ("001003-9999", "001003-10000", "001004-0001", "999999-0002", "1000000-0001")]
    (tmp_path / "journal").mkdir()
    for name in random.Random(0).sample([*expected, "note.txt", "a-1.jsonl"], len(expected) + 2):
        (tmp_path / "journal" / name).touch()
    assert names(tmp_path) == expected
    assert next_generation(tmp_path) == 1_000_001


def test_drivers_beyond_the_thousandth_of_format_1(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    for number in range(997, 1_003):
        event = TIME | {"event": "run", "command": f"{number}"}
        (tmp_path / "journal" / f"{number:03d}.jsonl").write_text(json.dumps(event) + "\n")
    assert commands(tmp_path) == [f"{n}" for n in range(997, 1_003)]


OLD = [
    {"event": "run", "command": "python tune/run.py"},
    {"event": "trial", "trial": "t0000", "config_id": "t0000", "replicate": 0, "params": {}, "values": {}},
    {"event": "result", "trial": "t0000", "stage": 0, "epoch": 1, "epochs": 1, "done": False, "finished": False},
]


def write_old(study: Path) -> None:
    """A journal of format 1 of two drivers, both of which were killed in the middle of a line."""
    (study / "journal").mkdir(parents=True)
    lines = [json.dumps(TIME | event) + "\n" for event in OLD]
    (study / "journal" / "000.jsonl").write_text("".join(lines) + lines[-1][:30])
    crashed = {"event": "end", "trial": "t0000", "status": "failed", "failure": "the node died"}
    again = [{"event": "run", "command": "again"}, crashed]
    lines = [json.dumps(TIME | event) + "\n" for event in again]
    (study / "journal" / "001.jsonl").write_text("".join(lines) + lines[-1][:10])


def test_a_journal_of_format_1_is_continued_in_format_2(tmp_path: Path) -> None:
    write_old(tmp_path)
    state = read_state(tmp_path)
    assert (state.drivers, state.trials["t0000"].epochs, state.trials["t0000"].outcome) == (2, 1, "crashed")
    journal = opened(tmp_path)
    journal.append((started("third"),))
    journal.append((created("t0001"), epoch(1, "t0001")))
    assert names(tmp_path) == ["000.jsonl", "001.jsonl", "000003-0001.jsonl"]
    assert commands(tmp_path) == ["python tune/run.py", "again", "third"]
    assert read_state(tmp_path).trials["t0001"].epochs == 1
    with (tmp_path / "journal" / "001.jsonl").open("a") as stream:  # a paused driver of the older version
        stream.write(json.dumps(TIME | {"event": "run", "command": "late"}) + "\n")
    assert commands(tmp_path) == ["python tune/run.py", "again", "third"]


# kills and damage


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append((created(), epoch(1)))
    journal.append((epoch(2),))
    first = newest(tmp_path)
    first.write_bytes(first.read_bytes()[:-5])
    assert read_state(tmp_path).trials["t0000"].epochs == 1
    again = opened(tmp_path)
    again.append((epoch(2),))
    again.append((epoch(3),))
    assert names(tmp_path) == ["000001-0001.jsonl", "000002-0001.jsonl"]
    assert len(list(read_events(tmp_path))) == 4
    assert read_state(tmp_path).trials["t0000"].epochs == 3


@pytest.mark.parametrize("left", [0, 1, -1])
def test_a_driver_that_was_killed_before_its_header_was_written(tmp_path: Path, left: int) -> None:
    opened(tmp_path).append((created(),))
    opened(tmp_path)
    newest(tmp_path).write_bytes(newest(tmp_path).read_bytes()[:left])
    assert len(list(read_events(tmp_path))) == 1
    opened(tmp_path).append((epoch(1),))
    assert names(tmp_path)[1:] == ["000002-0001.jsonl", "000003-0001.jsonl"]
    assert read_state(tmp_path).trials["t0000"].epochs == 1


def test_any_cut_of_the_newest_segment_leaves_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 500)
    journal = opened(tmp_path)
    for i in range(9):
        journal.append((started(f"{i}"),))
    assert len(segments(tmp_path)) == 2
    content, whole = newest(tmp_path).read_bytes(), commands(tmp_path)
    seen = set()
    for size in range(len(content)):
        newest(tmp_path).write_bytes(content[:size])
        found = commands(tmp_path)
        assert found == whole[: len(found)]
        seen.add(len(found))
    assert len(seen) > 2


def damage(kind: str) -> bytes:
    return {
        "cut": encode(epoch(1)).encode()[:-9],
        "number": b"42",
        "empty object": b"{}",
        "list": b"[]",
        "blank": b"",
        "zeros": b"\0" * 40,
        "not UTF-8": b'{"event": "\xff"}',
        "nested": b"[" * 100_000,
        "unknown event": b'{"event": "trial_ende"}',
        "unknown trial": encode(epoch(1, "t0007")).rstrip().encode(),
        "point without a step": encode(PointMeasured(trial="t0000", point={"macs": 1})).rstrip().encode(),
        "second creation": encode(created()).rstrip().encode(),
    }[kind]


DAMAGES = (
    *("cut", "number", "empty object", "list", "blank", "zeros", "not UTF-8", "nested", "unknown event"),
    *("unknown trial", "point without a step", "second creation"),
)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_line_is_named(tmp_path: Path, kind: str) -> None:
    """By file and number, and by what can be done: deleting it does not help."""
    journal = opened(tmp_path)
    journal.append((created(), epoch(1)))
    lines = newest(tmp_path).read_bytes().splitlines(keepends=True)
    newest(tmp_path).write_bytes(b"".join(lines[:2]) + damage(kind) + b"\n" + lines[2])
    with pytest.raises(JournalError) as error:
        read_state(tmp_path)
    assert "journal/000001-0001.jsonl, line 3 " in str(error.value)


@pytest.mark.parametrize("kind", ["cut", "number", "empty object", "zeros"])
def test_a_damaged_line_of_format_1_is_named(tmp_path: Path, kind: str) -> None:
    write_old(tmp_path)
    path = tmp_path / "journal" / "000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage(kind) + b"\n" + b"".join(lines[1:]))
    with pytest.raises(JournalError) as error:
        read_state(tmp_path)
    assert "journal/000.jsonl, line 2 " in str(error.value)


def test_a_line_that_was_deleted_is_missed_by_the_next(tmp_path: Path) -> None:
    opened(tmp_path).append((created(), epoch(1)))
    lines = newest(tmp_path).read_bytes().splitlines(keepends=True)
    newest(tmp_path).write_bytes(lines[0] + lines[2])
    with pytest.raises(JournalError) as error:
        read_state(tmp_path)
    assert "journal/000001-0001.jsonl, line 2 " in str(error.value)
    assert "t0000" in str(error.value)


def test_what_a_killed_driver_wrote_is_on_disk_before_anything_builds_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in memory only, as all of format 1 is."""
    write_old(tmp_path)
    synced: list[str] = []
    fsync = os.fsync

    def recorded(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)  # noqa: PTH115 - no file has the name
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    opened(tmp_path).close()
    first = synced.index(newest(tmp_path).name)
    assert {"000.jsonl", "001.jsonl"} <= set(synced[:first])


def test_a_part_of_the_journal_that_is_missing_is_named(tmp_path: Path) -> None:
    """Its last line, or a whole segment, of an earlier driver."""
    for _ in range(3):
        journal = opened(tmp_path)
        journal.append((started("x"),))
        journal.close()
    paths = [segment.path for segment in segments(tmp_path)]
    for path in paths[:2]:
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
        with pytest.raises(JournalError, match=path.name):
            read_state(tmp_path)
        path.unlink()
        with pytest.raises(JournalError, match=path.name):
            read_state(tmp_path)
        path.write_bytes(whole)
    assert read_state(tmp_path).drivers == 3


def test_two_drivers_of_one_generation_do_not_delete_each_others_segment(tmp_path: Path, monkeypatch) -> None:
    """As where a lock does not reach the other machine."""
    first = opened(tmp_path)
    first.append((started("first"),))
    monkeypatch.setattr(journal_module, "next_generation", lambda study: first.generation)
    with pytest.raises(FileExistsError):
        Journal(tmp_path, None, patience=Patience(lambda message: None, limit_s=0))
    assert commands(tmp_path) == ["first"]


@pytest.mark.parametrize(
    "header",
    [
        *(b"42", b"{}", b'{"segment": 2}', b'{"segment": 99, "after": null}'),
        *(b'{"segment": 2, "after": [3]}', b'{"segment": 2, "after": ["nothing", 3]}'),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, header: bytes) -> None:
    opened(tmp_path).append((created(),))
    lines = newest(tmp_path).read_bytes().splitlines(keepends=True)
    newest(tmp_path).write_bytes(header + b"\n" + b"".join(lines[1:]))
    with pytest.raises(JournalError) as error:
        read_state(tmp_path)
    assert "journal/000001-0001.jsonl, line 1 " in str(error.value)


# two drivers


def test_a_driver_that_lost_the_study_writes_nothing_more(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.append((started("first"),))
    second = opened(tmp_path)
    with pytest.raises(StudyLost):
        first.append((started("late"),))
    second.append((started("second"),))
    assert commands(tmp_path) == ["first", "second"]
    assert segments(tmp_path)[0].path.read_bytes().count(b"\n") == 2


def test_what_a_paused_driver_writes_after_it_lost_the_study_does_not_count(tmp_path: Path) -> None:
    """Paused between its check and its write, so that it notices nothing; also when it goes on in a new segment."""
    first = opened(tmp_path)
    first.append((started("first"),))
    paused = newest(tmp_path)
    size = paused.stat().st_size
    second = opened(tmp_path)
    with paused.open("a") as stream:
        stream.write(encode(started("late")) + encode(started("half"))[:20])
    header = {"segment": 2, "generation": 1, "after": [paused.name, size]}
    (paused.parent / "000001-0002.jsonl").write_text(json.dumps(header) + "\n" + encode(started("later")))
    assert commands(tmp_path) == ["first"]
    second.append((started("second"),))
    opened(tmp_path).append((started("third"),))
    with paused.open("a") as stream:
        stream.write("\n" + encode(started("last")))
    assert commands(tmp_path) == ["first", "second", "third"]


def test_the_generation_of_a_lease_fences_too(tmp_path: Path) -> None:
    first = opened(tmp_path, generation=7)
    first.append((started("first"),))
    second = opened(tmp_path, generation=8)
    second.append((started("second"),))
    with pytest.raises(StudyLost):
        first.append((started("late"),))
    third = opened(tmp_path, generation=3)  # a lease that was emptied: never before what is there
    third.append((started("third"),))
    assert names(tmp_path) == ["000007-0001.jsonl", "000008-0001.jsonl", "000009-0001.jsonl"]
    assert commands(tmp_path) == ["first", "second", "third"]


@pytest.mark.parametrize("seed", range(30))
def test_the_journal_is_what_its_newest_driver_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Drivers take over from one another at random moments; those that lost the study write behind its back."""
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 300)
    rng = random.Random(seed)
    journal, known, lost, n = opened(tmp_path), list[str](), list[tuple[Journal, Path]](), 0
    for _ in range(40):
        n, chance = n + 1, rng.random()
        if chance < 0.15:
            lost.append((journal, newest(tmp_path)))
            reading = Reading(tmp_path)
            assert [event.command for event in reading if isinstance(event, DriverStarted)] == known
            if rng.random() < 0.5:  # between the reading and the taking over
                with newest(tmp_path).open("a") as stream:
                    stream.write(encode(started("too late"))[: rng.randrange(5, 200)])
            journal = Journal(tmp_path, reading.after)
        elif chance < 0.4 and lost:
            old, path = rng.choice(lost)
            with pytest.raises(StudyLost):
                old.append((started("refused"),))
            with path.open("a") as stream:
                stream.write(encode(started("late"))[: rng.randrange(5, 200)])
        else:
            journal.append((started(f"{n}"),))
            known.append(f"{n}")
        assert commands(tmp_path) == known


# what a trial's events say


def test_what_a_journal_says_of_a_trial(tmp_path: Path) -> None:
    state = StudyState()
    log = StudyLog(opened(tmp_path).append)
    log.attach(state)
    log.add(created(), epoch(1), epoch(2), epoch(3))
    log.add(TrialRestored(trial="t0000", epochs=1), epoch(2), epoch(3))  # these two were trained before
    trial = state.trials["t0000"]
    assert (trial.epochs, trial.repeated, trial.restores, trial.status) == (3, 2, 1, "running")
    point = {"step": 0, "macs": 1, "confusion": [[1]], "widths": {"stem": [8]}}
    log.add(epoch(4), PointMeasured(trial="t0000", point=point), PointMeasured(trial="t0000", point=point))
    log.add(TrialEnded(trial="t0000", outcome="completed"))
    assert (trial.status, trial.repeated, trial.figures) == ("complete", 2, {"val_macro_avg_acc": 0.4})
    assert trial.points == [{"step": 0, "macs": 1}]
    assert read_state(tmp_path) == state


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("completed", "complete"), ("stopped", "stopped early"), ("failed", "failed"), ("crashed", "crashed")],
)
def test_how_a_trial_ends(tmp_path: Path, outcome: Any, status: str) -> None:
    ended = TrialEnded(trial="t0000", outcome=outcome, reason="loss is nan")
    opened(tmp_path).append((created(), epoch(1), ended))
    state = read_state(tmp_path)
    assert (state.trials["t0000"].status, state.trials["t0000"].reason) == (status, "loss is nan")
    assert state.counts() == {status: 1, "rejected": 0}
    assert [trial.name for trial in state.crashed] == (["t0000"] if outcome == "crashed" else [])


# waiting


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_S", 0.01)


class Failing:
    """Fails with an error as often as it is told, and counts."""

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
    patience = Patience(warned.append, limit_s=0.1)
    full = OSError(errno.ENOSPC, "no space left on device")
    first, second = Failing(full), Failing(full)
    for action in (first, second):
        with pytest.raises(OSError) as error:
            patience(action)
        assert error.value is full
    assert first.calls > 1
    assert second.calls == 1
    assert len(warned) == 1
    assert patience(lambda: "done") == "done"
    assert len(warned) == 2
    another = Failing(full)
    with pytest.raises(OSError):
        patience(another)
    assert another.calls > 1
    assert len(warned) == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("code", ["ENOSPC", "ENOENT", "ESTALE", "EIO", "EDQUOT", "ETIMEDOUT"])
def test_what_may_pass_is_waited_for(code: str) -> None:
    action = Failing(OSError(getattr(errno, code), "away"), times=3)
    assert Patience(lambda message: None)(action) == "done"
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
        Patience(lambda message: None)(action)
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

    journal = opened(study, patience=Patience(warn))
    journal.append((created(),))
    study.rename(away)
    back = threading.Thread(target=lambda: (waits.wait(), away.rename(study)))
    back.start()
    journal.append((epoch(1),))
    back.join()
    assert read_state(study).trials["t0000"].epochs == 1
    assert len(warned) == 2


@pytest.mark.usefixtures("quick")
def test_another_storage_in_the_place_of_ours_is_not_written(tmp_path: Path) -> None:
    """A folder of the same name, as an unmounted disk leaves it, or a copy of the study."""
    study = tmp_path / "study"
    journal = opened(study, patience=Patience(lambda message: None, limit_s=0.05))
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
    """Half a line is taken back, or half a segment; then the driver continues as soon as there is room."""
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", segment_bytes)
    study, n, impatient = small_disk / "study", 0, True
    filler = small_disk / "filler"

    def warn(message: str) -> None:
        if not impatient and filler.exists():
            filler.unlink()

    patience = Patience(warn, limit_s=0.05)
    journal = opened(study, patience=patience)
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
    patience(lambda: None)  # the outage is over
    journal.append((started("z" * 3000),))
    journal.append((epoch(1),))
    assert not filler.exists()
    assert commands(study)[n:] == ["z" * 3000]
    assert read_state(study).trials["t0000"].epochs == 1
