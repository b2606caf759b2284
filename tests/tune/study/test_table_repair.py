"""Tables of a study that are lost, damaged or incomplete are written again from the journal."""

from pathlib import Path

import pytest

from tests.support.simulated import fill
from tests.support.tune.tabled import (
    CONFIG,
    Live,
    created,
    curve,
    epoch,
    every_outcome,
    files,
    info,
    measured,
    write_journal,
)
from tune.reporting import tables as tables_module
from tune.reporting.tables import StudyTables, rebuild_tables, replay
from tune.study.events import (
    TrialEnded,
    TrialRetried,
)
from tune.study.journal import Reading
from tune.study.log import StudyLog
from tune.study.retry import Retry


def test_what_a_killed_driver_had_no_time_to_write(tmp_path: Path) -> None:
    write_journal(tmp_path, every_outcome())
    state = rebuild_tables(tmp_path, CONFIG)
    assert state.trials["t0000"].status == "complete"
    live = Live(tmp_path.with_name("other"))
    live.add(*Reading(tmp_path))
    live.tables.flush(last=True)
    assert files(tmp_path) == files(live.study)


def test_half_a_row_that_a_kill_left_is_written_anew(tmp_path: Path) -> None:
    live = Live(tmp_path)
    live.add(created("t0000"), epoch("t0000", 1))
    live.journal.close()
    with (tmp_path / "experiments" / "t0000" / "results.csv").open("a") as stream:
        stream.write("0,2,")
    again = Live(tmp_path)
    again.add(epoch("t0000", 2))
    assert curve(tmp_path, "t0000") == [1, 2]


@pytest.mark.parametrize("chunk", [500, 3])
@pytest.mark.parametrize("damage", ["lost", "cut", "empty", "another"])
@pytest.mark.parametrize("name", ["points.csv", "experiments/t0000/info.json", "experiments/t0003/results.csv"])
def test_a_lost_or_damaged_table_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str, chunk: int
) -> None:
    """The new table has equal bytes; files of other trials are not written."""
    monkeypatch.setattr(tables_module, "REPLAY_CHUNK", chunk)
    write_journal(tmp_path, every_outcome()[:-4])  # all trials have ended
    rebuild_tables(tmp_path, CONFIG)
    before = files(tmp_path)
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in before}
    path, content = tmp_path / name, before[name]
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "another": b"[1, 2]\n"}[damage])
    rebuild_tables(tmp_path, CONFIG)
    assert files(tmp_path) == before
    if chunk == 500:
        rewritten = {path for path in before if (tmp_path / path).stat().st_mtime_ns != times[path]}
        assert {str(Path(path).parent) for path in rewritten} == {str(Path(name).parent)}


def test_trials_whose_files_are_elsewhere_are_not_written(tmp_path: Path) -> None:
    """Files of ended trials may be in an object store only; those of running trials are written here."""
    write_journal(tmp_path, every_outcome())
    log = StudyLog()
    tables = StudyTables(tmp_path, log.state, CONFIG, Retry(lambda message: None))
    tables.elsewhere = ("t0000", "t0003", "t0004")
    log.attach(tables)
    replay(Reading(tmp_path), log, tables)
    tables.flush(last=True)
    assert {path.name for path in (tmp_path / "experiments").iterdir()} == {"t0001", "t0002", "t0004"}
    tables.elsewhere = ()
    log.replay([TrialRetried(trial="t0003"), epoch("t0003", 3)])
    tables.flush()
    assert curve(tmp_path, "t0003") == [1, 2, 3]


def test_a_trial_that_is_only_open_so_far_in_a_replay_is_not_written(tmp_path: Path, monkeypatch) -> None:
    """The trial's files in the object store are complete and must not be replaced by partial ones."""
    monkeypatch.setattr(tables_module, "REPLAY_CHUNK", 1)
    write_journal(tmp_path, every_outcome())
    rebuild_tables(tmp_path, CONFIG, elsewhere=("t0000", "t0003", "t0004"))
    assert {path.name for path in (tmp_path / "experiments").iterdir()} == {"t0001", "t0002", "t0004"}


def test_files_that_are_here_and_behind_are_written_though_others_lie_elsewhere(tmp_path: Path) -> None:
    """A driver was killed after the end of a trial and before its last files; earlier versions had been sent."""
    live = Live(tmp_path)
    live.add(created("t0000"), epoch("t0000", 1), measured("t0000"))
    live.tables.flush(last=True)
    assert info(tmp_path, "t0000")["status"] == "running"
    live.add(TrialEnded(trial="t0000", outcome="completed"))
    rebuild_tables(tmp_path, CONFIG, elsewhere=("t0000",))
    assert info(tmp_path, "t0000")["status"] == "complete"


def test_tables_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    write_journal(tmp_path, every_outcome())
    (tmp_path / "experiments").touch()
    with pytest.raises(OSError):
        rebuild_tables(tmp_path, CONFIG)


def test_a_full_disk_leaves_no_half_row(small_disk: Path, tmp_path: Path) -> None:
    filler, study = small_disk / "filler", small_disk / "study"

    def warn(message: str) -> None:
        filler.unlink(missing_ok=True)

    log = StudyLog()
    tables = StudyTables(study, log.state, CONFIG, Retry(warn))
    log.attach(tables)
    log.add(created("t0000"), epoch("t0000", 1))
    tables.flush()
    fill(filler)
    n = 1
    while filler.exists():
        n += 1
        log.add(epoch("t0000", n))
        tables.flush()
    log.add(epoch("t0000", n + 1))
    tables.flush()
    assert curve(study, "t0000") == list(range(1, n + 2))
