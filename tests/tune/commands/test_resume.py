"""What a resume accepts and what it refuses, naming what differs; no study runs here."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from analysis.manifest import Requested, StudyManifest
from data.signals import INTERRUPTED
from search_spaces import FOLDER, load_space, space_from_dict
from tests.support.driven_study import SMALL, Commands, Driver
from tests.support.tune.resumed import begun, files_of, finish
from trainables.config.schema import ConfigError
from trainables.inputs.code import code_files
from tune.arguments import cluster_options, parser
from tune.commands.search import print_end
from tune.driver import Search, close
from tune.options import check_new
from tune.planning.changes import CODE
from tune.resume import resume_command
from tune.study.access import StudyAccess
from tune.study.events import DriverFinished, TrialRetried
from tune.study.journal import Reading, read_events, read_state
from tune.study.manifest import StudyError, is_complete, read_manifest, write_manifest
from tune.study.retry import Retry
from tune.study.writer import Journal


def test_the_same_command_starts_and_continues(typed: Commands) -> None:
    words = ["--space", "kd", "--name", "x", "--resume", "auto", "--num-samples", "2", *typed.arguments]
    manifest, goes_on = typed(*words)
    assert (manifest.progress.status, goes_on) == ("new", True)
    folder = typed.start("x", "--num-samples", "2")
    again, goes_on = typed(*words)
    assert (again.progress.status, goes_on) == ("running", True)
    assert again.resolved.config == manifest.resolved.config
    finish(folder)
    assert not typed(*words)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--num-samples", "5"], "num_samples", "5"),
        (["--sampler", "nsga2"], "sampler", "nsga2"),
        (["--scheduler", "asha"], "scheduler", "asha"),
        (["--seeds-per-config", "2"], "seeds_per_config", "2"),
        (["--seed", "4"], "seed", "4"),
        (["train.batch_size=7"], "train.batch_size", "7"),
        (["--batch_size=7"], "train.batch_size", "7"),
        (["data.validation_share=0.3"], "data.validation_share", "0.3"),
        (["--subset", "5"], "data.subset", "5"),
    ],
)
def test_other_options_than_it_was_started_with(typed: Commands, words: list[str], key: str, value: str) -> None:
    """The error names the key and both values."""
    folder = typed.start("x")
    before, manifest = files_of(folder), read_manifest(folder)
    here = manifest.resolved.config[key] if "." in key else getattr(manifest.requested, key)
    with pytest.raises(ConfigError) as error:
        typed("--resume", "--name", "x", *words)
    message = str(error.value).rpartition("), but ")[2]
    assert all(text in message for text in (key.replace("_", "-") if "." not in key else key, value, str(here)))
    assert files_of(folder) == before


def test_overrides_are_compared_as_mappings(typed: Commands) -> None:
    """Order and number of overrides do not matter; the error names only the differing key, with both values."""
    typed.start("x", "train.epochs=4", "train.batch_size=8", "profile=quick", "distill.kd_alpha=0.25", space="rep")
    resume = ["--resume", "--name", "x"]
    assert typed(*resume, "distill.kd_alpha=0.25", "profile=quick", *typed.arguments, "train.batch_size=8")[1]
    assert typed(*resume, "train.epochs=4", "--space", "rep")[1]
    assert typed(*resume, *reversed(typed.arguments))[1]
    with pytest.raises(ConfigError) as error:
        typed(*resume, "train.batch_size=8", "--epochs=5", *reversed(typed.arguments), "distill.kd_alpha=0.25")
    message = str(error.value).rpartition("), but ")[2]
    assert all(text in message for text in ("train.epochs", "5", "4"))
    assert not any(o.partition("=")[0] in message for o in ("train.batch_size=8", "distill.kd_alpha=0.25", *SMALL))


@pytest.mark.parametrize(
    "word",
    ["distill.kd_alpha=0.250", "distill.kd_alpha=2.5e-1", "--kd_temp=4", "profile='quick'", "--split_dir null"],
)
def test_values_are_compared_and_not_their_spelling(typed: Commands, word: str) -> None:
    typed.start("x", "train.epochs=4", "profile=quick", "distill.kd_alpha=0.25", space="rep")
    assert typed("--resume", "--name", "x", *word.split(" "))[1]


def test_a_searched_key_is_refused_at_a_resume_too(typed: Commands) -> None:
    """Even if the typed value equals the value in the study's base configuration."""
    typed.start("x")
    manifest = read_manifest(typed.storage / "x")
    for value in (manifest.resolved.config["distill.kd_alpha"], 0.125):
        with pytest.raises(ConfigError) as error:
            typed("--resume", "--name", "x", f"--kd_alpha={value}")
        assert all(text in str(error.value) for text in ("distill.kd_alpha", str(value), "uniform"))


