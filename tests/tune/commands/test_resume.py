"""What a resume accepts and what it refuses, naming what differs; no study runs here."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from analysis.manifest import StudyManifest
from search_spaces import FOLDER, load_space, space_from_dict
from tests.support.driven_study import SMALL, Commands, Driver
from trainables.config.schema import ConfigError
from trainables.inputs.code import code_files
from tune.arguments import parser
from tune.driver import Search
from tune.resume import CODE
from tune.run import INTERRUPTED, check_new, close, main, print_end
from tune.study.events import DriverFinished, DriverStarted, TrialRetried
from tune.study.hold import Held
from tune.study.journal import Journal, Reading, read_events, read_state
from tune.study.manifest import StudyError, is_complete, read_manifest, write_manifest
from tune.study.waiting import Patience


@pytest.fixture
def typed(tmp_path: Path, tiny_tau: Path) -> Commands:
    return Commands(tmp_path / "runs", tiny_tau)


def finish(folder: Path) -> None:
    """The trials that are under way end, and the study with them."""
    driver = Driver(folder, load_space("kd"))
    for trial in driver.state.open:
        driver.epoch(trial.name, 1)
        driver.end(trial.name)
    driver.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_starts_and_continues(typed: Commands) -> None:
    words = ["--space", "kd", "--name", "x", "--resume", "auto", "--num-samples", "2", *typed.given]
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
    """The key and both values are named."""
    folder = typed.start("x")
    before, manifest = files_of(folder), read_manifest(folder)
    here = manifest.resolved.config[key] if "." in key else getattr(manifest.asked, key)
    with pytest.raises(ConfigError) as error:
        typed("--resume", "--name", "x", *words)
    message = str(error.value).rpartition("), but ")[2]
    assert all(text in message for text in (key.replace("_", "-") if "." not in key else key, value, str(here)))
    assert files_of(folder) == before


def test_overrides_are_compared_as_mappings(typed: Commands) -> None:
    """Their order and number do not matter; one that differs is named alone, with both values."""
    typed.start("x", "train.epochs=4", "train.batch_size=8", "profile=quick", "distill.kd_alpha=0.25", space="rep")
    resume = ["--resume", "--name", "x"]
    assert typed(*resume, "distill.kd_alpha=0.25", "profile=quick", *typed.given, "train.batch_size=8")[1]
    assert typed(*resume, "train.epochs=4", "--space", "rep")[1]
    assert typed(*resume, *reversed(typed.given))[1]
    with pytest.raises(ConfigError) as error:
        typed(*resume, "train.batch_size=8", "--epochs=5", *reversed(typed.given), "distill.kd_alpha=0.25")
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
    """Also where the typed value is the one that samples are laid over."""
    typed.start("x")
    manifest = read_manifest(typed.storage / "x")
    for value in (manifest.resolved.config["distill.kd_alpha"], 0.125):
        with pytest.raises(ConfigError) as error:
            typed("--resume", "--name", "x", f"--kd_alpha={value}")
        assert all(text in str(error.value) for text in ("distill.kd_alpha", str(value), "uniform"))


def test_what_belongs_to_the_machine_may_change(typed: Commands) -> None:
    typed.start("x")
    manifest, _ = typed("--resume", "--name", "x", "--max-concurrent", "7", "--cpus-per-trial", "0.5")
    assert (manifest.asked.max_concurrent, manifest.asked.cpus_per_trial) == (7, 0.5)


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
    """A file of the search that is not listed could change a study without a word."""
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
    assert goes_on and manifest.asked.n_trials == 5 and manifest.asked.extended_from == (2,)
    assert not is_complete(manifest, read_state(folder))
    write_manifest(folder, manifest)
    assert typed("--resume", "--name", "x", "--num-samples", "2")[0].asked.n_trials == 5  # the first command stays good
    with pytest.raises(ConfigError) as error:
        typed("--resume", "--name", "x", "--num-samples", "3")
    assert all(text in str(error.value) for text in ("num-samples", "3", "5"))


def test_more_samples_of_a_complete_study_names_extend(typed: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    folder = typed.start("x", "--num-samples", "2")
    finish(folder)
    assert main(["--resume", "--name", "x", "--storage", str(typed.storage), "--num-samples", "6"]) == 2
    told = capsys.readouterr().out
    assert all(text in told for text in ("--num-samples 6", "2", "--extend"))


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
    """points.csv comes back byte for byte, and the report with it; so do info.json and results.csv of the trials."""
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


def begun(folder: Path, manifest: StudyManifest, *words: str) -> Search:
    """A driver that has written its first events."""
    options = parser("").parse_args(list(words))
    space = space_from_dict(manifest.resolved.space)
    console = Console(quiet=True)
    search = Search(Held(folder), manifest, space, Patience(lambda message: None), console)
    search.begin(options.confirm)
    search.journal.close()
    return search


@pytest.mark.slow
@pytest.mark.parametrize("open_trials", [0, 1])
def test_crashed_trials_are_retried_beside_others_that_completed(typed: Commands, open_trials: int) -> None:
    """In a complete study as well as in one with open trials."""
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
def test_confirmations_that_a_kill_left_out_are_added(typed: Commands) -> None:
    folder = typed.start("x", "--num-samples", "1", ended=0)
    manifest = read_manifest(folder).changed(confirmations=("t0000r1", "t0000r2"))
    assert manifest.asked.n_trials == 3
    for _ in range(2):
        trials = begun(folder, manifest).log.state.trials
        assert list(trials) == ["t0000", "t0000r1", "t0000r2"]
        assert [t.replicate for t in trials.values()] == [0, 1, 2]
        assert [t.confirms for t in trials.values()] == [False, True, True]


@pytest.mark.slow
def test_a_driver_interrupted_before_its_first_trial_says_how_to_continue(typed: Commands) -> None:
    folder = typed.start("x", "--num-samples", "3")
    manifest, _ = typed("--resume", "--name", "x")
    search, text = begun(folder, manifest), StringIO()
    manifest = close(Held(folder), manifest, search.log.state)
    console = Console(file=text, width=200)
    assert print_end(Held(folder), manifest, search, None, console) == INTERRUPTED
    assert "1 of 3" in text.getvalue() and f"--resume --name x --storage {typed.storage}" in text.getvalue()
    assert read_manifest(folder).progress.status == "interrupted"


@pytest.mark.slow
def test_the_front_is_confirmed_with_further_seeds(typed: Commands) -> None:
    folder = typed.start("x", "--num-samples", "3", ended=3, opened=0)
    for k in (1, 2):
        manifest, _ = typed("--name", "x", "--confirm", "1")
        search = begun(folder, manifest, "--confirm", "1")
        names = [f"{name}r{k}" for name in ("t0000", "t0001", "t0002")]  # each has more MACs, and is better
        assert [t.name for t in search.log.state.open] == names
        assert read_manifest(folder).asked.confirmations[-3:] == tuple(names)
        finish(folder)


def test_a_folder_that_a_kill_left_empty_is_taken(typed: Commands) -> None:
    (typed.storage / "x").mkdir(parents=True)
    words = ["--space", "kd", "--name", "x", "--resume", "auto", *typed.given]
    assert typed(*words)[0].progress.status == "new"
    check_new(typed.storage / "x", typed(*words)[0])
    (typed.storage / "x" / "notes.txt").write_text("mine")
    with pytest.raises(StudyError) as error:
        check_new(typed.storage / "x", typed(*words)[0])
    assert str(typed.storage / "x") in str(error.value)


def test_nothing_to_extend(typed: Commands) -> None:
    with pytest.raises(StudyError, match="no study x in"):
        typed("--name", "x", "--extend", "3")
    with pytest.raises(StudyError, match="no complete study in"):
        typed("--confirm", "3")


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
        typed("--space", "kd", "--warm-start", "nowhere", *typed.given)
    assert "nowhere" in str(error.value)
    earlier = typed.start("old")
    for named in ("old", str(earlier)):
        manifest, _ = typed("--space", "kd", "--name", "new", "--warm-start", named, *typed.given)
        assert manifest.asked.warm_start == (str(earlier),)
        assert json.dumps(manifest.to_json())


def test_an_unknown_key_is_named_with_the_nearest(typed: Commands) -> None:
    typed.start("x")
    with pytest.raises(ConfigError, match=r"train\.epoch\b.*train\.epochs"):
        typed("--resume", "--name", "x", "train.epoch=3")


@pytest.mark.slow
def test_a_replay_that_differs_from_the_run_is_reported(typed: Commands, capsys) -> None:
    folder = typed.start("x", "--num-samples", "3")
    manifest = read_manifest(folder)
    space, patience = space_from_dict(manifest.resolved.space), Patience(lambda message: None)

    def replayed() -> tuple[Search, str]:
        search = Search(Held(folder), manifest, space, patience, Console(width=200))
        search.journal.close()
        return search, capsys.readouterr().out

    search, said = replayed()
    assert said == ""
    for digests, differing in ((search.digests(), ""), (search.digests() | {"sampler": "another"}, "sampler")):
        reading = Reading(folder)
        events = list(reading)
        journal = Journal(folder, reading.after)
        journal.append((DriverFinished(digests=digests),))
        journal.close()
        _, said = replayed()
        assert ("another state of" in said) == bool(differing) and differing in said
        assert len(events) > 3
