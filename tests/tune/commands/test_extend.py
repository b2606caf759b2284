"""A complete study is extended, its front confirmed, its tables rebuilt; no study runs here."""

import json
import shutil

import pytest

from tests.support.driven_study import Commands
from tests.support.tune.resumed import begun, files_of, finish
from trainables.config.schema import ConfigError
from tune.run import main
from tune.study.events import DriverStarted
from tune.study.journal import read_events, read_state
from tune.study.manifest import StudyError, is_complete, read_manifest, write_manifest


@pytest.mark.parametrize("words", [["--extend", "3"], ["--confirm", "2"]])
def test_more_for_an_unfinished_study_is_refused_with_both_numbers(typed: Commands, words: list[str]) -> None:
    folder = typed.start("x", "--num-samples", "7", ended=2)
    before = files_of(folder)
    with pytest.raises(StudyError) as error:
        typed("--name", "x", *words)
    assert " ".join(words) in str(error.value) and "2 of 7" in str(error.value)
    assert main(["--name", "x", "--storage", str(typed.storage), *words]) == 2
    assert files_of(folder) == before


def test_a_complete_study_is_extended(typed: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    folder = typed.start("x", "--num-samples", "2")
    finish(folder)
    assert is_complete(read_manifest(folder), read_state(folder))
    manifest, goes_on = typed("--name", "x", "--extend", "3")
    assert goes_on and manifest.requested.n_trials == 5 and manifest.requested.extended_from == (2,)
    assert not is_complete(manifest, read_state(folder))
    write_manifest(folder, manifest)
    first_command_again, _ = typed("--resume", "--name", "x", "--num-samples", "2")
    assert first_command_again.requested.n_trials == 5
    with pytest.raises(ConfigError) as error:
        typed("--resume", "--name", "x", "--num-samples", "3")
    assert all(text in str(error.value) for text in ("num-samples", "3", "5"))


def test_more_samples_of_a_complete_study_names_extend(typed: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    folder = typed.start("x", "--num-samples", "2")
    finish(folder)
    assert main(["--resume", "--name", "x", "--storage", str(typed.storage), "--num-samples", "6"]) == 2
    output = capsys.readouterr().out
    assert all(text in output for text in ("--num-samples 6", "2", "--extend"))


@pytest.mark.slow
def test_a_driver_killed_after_the_last_trial_leaves_a_complete_study(typed: Commands, capsys) -> None:
    folder = typed.start("x", "--num-samples", "2", ended=0, opened=2)
    finish(folder)
    shutil.rmtree(folder / "experiments")
    assert read_manifest(folder).progress.status == "running"
    assert main(["--resume", "--name", "x", "--storage", str(typed.storage)]) == 1  # no trial measured a point
    assert "is complete already" in capsys.readouterr().out
    manifest = read_manifest(folder)
    assert manifest.progress.status == "complete"
    assert manifest.progress.trials == {"complete": 2, "rejected": 0}
    assert json.loads((folder / "experiments" / "t0001" / "info.json").read_text())["status"] == "complete"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "cut", "emptied"])
def test_the_table_of_a_complete_study_is_rebuilt(typed: Commands, damage: str, capsys) -> None:
    """A lost or damaged points.csv, info.json or results.csv is written again with equal bytes, as is the report."""
    folder = typed.start("x", "--num-samples", "3", ended=3, opened=0)
    points, info = folder / "points.csv", folder / "experiments" / "t0001" / "info.json"
    whole, info_text = points.read_bytes(), info.read_bytes()
    assert whole.count(b"\n") == 4
    if damage == "deleted":
        points.unlink()
        shutil.rmtree(info.parent)
    else:
        points.write_bytes(whole[:-40] if damage == "cut" else b"")
        info.write_bytes(info_text[:-40] if damage == "cut" else b"")
    assert main(["--resume", "--name", "x", "--storage", str(typed.storage)]) == 0
    assert points.read_bytes() == whole and info.read_bytes() == info_text
    assert (folder / "report.html").stat().st_size > 10_000
    assert "t0002" in (folder / "front.csv").read_text()
    assert [type(e) for e in read_events(folder)].count(DriverStarted) == 1, "nothing was run"


@pytest.mark.slow
def test_confirmations_that_a_kill_left_out_are_added(typed: Commands) -> None:
    folder = typed.start("x", "--num-samples", "1", ended=0)
    manifest = read_manifest(folder).changed(confirmations=("t0000r1", "t0000r2"))
    assert manifest.requested.n_trials == 3
    for _ in range(2):
        trials = begun(folder, manifest).log.state.trials
        assert list(trials) == ["t0000", "t0000r1", "t0000r2"]
        assert [t.replicate for t in trials.values()] == [0, 1, 2]
        assert [t.confirms for t in trials.values()] == [False, True, True]


@pytest.mark.slow
def test_the_front_is_confirmed_with_further_seeds(typed: Commands) -> None:
    folder = typed.start("x", "--num-samples", "3", ended=3, opened=0)
    for k in (1, 2):
        manifest, _ = typed("--name", "x", "--confirm", "1")
        search = begun(folder, manifest, "--confirm", "1")
        names = [f"{name}r{k}" for name in ("t0000", "t0001", "t0002")]  # each has more MACs and a better accuracy
        assert [t.name for t in search.log.state.open] == names
        assert read_manifest(folder).requested.confirmations[-3:] == tuple(names)
        finish(folder)


def test_nothing_to_extend(typed: Commands) -> None:
    with pytest.raises(StudyError, match="no study x in"):
        typed("--name", "x", "--extend", "3")
    with pytest.raises(StudyError, match="no complete study in"):
        typed("--confirm", "3")