def test_what_belongs_to_the_machine_may_change(typed: Commands) -> None:
    typed.start("x")
    manifest, _ = typed("--resume", "--name", "x", "--max-concurrent", "7", "--cpus-per-trial", "0.5")
    assert (manifest.requested.max_concurrent, manifest.requested.cpus_per_trial) == (7, 0.5)


def test_changed_code_is_refused_and_named(typed: Commands) -> None:
    folder = typed.start("x")
    manifest = read_manifest(folder)
    code = manifest.resolved.code | {"ascmodels/students/repconv.py": "another", "data/gone.py": "was here"}
    write_manifest(folder, manifest.changed(code=code))
    with pytest.raises(StudyError) as error:
        typed("--resume", "--name", "x")
    for text in ("ascmodels/students/repconv.py (changed)", "data/gone.py (deleted)", "--allow-changes"):
        assert text in str(error.value)
    allowed, _ = typed("--resume", "--name", "x", "--allow-changes")
    assert allowed.resolved.code == code_files(CODE)
    assert "repconv.py" in allowed.progress.changes[0].what


def test_the_code_that_decides_a_study_is_compared() -> None:
    """All files of the search are listed; an unlisted one could change a study unnoticed."""
    files = code_files(CODE)
    for name in ("tune/search/sampler.py", "tune/search/session.py", "trainables/trial/trial.py", "data/tau.py"):
        assert name in files
    assert not any(name.startswith(("tests/", "analysis/", "tune/reporting/")) for name in files)


def test_changed_space_is_refused_and_shown(typed: Commands, tmp_path: Path) -> None:
    typed.start("x")
    text = (FOLDER / "kd.yaml").read_text().replace("[1.0, 8.0]", "[1.0, 9.0]")
    (tmp_path / "kd.yaml").write_text(text)
    words = ["--resume", "--name", "x", "--space", str(tmp_path / "kd.yaml")]
    with pytest.raises(StudyError) as error:
        typed(*words)
    assert all(text in str(error.value) for text in ("distill.kd_temp", "8.0", "9.0"))
    assert "train.lr" not in str(error.value)
    manifest, _ = typed(*words, "--allow-changes")
    assert manifest.resolved.space["parameters"]["distill.kd_temp"] == {"uniform": [1.0, 9.0]}


def test_a_study_that_has_moved_continues_with_its_cache(typed: Commands, tmp_path: Path) -> None:
    folder = typed.start("x")
    cache = typed.storage / "cache" / "teacher-1"
    cache.mkdir(parents=True)
    manifest = read_manifest(folder)
    config = manifest.resolved.config | {"distill.teacher_ckpts": [str(cache)]}
    write_manifest(folder, manifest.changed(config=config))
    shutil.move(typed.storage, tmp_path / "elsewhere")
    moved, _ = typed("--resume", "--name", "x", storage=tmp_path / "elsewhere")
    assert moved.resolved.folder == str(tmp_path / "elsewhere" / "x")
    assert moved.resolved.config["data.cache_dir"] == str(tmp_path / "elsewhere" / "cache")
    assert moved.resolved.config["distill.teacher_ckpts"] == [str(tmp_path / "elsewhere" / "cache" / "teacher-1")]
    assert moved.resolved.config["data.dataset_dir"] == config["data.dataset_dir"]


def test_a_data_set_that_has_moved_is_typed(typed: Commands, tiny_tau: Path, tmp_path: Path) -> None:
    typed.start("x")
    there = tmp_path / tiny_tau.name
    there.symlink_to(tiny_tau)
    manifest, _ = typed("--resume", "--name", "x", f"--dataset_dir={there}")
    assert manifest.resolved.config["data.dataset_dir"] in (str(there), str(tiny_tau.resolve()))


@pytest.mark.slow
@pytest.mark.parametrize("open_trials", [0, 1])
def test_crashed_trials_are_retried_beside_others_that_completed(typed: Commands, open_trials: int) -> None:
    """Both in a complete study and in one with open trials."""
    folder = typed.start("x", "--num-samples", str(4 + open_trials), ended=2, opened=open_trials)
    driver = Driver(folder, load_space("kd"))
    for name, outcome in (("t0010", "crashed"), ("t0011", "failed")):
        driver.create(name)
        driver.end(name, outcome, "no data here")
    driver.close()
    assert is_complete(read_manifest(folder), driver.state) == (not open_trials)
    manifest, goes_on = typed("--resume", "--name", "x")
    assert goes_on
    state = begun(folder, manifest).log.state
    assert [t.name for t in state.open] == ["t0002"] * open_trials + ["t0010"]
    assert state.trials["t0011"].outcome == "failed", "it would fail again"
    assert not is_complete(manifest, state)
    assert [e.trial for e in read_events(folder) if isinstance(e, TrialRetried)] == ["t0010"]
    assert read_state(folder) == state


