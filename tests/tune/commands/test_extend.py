"""Which study a command continues; a complete study is extended, its front confirmed, its tables rebuilt. No study runs
here."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.driven_study import Commands
from tests.support.tune.resumed import begun, files_of, finish
from trainables.config.schema import ConfigError
from tune.options import read_request
from tune.resume import find_study
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


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[]", b'{"name": "x"}', b"\x80"])
def test_a_damaged_manifest_in_a_store_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store" / "x").mkdir(parents=True)
    (tmp_path / "store" / "x" / "study.json").write_bytes(content)
    options = read_request(["--storage", str(tmp_path / "here"), "--resume", "--name", "x"]).options
    with pytest.raises(StudyError) as error:
        find_study(tmp_path / "here", str(tmp_path / "store"), options, print)
    assert str(tmp_path / "store" / "x" / "study.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("more", [(), ("--space", "kd")])
def test_a_damaged_study_that_is_not_the_newest_is_skipped(
    typed: Commands, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    """It does not stop a resume of the other studies; a warning names its file."""
    typed.start("x")
    damaged = typed.storage / "old" / "study.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    os.utime(damaged, (1e9, 1e9))
    manifest, _ = typed("--resume", *more)
    assert manifest.requested.name == "x"
    printed = capsys.readouterr().out
    assert str(damaged) in printed and printed.count("\n") == 1
    with pytest.raises(StudyError) as error:
        typed("--resume", "--name", "old", *more)
    assert str(damaged) in str(error.value)


@pytest.mark.parametrize("words", [("--resume",), ("--resume", "--space", "kd"), ("--extend", "1")])
def test_a_damaged_study_that_may_be_the_newest_is_refused(typed: Commands, words: tuple[str, ...]) -> None:
    typed.start("x")
    damaged = typed.storage / "new" / "study.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    with pytest.raises(StudyError) as error:
        typed(*words)
    assert all(text in str(error.value) for text in (str(damaged), "--name"))
    assert typed("--resume", "--name", "x")[0].requested.name == "x"


def test_a_damaged_study_in_a_store_is_skipped(
    typed: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(typed.start("x"), store / "x")
    (store / "old").mkdir()
    (store / "old" / "study.json").write_text("[]")
    options = read_request(["--storage", str(tmp_path / "here"), "--resume"]).options
    with pytest.raises(StudyError) as error:
        find_study(tmp_path / "here", str(store), options, print)
    assert str(store / "old" / "study.json") in str(error.value)
    os.utime(store / "old" / "study.json", (1e9, 1e9))
    assert find_study(tmp_path / "here", str(store), options, print) == "x"
    assert str(store / "old" / "study.json") in capsys.readouterr().out
