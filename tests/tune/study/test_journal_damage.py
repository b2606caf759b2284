"""Damaged journals: a line that a kill cut off is ignored, other damage is an error that names file and line."""

import os
from pathlib import Path

import pytest

from tests.support.tune.journals import commands, created, epoch, names, newest, opened, started, write_old
from tune.study import writer as writer_module
from tune.study.events import (
    PointMeasured,
    encode,
)
from tune.study.journal import JournalError, read_events, read_state, segments


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
    monkeypatch.setattr(writer_module, "SEGMENT_BYTES", 500)
    journal = opened(tmp_path)
    for i in range(9):
        journal.append((started(f"{i}"),))
    assert len(segments(tmp_path)) == 2
    content, all_commands = newest(tmp_path).read_bytes(), commands(tmp_path)
    seen = set()
    for size in range(len(content)):
        newest(tmp_path).write_bytes(content[:size])
        found = commands(tmp_path)
        assert found == all_commands[: len(found)]
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
    """The error names file, line and remedy; deleting the line does not help."""
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
    """The lines of a killed driver, and all of format 1, may not be on disk yet."""
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
    """The last line or a complete segment of an earlier driver is missing."""
    for _ in range(3):
        journal = opened(tmp_path)
        journal.append((started("x"),))
        journal.close()
    paths = [segment.path for segment in segments(tmp_path)]
    for path in paths[:2]:
        text = path.read_bytes()
        path.write_bytes(text[: text.rindex(b"\n", 0, -1) + 1])
        with pytest.raises(JournalError, match=path.name):
            read_state(tmp_path)
        path.unlink()
        with pytest.raises(JournalError, match=path.name):
            read_state(tmp_path)
        path.write_bytes(text)
    assert read_state(tmp_path).drivers == 3


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