def test_a_study_of_crashed_trials_alone_is_tried_again(typed: Commands) -> None:
    folder = typed.start("x", "--num-samples", "1", ended=0)
    driver = Driver(folder, load_space("kd"))
    driver.end("t0000", "crashed", "no data here")
    driver.close()
    assert is_complete(read_manifest(folder), driver.state)
    assert typed("--resume", "--name", "x")[1]


@pytest.mark.slow
def test_a_driver_interrupted_before_its_first_trial_says_how_to_continue(typed: Commands) -> None:
    folder = typed.start("x", "--num-samples", "3")
    manifest, _ = typed("--resume", "--name", "x")
    search, text = begun(folder, manifest), StringIO()
    manifest = close(StudyAccess(folder), manifest, search.log.state)
    console = Console(file=text, width=200)
    assert print_end(StudyAccess(folder), manifest, search, None, console) == INTERRUPTED
    assert "1 of 3" in text.getvalue() and f"--resume --name x --storage {typed.storage}" in text.getvalue()
    assert read_manifest(folder).progress.status == "interrupted"


def test_a_folder_that_a_kill_left_empty_is_taken(typed: Commands) -> None:
    (typed.storage / "x").mkdir(parents=True)
    words = ["--space", "kd", "--name", "x", "--resume", "auto", *typed.arguments]
    assert typed(*words)[0].progress.status == "new"
    check_new(typed.storage / "x", typed(*words)[0])
    (typed.storage / "x" / "notes.txt").write_text("mine")
    with pytest.raises(StudyError) as error:
        check_new(typed.storage / "x", typed(*words)[0])
    assert str(typed.storage / "x") in str(error.value)


def test_a_study_of_a_version_without_a_journal(typed: Commands) -> None:
    folder = typed.start("x")
    shutil.rmtree(folder / "journal")
    assert typed("--resume", "--name", "x")[1]  # killed before its first event
    old = read_manifest(folder).changed(code={})
    write_manifest(folder, old)
    with pytest.raises(StudyError, match="has no journal"):
        typed("--resume", "--name", "x")
    write_manifest(folder, old.changed(status="complete"))
    assert not typed("--resume", "--name", "x")[1]


@pytest.mark.slow
def test_warm_start_from_what_is_not_there(typed: Commands) -> None:
    with pytest.raises(StudyError) as error:
        typed("--space", "kd", "--warm-start", "nowhere", *typed.arguments)
    assert "nowhere" in str(error.value)
    earlier = typed.start("old")
    for named in ("old", str(earlier)):
        manifest, _ = typed("--space", "kd", "--name", "new", "--warm-start", named, *typed.arguments)
        assert manifest.requested.warm_start == (str(earlier),)
        assert json.dumps(manifest.to_json())


def test_an_unknown_key_is_named_with_the_nearest(typed: Commands) -> None:
    typed.start("x")
    with pytest.raises(ConfigError, match=r"train\.epoch\b.*train\.epochs"):
        typed("--resume", "--name", "x", "train.epoch=3")


@pytest.mark.slow
def test_a_replay_that_differs_from_the_run_is_reported(typed: Commands, capsys) -> None:
    folder = typed.start("x", "--num-samples", "3")
    manifest = read_manifest(folder)
    space, retry = space_from_dict(manifest.resolved.space), Retry(lambda message: None)

    def replayed() -> tuple[Search, str]:
        search = Search(StudyAccess(folder), manifest, space, retry, Console(width=200))
        search.journal.close()
        return search, capsys.readouterr().out

    search, output = replayed()
    assert output == ""
    for digests, differing in ((search.digests(), ""), (search.digests() | {"sampler": "another"}, "sampler")):
        reading = Reading(folder)
        events = list(reading)
        journal = Journal(folder, reading.after)
        journal.append((DriverFinished(digests=digests),))
        journal.close()
        _, output = replayed()
        assert ("warning" in output) == bool(differing) and differing in output
        assert len(events) > 3


@pytest.mark.parametrize("words", ["", "--address auto", "--address h:1 --allow-open-cluster", "--allow-open-cluster"])
def test_resume_command_uses_the_same_cluster(words: str) -> None:
    options = parser("").parse_args(words.split())
    manifest = StudyManifest(Requested("X"))
    line = resume_command(Path("/runs/X"), manifest, cluster_options(options))
    assert line.endswith(f" --resume --name X --storage /runs {words}".rstrip())
