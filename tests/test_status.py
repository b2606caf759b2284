"""`tune/status.py` on studies at every stage of their life, with a journal as the driver writes it."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from example_study import rows, write_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from test_architecture import imports, sources

from analysis.front import pareto_points
from analysis.results import load_study
from search_spaces import load_space
from tune.journal import Journal
from tune.mirror import Mirror
from tune.reading import Follower, is_held, lock_of, open_place
from tune.status import main
from tune.study import StudyError, lock

TOO_LARGE = "over the limits at every stage"
SPACE = load_space("kd_prune")


class Driver:
    """Writes a study's journal, as tune/run.py does; trials are drawn by Optuna."""

    def __init__(self, folder: Path):
        self.journal = Journal(folder)
        self.journal.add("run", command="python tune/run.py")
        self.study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))

    def trial(self, name: str) -> None:
        drawn = self.study.ask()
        values = SPACE.sample(drawn)
        told = {"params": drawn.params, "values": values, "excess": -0.5}
        self.journal.add("trial", trial=name, config_id=name, replicate=0, **told)

    def reject(self, reason: str, example: str) -> None:
        drawn = self.study.ask()
        SPACE.sample(drawn)
        self.journal.add("reject", reason=reason, example=example, params=drawn.params, excess=0.4)

    def result(self, trial: str, epochs: int, stage: int = 0, **more: Any) -> None:
        told = {"stage": stage, "epoch": epochs, "epochs": epochs, "val_macro_avg_acc": 0.4 + epochs / 100}
        self.journal.add("result", trial=trial, **(told | {"done": False, "finished": False} | more))


