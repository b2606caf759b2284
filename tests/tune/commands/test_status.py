"""`tune/status.py` on running, interrupted, complete and damaged studies with real journals."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from search_spaces import load_space
from tests.support.driven_study import Driver, measured
from tests.support.example_study import rows, write_study
from tests.support.imports import imports, sources
from trainables.outputs.storage import Store
from tune.status import main
from tune.study.access import lock, lock_of
from tune.study.events import TrialCreated
from tune.study.journal import read_events, segments
from tune.study.lease import StoreLease
from tune.study.manifest import StudyError
from tune.study.reader import Follower, is_held, open_place
from tune.study.store import Mirror

TOO_LARGE = "over the limits at every stage"
SPACE = load_space("kd_prune")


def point(step: int) -> dict[str, Any]:
    return measured(step, 0.5 - 0.1 * step, 4_000_000 - 10**6 * step)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a study whose driver was killed and resumed: one trial of each outcome, and two running ones."""
    more = {"num_samples": 7, "status": "running", "trials": None, "space": SPACE.as_dict()}
    folder = write_study(tmp_path / "study", config={"train.epochs": 8, "prune.epochs": 3}, **more)
    (folder / "points.csv").unlink()
    first = Driver(folder)
    first.reject(TOO_LARGE, "40 M MACs")
    for name in ("t0000", "t0001", "t0002", "t0003"):
        first.create(name)
    first.epoch("t0000", 8)
    first.point("t0000", point(0))
    first.epoch("t0000", 11, stage=1, epoch=3)
    first.point("t0000", point(1))
    first.end("t0000")
    first.epoch("t0001", 2)
    first.end("t0001", "stopped")
    first.epoch("t0002", 1)
    first.end("t0002", "failed", "loss is not finite in stage 0, epoch 1")
    first.epoch("t0003", 5)
    first.close()
    second = Driver(folder)
    second.restore("t0003", 4)
    second.epoch("t0003", 5)
    second.epoch("t0003", 6)
    second.reject(TOO_LARGE, "50 M MACs")
    second.create("t0004")
    second.epoch("t0004", 9, stage=1, epoch=1)
    second.create("t0005")
    second.end("t0005", "crashed", "the worker died")
    second.close()
    return folder


def status_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_everything_that_the_journal_knows_is_told(folder, capsys):
    with lock(folder):
        found = status_of(folder, capsys)
    assert found["driver"] and found["drivers"] == 2
    counts = {"asked": 7, "ended": 4, "complete": 1, "stopped early": 1, "failed": 1, "crashed": 1, "running": 2}
    assert found["trials"] == counts
    assert [(t["trial"], t["stage"], t["epoch"], t["of_epochs"]) for t in found["running"]] == [
        ("t0003", 0, 6, 8),
        ("t0004", 1, 1, 3),
    ]
    assert found["rejected"] == {TOO_LARGE: {"samples": 2, "example": "40 M MACs"}}
    assert found["failed"] == {
        "t0002": "loss is not finite in stage 0, epoch 1",
        "t0005": "the worker died (crashed; a resume retries it)",
    }
    assert found["repeated_epochs"] == {"all": 1, "by_trial": {"t0003": 1}} and found["restores"] == 1
    assert found["epochs"] == 11 + 2 + 1 + 6 + 9
    assert 0 <= found["seconds_since_last_event"] < 60
    assert found["seconds_left"] is not None  # one trial ended under the second driver, three are left
    volume = found["hypervolume"]
    assert (volume["now"], volume["limit"]) == (pytest.approx((0.4 * (4 - 3) + 0.5 * (30 - 4)) / 30, abs=1e-6), True)
    # t0004 and t0005 began later, perhaps within the second of the last measurement, which then counts them as begun
    assert 0 <= volume["trials_since_growth"] <= 2 and 0 <= volume["seconds_since_growth"] < 60
    assert [(p["trial_id"], p["step"], p["macs"]) for p in found["front"]] == [
        ("t0000", 1, 3_000_000),
        ("t0000", 0, 4_000_000),
    ]


def test_sentences_and_table(folder, capsys):
    with lock(folder):
        assert main([str(folder)]) == 0
    output = capsys.readouterr().out
    for words in (
        "example: running; started 2 times",
        "trials: 4 of 7 ended (1 complete, 1 stopped early, 1 failed, 1 crashed), 2 running; last event ",
        "left\n  t0003 dense, epoch 6 of 8, 46.0 % validation\n  t0004 prune step 1",
        f"rejected before training: 2\n  2 {TOO_LARGE}, for example 40 M MACs",
        "hypervolume up to the limit: 0.4",
        "it last grew ",
        "failed: t0002: loss is not finite",
        "epochs: 29, and 1 trained again (t0003: 1) after 1 restore",
        "Pareto front",
        "non-dominated feasible points from",
    ):
        assert words in output
    assert main([str(folder)]) == 0
    output = capsys.readouterr().out
    assert "not running (" in output and "2 to continue" in output and "left" not in output.split("\n")[1]


def test_the_question_whether_a_driver_runs_disturbs_none(folder):
    place = lock_of(folder)
    assert not is_held(place) and not place.exists()
    with lock(folder):  # held by the driver
        assert is_held(place) and open_place(str(folder)).driven()
        with pytest.raises(StudyError), lock(folder):
            pass  # the driver still holds it
    assert not is_held(place)
    with lock(folder):
        pass  # the next driver gets it


