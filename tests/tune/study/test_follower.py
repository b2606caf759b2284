"""Reading a journal while it is written: half lines, new drivers, damage."""

import random
from pathlib import Path

import pytest

from analysis.typed_json import ResultsError
from tests.support.marks import rest_slow
from tests.support.simulated import RandomStudy
from tune.study import writer as writer_module
from tune.study.events import DriverStarted, EpochReported, Event, TrialCreated, encode
from tune.study.journal import JournalError, Reading, read_state, segments
from tune.study.reader import Follower
from tune.study.state import StudyState
from tune.study.writer import Journal


def created(name: str) -> TrialCreated:
    return TrialCreated(trial=name, config_id=name, replicate=0, params={}, values={})


def epoch(epochs: int, name: str = "t0000") -> EpochReported:
    return EpochReported(trial=name, stage=0, epoch=epochs, epochs=epochs, figures={})


def opened(study: Path) -> Journal:
    reading = Reading(study)
    list(reading)
    return Journal(study, reading.after)


def newest(study: Path) -> Path:
    return segments(study)[-1].path


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    follower.update()
    assert follower.state == StudyState()
    opened(tmp_path).append((created("t0000"),))
    follower.update()
    assert list(follower.state.trials) == ["t0000"]


@pytest.mark.parametrize("seed", rest_slow(range(12), 3))
def test_a_follower_knows_what_a_reader_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """At any moment, also in the middle of a line and when a new driver excludes events of a former one."""
    monkeypatch.setattr(writer_module, "SEGMENT_BYTES", 3000)
    rng = random.Random(seed)
    events: list[Event] = list(RandomStudy(tmp_path, seed).run(120))
    follower, halves = Follower(tmp_path), 0
    journal = opened(tmp_path)
    for event in events:
        if isinstance(event, DriverStarted):
            late = encode(DriverStarted(command="late"))
            rest = rng.choice([late[:30], late, late + late[:9]]) if halves else late[:30]
            with newest(tmp_path).open("a") as stream:
                stream.write(rest)
            halves += rest != late
            if rng.random() < 0.5:
                follower.update()  # it reads events that will not count
            reading = Reading(tmp_path)
            known = list(reading)
            after = reading.after
            if rest.startswith(late):  # the line was written after the new driver had read
                assert isinstance(known[-1], DriverStarted) and known[-1].command == "late"
                assert after is not None
                after = after[0], after[1] - len(late)
            journal = Journal(tmp_path, after)
        journal.append((event,))
        if rng.random() < 0.4:
            follower.update()
            assert follower.state == read_state(tmp_path)
    follower.update()
    assert follower.state == read_state(tmp_path)
    expected = StudyState()
    for event in events:
        expected.apply(event)
    assert follower.state == expected
    assert halves


def test_what_a_fence_takes_back_is_forgotten(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.append((created("t0000"),))
    reading = Reading(tmp_path)
    list(reading)
    first.append((created("t0001"),))
    follower = Follower(tmp_path)
    follower.update()
    assert list(follower.state.trials) == ["t0000", "t0001"]
    second = Journal(tmp_path, reading.after)  # it has not read the second trial
    follower.update()
    assert list(follower.state.trials) == ["t0000"]
    second.append((created("t0001"), epoch(1, "t0001")))
    follower.update()
    assert follower.state == read_state(tmp_path)
    assert follower.state.trials["t0001"].epochs == 1


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    opened(tmp_path).append((created("t0000"),))
    follower, line = Follower(tmp_path), encode(epoch(1))
    for part, epochs in ((line[:40], 0), (line[40:-1], 0), (line[-1:] + line[:7], 1)):
        with newest(tmp_path).open("a") as stream:
            stream.write(part)
        follower.update()
        assert follower.state.trials["t0000"].epochs == epochs


def test_a_study_that_was_made_anew_under_its_name(tmp_path: Path) -> None:
    opened(tmp_path).append((created("t0000"), epoch(1), epoch(2)))
    follower = Follower(tmp_path)
    follower.update()
    newest(tmp_path).unlink()
    opened(tmp_path).append((created("t0000"),))
    follower.update()
    assert follower.state == read_state(tmp_path)
    assert follower.state.trials["t0000"].epochs == 0


@pytest.mark.parametrize("line", ["42", "{}", encode(epoch(1, "t0007")).strip()])
def test_a_damaged_line_is_named_each_time_and_by_its_number(tmp_path: Path, line: str) -> None:
    """The number is right even if earlier updates read the lines before it; after a repair the line is read."""
    opened(tmp_path).append((created("t0000"), epoch(1)))
    follower = Follower(tmp_path)
    follower.update()
    good = newest(tmp_path).read_text()
    newest(tmp_path).write_text(good + encode(epoch(2)) + line + "\n")
    for _ in range(2):
        with pytest.raises(ResultsError) as error:
            follower.update()
        assert "journal/000001-0001.jsonl, line 5 " in str(error.value)
    with pytest.raises(JournalError) as error_of_resume:
        read_state(tmp_path)
    assert str(error_of_resume.value) == str(error.value)
    newest(tmp_path).write_text(good + encode(epoch(2)))
    follower.update()
    assert follower.state.trials["t0000"].epochs == 2
