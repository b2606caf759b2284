"""What a resume accepts and refuses, and in which words; no study runs here."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from search_spaces import FOLDER
from trainables.config import ConfigError
from trainables.identity import code_files
from tune.journal import Journal, read_log
from tune.options import open_study, parser
from tune.resume import CODE
from tune.run import begin, main
from tune.study import StudyError, is_complete, n_trials, read_manifest, write_manifest

SMALL = ["frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32"]


class Typed:
    """`tune/run.py` up to the moment before anything runs."""

    def __init__(self, storage: Path, dataset: Path):
        self.storage, self.given = storage, [f"--dataset_dir={dataset}", *SMALL]

    def __call__(self, *words: str, storage: Path | None = None) -> tuple[Path, dict]:
        line = ["--storage", str(storage or self.storage), *words]
        options, rest = parser("").parse_known_args(line)
        return open_study(options, rest, line)

    def start(self, name: str, *words: str, ended: int = 1) -> Path:
        """A study as a killed driver leaves it: `ended` trials complete and one open."""
        folder, manifest = self("--space", "kd", "--name", name, *words, *self.given)
        folder.mkdir()
        write_manifest(folder, manifest | {"status": "running"})
        journal = Journal(folder)
        journal.add("run", command=manifest["command"])
        for i in range(ended + 1):
            name = f"t{i:04d}"
            journal.add("trial", trial=name, config_id=name, replicate=0, params={}, values={})
            if i < ended:
                journal.add("result", trial=name, stage=0, epochs=1, done=True, finished=True)
        journal.close()
        return folder


@pytest.fixture
def typed(tmp_path: Path, tiny_tau: Path) -> Typed:
    return Typed(tmp_path / "runs", tiny_tau)


def finish(folder: Path) -> None:
    journal = Journal(folder)
    for name in [t.name for t in journal.log.trials.values() if not t.ended]:
        journal.add("result", trial=name, stage=0, epochs=1, done=True, finished=True)
    journal.close()


def test_the_same_command_starts_and_goes_on(typed: Typed) -> None:
    words = ["--space", "kd", "--name", "x", "--resume", "auto", "--num-samples", "2", *typed.given]
    folder, manifest = typed(*words)
    assert manifest["status"] == "new"
    typed.start("x", "--num-samples", "2")
    _, again = typed(*words)
    assert again["status"] == "running"
    assert again["config"] == manifest["config"]
    finish(folder)
    assert typed(*words)[1]["status"] == "complete"


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", [["--num-samples", "5"], ["--sampler", "nsga2"], ["--seeds-per-config", "2"], ["train.lr=0.01"]]
)
def test_other_options_than_it_was_started_with(typed: Typed, word: list[str]) -> None:
    typed.start("x")
    with pytest.raises(ConfigError, match=f"goes on as it was started .*drop {word[0]}"):
        typed("--resume", "--name", "x", *word)


def test_the_machines_share_may_change(typed: Typed) -> None:
    typed.start("x")
    _, manifest = typed("--resume", "--name", "x", "--max-concurrent", "7")
    assert manifest["max_concurrent"] == 7


def test_changed_code_is_refused_and_named(typed: Typed) -> None:
    folder = typed.start("x")
    manifest = read_manifest(folder)
    manifest["code"]["ascmodels/repconv.py"] = "another"
    manifest["code"]["data/gone.py"] = "was here"
    write_manifest(folder, manifest)
    with pytest.raises(StudyError, match=r"ascmodels/repconv\.py \(changed\), data/gone\.py \(gone\).*--allow-changes"):
        typed("--resume", "--name", "x")
    _, allowed = typed("--resume", "--name", "x", "--allow-changes")
    assert allowed["code"] == code_files(CODE)
    assert "repconv.py" in allowed["changes"][0]["what"]


def test_changed_space_is_refused_and_shown(typed: Typed, tmp_path: Path) -> None:
    typed.start("x")
    text = (FOLDER / "kd.yaml").read_text().replace("[1.0, 8.0]", "[1.0, 9.0]")
    (tmp_path / "kd.yaml").write_text(text)
    words = ["--resume", "--name", "x", "--space", str(tmp_path / "kd.yaml")]
    with pytest.raises(StudyError, match=r"distill\.kd_temp: .*8\.0\]} there, .*9\.0\]} here"):
        typed(*words)
    _, manifest = typed(*words, "--allow-changes")
    assert manifest["space"]["parameters"]["distill.kd_temp"] == {"uniform": [1.0, 9.0]}


def test_a_study_that_has_moved_goes_on_with_its_cache(typed: Typed, tmp_path: Path) -> None:
    folder = typed.start("x")
    cache = typed.storage / "cache" / "teacher-1"
    cache.mkdir(parents=True)
    manifest = read_manifest(folder)
    manifest["config"]["distill.teacher_ckpts"] = [str(cache)]
    write_manifest(folder, manifest)
    shutil.move(typed.storage, tmp_path / "elsewhere")
    _, moved = typed("--resume", "--name", "x", storage=tmp_path / "elsewhere")
    assert moved["folder"] == str(tmp_path / "elsewhere" / "x")
    assert moved["config"]["data.cache_dir"] == str(tmp_path / "elsewhere" / "cache")
    assert moved["config"]["distill.teacher_ckpts"] == [str(tmp_path / "elsewhere" / "cache" / "teacher-1")]
    assert moved["config"]["data.dataset_dir"] == manifest["config"]["data.dataset_dir"]


def test_a_data_set_that_has_moved_is_typed(typed: Typed, tiny_tau: Path, tmp_path: Path) -> None:
    typed.start("x")
    there = tmp_path / tiny_tau.name
    there.symlink_to(tiny_tau)
    _, manifest = typed("--resume", "--name", "x", f"--dataset_dir={there}")
    assert manifest["config"]["data.dataset_dir"] in (str(there), str(tiny_tau.resolve()))


def test_extension_of_a_complete_study_only(typed: Typed) -> None:
    folder = typed.start("x", "--num-samples", "2")
    assert typed("--name", "x", "--extend", "3")[1]["num_samples"] == 2  # it has trials left: first these
    finish(folder)
    assert is_complete(read_manifest(folder), read_log(folder))
    _, manifest = typed("--name", "x", "--extend", "3")
    assert manifest["status"] == "extended"
    assert n_trials(manifest) == 5
    assert not is_complete(manifest, read_log(folder))
    write_manifest(folder, manifest)
    assert n_trials(typed("--resume", "--name", "x", "--num-samples", "2")[1]) == 5  # the first command stays good
    with pytest.raises(ConfigError, match="drop --num-samples"):
        typed("--resume", "--name", "x", "--num-samples", "3")


@pytest.mark.slow
def test_a_driver_killed_after_the_last_trial_leaves_a_complete_study(typed: Typed, capsys) -> None:
    folder = typed.start("x", "--num-samples", "2")
    finish(folder)
    assert read_manifest(folder)["status"] == "running"
    assert main(["--resume", "--name", "x", "--storage", str(typed.storage)]) == 1  # no trial measured a point
    assert "is complete already" in capsys.readouterr().out
    assert read_manifest(folder)["status"] == "complete"
    assert read_manifest(folder)["trials"] == {"complete": 2, "rejected": 0}
    assert json.loads((folder / "experiments" / "t0001" / "info.json").read_text())["status"] == "complete"


def test_a_study_of_crashed_trials_alone_is_tried_again(typed: Typed) -> None:
    folder = typed.start("x", "--num-samples", "1", ended=0)
    journal = Journal(folder)
    journal.add("end", trial="t0000", status="failed", failure="no data here")
    assert is_complete(read_manifest(folder), journal.log)
    assert typed("--resume", "--name", "x")[1]["status"] == "extended"


def test_confirmations_that_a_kill_left_out_are_added(typed: Typed) -> None:
    folder = typed.start("x", "--num-samples", "1", ended=0)
    manifest = read_manifest(folder) | {"confirmations": ["t0000r1", "t0000r2"]}
    assert n_trials(manifest) == 3
    journal, options = Journal(folder), parser("").parse_args(["--confirm", "2"])
    for _ in range(2):
        begin(folder, manifest, journal, options, Console(quiet=True))
        assert list(journal.log.trials) == ["t0000", "t0000r1", "t0000r2"]
        assert [t.replicate for t in journal.log.trials.values()] == [0, 1, 2]


def test_a_folder_that_a_kill_left_empty_is_taken(typed: Typed) -> None:
    (typed.storage / "x").mkdir(parents=True)
    words = ["--space", "kd", "--name", "x", "--resume", "auto", *typed.given]
    assert typed(*words)[1]["status"] == "new"
    (typed.storage / "x" / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match="exists already"):
        typed(*words)


def test_nothing_to_extend(typed: Typed) -> None:
    with pytest.raises(StudyError, match="no study x in"):
        typed("--name", "x", "--extend", "3")
    with pytest.raises(StudyError, match="no complete study in"):
        typed("--confirm", "3")


def test_a_study_of_a_version_without_a_journal(typed: Typed) -> None:
    folder = typed.start("x")
    shutil.rmtree(folder / "journal")
    assert typed("--resume", "--name", "x")[1]["status"] == "running"  # killed before its first event
    manifest = read_manifest(folder)
    del manifest["code"]
    write_manifest(folder, manifest)
    with pytest.raises(StudyError, match="has no journal"):
        typed("--resume", "--name", "x")
    write_manifest(folder, manifest | {"status": "complete"})
    assert typed("--resume", "--name", "x")[1]["status"] == "complete"


@pytest.mark.slow
def test_warm_start_from_what_is_not_there(typed: Typed) -> None:
    with pytest.raises(StudyError, match="--warm-start nowhere: no study of that name"):
        typed("--space", "kd", "--warm-start", "nowhere", *typed.given)
    earlier = typed.start("old")
    for named in ("old", str(earlier)):
        _, manifest = typed("--space", "kd", "--name", "new", "--warm-start", named, *typed.given)
        assert manifest["warm_start"] == [str(earlier)]
        assert json.dumps(manifest)
