"""Two drivers of one journal: events that a driver writes after it lost the study do not count."""

import json
import random
from pathlib import Path

import pytest

from tests.support.marks import rest_slow
from tests.support.tune.journals import commands, names, newest, opened, started
from tune.study import writer as writer_module
from tune.study.events import (
    DriverStarted,
    encode,
)
from tune.study.journal import Reading, segments
from tune.study.lease import StudyLost
from tune.study.retry import Retry
from tune.study.writer import Journal


def test_two_drivers_of_one_generation_do_not_delete_each_others_segment(tmp_path: Path, monkeypatch) -> None:
    """Two machines may start drivers at once if a lock does not reach the other machine."""
    first = opened(tmp_path)
    first.append((started("first"),))
    monkeypatch.setattr(writer_module, "next_generation", lambda study: first.generation)
    with pytest.raises(FileExistsError):
        Journal(tmp_path, None, retry=Retry(lambda message: None, limit_s=0))
    assert commands(tmp_path) == ["first"]


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
    """The driver is paused between its check and its write, so it does not notice; also with a new segment."""
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
    third = opened(tmp_path, generation=3)  # the lease was emptied: the generation must still exceed the existing ones
    third.append((started("third"),))
    assert names(tmp_path) == ["000007-0001.jsonl", "000008-0001.jsonl", "000009-0001.jsonl"]
    assert commands(tmp_path) == ["first", "second", "third"]


@pytest.mark.parametrize("seed", rest_slow(range(30), 8))
def test_the_journal_is_what_its_newest_driver_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Drivers take the study over at random moments, and those that lost it continue to write."""
    monkeypatch.setattr(writer_module, "SEGMENT_BYTES", 300)
    rng = random.Random(seed)
    journal, known, lost, n = opened(tmp_path), list[str](), list[tuple[Journal, Path]](), 0
    for _ in range(40):
        n, chance = n + 1, rng.random()
        if chance < 0.15:
            lost.append((journal, newest(tmp_path)))
            reading = Reading(tmp_path)
            assert [event.command for event in reading if isinstance(event, DriverStarted)] == known
            if rng.random() < 0.5:  # between reading and taking over
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