def test_a_journal_is_read_on_from_where_the_last_reading_ended(folder):
    follower = Follower(folder)
    follower.update()
    driver = Driver(folder)
    driver.epoch("t0004", 10, stage=1, epoch=2)
    original = driver.path.read_bytes()
    driver.path.write_bytes(original[:-9])  # a reader may find half a line
    follower.update()
    assert follower.state.drivers == 3 and follower.state.trials["t0004"].epochs == 9
    driver.path.write_bytes(original)
    follower.update()
    assert follower.state.drivers == 3 and follower.state.trials["t0004"].epochs == 10
    fresh = Follower(folder)
    fresh.update()
    assert fresh.state == follower.state


def test_a_study_in_an_object_store_is_read_from_a_copy(folder, tmp_path, monkeypatch, capsys):
    """The store is a folder, through pyarrow; the driver that mirrors the study into it holds a lease."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"file://{tmp_path}/bucket/study"
    assert main([uri]) == 2 and "no study there" in capsys.readouterr().err
    lease = StoreLease(Store(uri))
    lease.acquire(settle_s=0)
    mirror = Mirror(folder, uri, lease.verify)
    mirror.push()
    assert main([uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["driver"] and found["folder"] == uri and found["trials"]["ended"] == 4 and found["front"]
    place = open_place(uri)
    follower = Follower(place.folder)
    follower.update()
    Driver(folder).epoch("t0004", 10, stage=1, epoch=2)
    mirror.push(last=True)
    lease.release()
    place.refresh()
    follower.update()
    assert follower.state.trials["t0004"].epochs == 10 and not place.driven()
    assert (place.folder / "points.csv").is_file() and not place.folder.is_relative_to(tmp_path)  # a private copy


@pytest.mark.parametrize("content", [None, "", "trial_id", "trial_id,step\nt0000"])
def test_the_front_comes_from_the_journal(folder, content, capsys):
    """The front does not depend on points.csv, which may be lost or damaged."""
    points = folder / "points.csv"
    expected = status_of(folder, capsys)["front"]
    assert len(expected) == 2
    points.unlink()
    if content is not None:
        points.write_text(content)
    assert status_of(folder, capsys)["front"] == expected
    assert (points.read_text() if points.exists() else None) == content, "status.py writes nothing"


def test_before_the_first_point_and_after_the_last_trial(folder, tmp_path, capsys):
    new = write_study(tmp_path / "new", status="running", trials=None)
    (new / "points.csv").unlink()
    assert main([str(new)]) == 0
    assert "No feasible point yet" in " ".join(capsys.readouterr().out.split())
    assert status_of(new, capsys)["trials"] == {"asked": 18, "ended": 0}
    finished = status_of(write_study(tmp_path / "finished", rows()), capsys)  # of a version without a journal
    assert finished["status"] == "complete" and not finished["driver"] and finished["front"]
    assert finished["trials"] == {"asked": 18, "ended": 18, "complete": 12, "stopped early": 4, "failed": 2}
    assert finished["seconds_left"] is None and finished["running"] == []


def test_bad_folders(folder, tmp_path, capsys):
    for place in (tmp_path, tmp_path / "absent"):
        assert main([str(place)]) == 2
        output = capsys.readouterr()
        assert "no study there; expected a folder with study.json" in output.err and output.out == ""
        assert output.err.count("\n") == 1
    segment = segments(folder)[0].path
    segment.write_bytes(segment.read_bytes().replace(b'{"event": "trial_created"', b'{"event"; "trial_created"', 1))
    assert main([str(folder), "--json"]) == 2
    assert f"{segment.name}, line 4 " in capsys.readouterr().err


def test_optuna_opens_the_export(folder, tmp_path, capsys):
    target = tmp_path / "study.journal"
    for _ in range(2):  # the second file replaces the first
        assert main([str(folder), "--export-optuna", str(target)]) == 0
    assert f"8 trials as an Optuna journal: {target}" in capsys.readouterr().out
    study = optuna.load_study(study_name="example", storage=JournalStorage(JournalFileBackend(str(target))))
    found = {t.user_attrs["trial"]: t for t in study.trials if "trial" in t.user_attrs}
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]
    assert [found[f"t000{i}"].state for i in range(6)] == [*states, TrialState.FAIL]
    assert found["t0000"].values == [0.4, 3_000_000] and study.metric_names == ["val_macro_avg_acc", "macs"]
    assert [p["macs"] for p in found["t0000"].user_attrs["points"]] == [4_000_000, 3_000_000]
    assert sum(t.user_attrs.get("reason") == TOO_LARGE for t in study.trials) == 2
    created = next(event for event in read_events(folder) if isinstance(event, TrialCreated))
    assert found["t0000"].params == created.params
    study.ask()  # a sampler can continue the study


def test_status_and_live_need_no_ray():
    def reached(module: str) -> frozenset[str]:
        names = imports(module)
        return names.union(*(reached(name) for name in names if name in sources()))

    for module in ("tune.commands.status", "tune.commands.live"):
        found = {name.partition(".")[0] for name in reached(module)}
        assert "optuna" in found and "ray" not in found