def point(step: int) -> dict[str, Any]:
    return {"step": step, "val_macro_avg_acc": 0.5 - 0.1 * step, "macs": 4_000_000 - 10**6 * step, "feasible": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study whose driver was killed and resumed: one trial of each fate, and two that are under way."""
    more = {"num_samples": 7, "status": "running", "trials": None, "space": SPACE.as_dict()}
    folder = write_study(tmp_path / "study", rows(), config={"train.epochs": 8, "prune.epochs": 3}, **more)
    first = Driver(folder)
    first.reject(TOO_LARGE, "40 M MACs")
    for name in ("t0000", "t0001", "t0002", "t0003"):
        first.trial(name)
    first.result("t0000", 8, point=point(0))
    first.result("t0000", 11, stage=1, point=point(1), done=True, finished=True)
    first.result("t0001", 2, done=True)
    first.result("t0002", 1, done=True, failure="loss is not finite in stage 0, epoch 1")
    first.result("t0003", 5)
    first.journal.close()
    second = Driver(folder)
    second.journal.add("restore", trial="t0003", epochs=4)
    second.result("t0003", 5)
    second.result("t0003", 6)
    second.reject(TOO_LARGE, "50 M MACs")
    second.trial("t0004")
    second.result("t0004", 9, stage=1, epoch=1)
    second.trial("t0005")
    second.journal.add("end", trial="t0005", status="failed", failure="the worker died")
    second.journal.close()
    return folder


def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_everything_that_the_journal_knows_is_told(folder, capsys):
    with lock(folder):
        found = told(folder, capsys)
    assert found["driver"] and found["drivers"] == 2
    counts = {"asked": 7, "ended": 4, "complete": 1, "stopped early": 1, "failed": 2, "running": 2}
    assert found["trials"] == counts
    assert [(t["trial"], t["stage"], t["epoch"], t["of_epochs"]) for t in found["running"]] == [
        ("t0003", 0, 6, 8),
        ("t0004", 1, 1, 3),
    ]
    assert found["rejected"] == {TOO_LARGE: {"samples": 2, "example": "40 M MACs"}}
    assert found["failed"] == {
        "t0002": "loss is not finite in stage 0, epoch 1",
        "t0005": "the worker died (crashed; a resume tries it again)",
    }
    assert found["repeated_epochs"] == {"all": 1, "by_trial": {"t0003": 1}} and found["restores"] == 1
    assert found["epochs"] == 11 + 2 + 1 + 6 + 9
    assert 0 <= found["seconds_since_last_event"] < 60
    assert found["seconds_left"] is not None  # one trial ended under the second driver, three are left
    best = pareto_points(load_study(folder))
    assert [(p["trial_id"], p["step"], p["macs"]) for p in found["front"]] == list(
        zip(best["trial_id"], best["step"], best["macs"], strict=True)
    )


def test_sentences_and_table(folder, capsys):
    with lock(folder):
        assert main([str(folder)]) == 0
    said = capsys.readouterr().out
    for words in (
        "example: running; started 2 times",
        "trials: 4 of 7 ended (1 complete, 1 stopped early, 2 failed), 2 running; last event ",
        "left\n  t0003 dense, epoch 6 of 8, 46.0 % validation\n  t0004 prune step 1",
        f"rejected before training: 2\n  2 {TOO_LARGE}, for example 40 M MACs",
        "failed: t0002: loss is not finite",
        "repeated by resumes: 1 epoch beside 29 that count (t0003 1); 1 trial went on from a checkpoint",
        "Pareto front",
        "non-dominated feasible points from",
    ):
        assert words in said
    assert main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "not running (killed, or broken off)" in said and "2 to go on" in said and "left" not in said.split("\n")[1]


def test_the_question_whether_a_driver_runs_disturbs_none(folder):
    place = lock_of(folder)
    assert not is_held(place) and not place.exists()
    with lock(folder):  # the driver's own
        assert is_held(place) and open_place(str(folder)).driven()
        with pytest.raises(StudyError), lock(folder):
            pass  # the driver still holds it
    assert not is_held(place)
    with lock(folder):
        pass  # and the next one gets it


def test_a_journal_is_read_on_from_where_the_last_reading_ended(folder):
    follower = Follower(folder)
    follower.update()
    driver = Driver(folder)
    driver.result("t0004", 10, stage=1, epoch=2)
    path = driver.journal.path
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # as the reader may meet it: half a line
    follower.update()
    assert follower.log.runs == 3 and follower.log.trials["t0004"].epochs == 9
    path.write_bytes(whole)
    follower.update()
    assert follower.log.runs == 3 and follower.log.trials["t0004"].epochs == 10
    fresh = Follower(folder)
    fresh.update()
    assert fresh.log == follower.log


def test_a_study_in_an_object_store_is_read_from_a_copy(folder, tmp_path, monkeypatch, capsys):
    """A folder as pyarrow's object store; the driver that mirrors into it gives signs of life."""
    monkeypatch.chdir(tmp_path)
    uri = f"file://{tmp_path}/bucket/study"
    assert main([uri]) == 2 and "no study there" in capsys.readouterr().err
    mirror = Mirror(folder, uri)
    mirror.push()
    assert main([uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["driver"] and found["folder"] == uri and found["trials"]["ended"] == 4 and found["front"]
    place = open_place(uri)
    follower = Follower(place.folder)
    follower.update()
    Driver(folder).result("t0004", 10, stage=1, epoch=2)
    mirror.push(last=True)
    place.refresh()
    follower.update()
    assert follower.log.trials["t0004"].epochs == 10 and not place.driven()
    assert place.folder.is_relative_to(tmp_path / "runs") and (place.folder / "points.csv").is_file()


def test_before_the_first_point_and_after_the_last_trial(folder, tmp_path, capsys):
    (folder / "points.csv").unlink()
    assert main([str(folder)]) == 0
    assert "is not there yet" in " ".join(capsys.readouterr().out.split())
    new = write_study(tmp_path / "new", status="running", trials=None)
    (new / "points.csv").unlink()
    assert told(new, capsys)["trials"] == {"asked": 18, "ended": 0}
    finished = told(write_study(tmp_path / "finished"), capsys)  # of a version without a journal
    assert finished["status"] == "complete" and not finished["driver"] and finished["front"]
    assert finished["trials"] == {"asked": 18, "ended": 18, "complete": 12, "stopped early": 4, "failed": 2}
    assert finished["seconds_left"] is None and finished["running"] == []


def test_bad_folders(folder, tmp_path, capsys):
    for place in (tmp_path, tmp_path / "absent"):
        assert main([str(place)]) == 2
        said = capsys.readouterr()
        assert "no study there; expected a folder with study.json" in said.err and said.out == ""
        assert said.err.count("\n") == 1
    segment = folder / "journal" / "000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'{"event": "trial"', b'{"event: "trial"', 1))
    assert main([str(folder), "--json"]) == 2
    assert "000.jsonl is damaged" in capsys.readouterr().err


def test_optuna_opens_the_export(folder, tmp_path, capsys):
    target = tmp_path / "study.journal"
    for _ in range(2):  # the second replaces the first
        assert main([str(folder), "--export-optuna", str(target)]) == 0
    assert f"8 trials as an Optuna journal: {target}" in capsys.readouterr().out
    study = optuna.load_study(study_name="example", storage=JournalStorage(JournalFileBackend(str(target))))
    found = {t.user_attrs["trial"]: t for t in study.trials if "trial" in t.user_attrs}
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]
    assert [found[f"t000{i}"].state for i in range(6)] == [*states, TrialState.FAIL]
    assert found["t0000"].values == [0.4, 3_000_000] and study.metric_names == ["val_macro_avg_acc", "macs"]
    assert [p["macs"] for p in found["t0000"].user_attrs["points"]] == [4_000_000, 3_000_000]
    assert sum(t.user_attrs.get("reason") == TOO_LARGE for t in study.trials) == 2
    drawn = next(e for e in map(json.loads, (folder / "journal/000.jsonl").open()) if e.get("trial") == "t0000")
    assert found["t0000"].params == drawn["params"]
    study.ask()  # a sampler can go on from it


def test_status_and_live_need_no_ray():
    def reached(module: str) -> frozenset[str]:
        names = imports(module)
        return names.union(*(reached(name) for name in names if name in sources()))

    for module in ("tune.status", "tune.live"):
        found = {name.partition(".")[0] for name in reached(module)}
        assert "optuna" in found and "ray" not in found
