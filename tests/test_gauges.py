"""The gauges of a running study: what they say. That it arrives at the metrics port: test_cluster.py, on two nodes."""

from pathlib import Path

import pytest

from tune.gauges import Gauges, RunningFront
from tune.journal import Journal


def tell(journal: Journal, trial: str, epochs: int, accuracy: float, macs: int, **more) -> None:
    result = {"epochs": epochs, "val_macro_avg_acc": accuracy, "macs": macs, "done": False, "finished": False}
    journal.add("result", trial=trial, **(result | more))


def point(accuracy: float, macs: int, step: int = 0, feasible: bool = True) -> dict:
    return {"step": step, "val_macro_avg_acc": accuracy, "macs": macs, "feasible": feasible}


@pytest.fixture
def journal(tmp_path: Path):
    """Two complete trials of three points, one of them dominated and one too large; t0002 trains its third epoch."""
    made = Journal(tmp_path)
    made.add("run", command="python tune/run.py")
    for number in range(3):
        names = {"config_id": f"t{number:04d}", "replicate": 0, "number": number, "params": {}, "values": {}}
        made.add("trial", trial=f"t{number:04d}", **names)
    made.add("reject", number=3, params={}, reason="over the limits", example="{}", excess=0.5)
    done = {"done": True, "finished": True}
    tell(made, "t0000", 2, 0.5, 4_000_000, **done, point=point(0.5, 4_000_000))
    tell(made, "t0001", 1, 0.9, 90_000_000, point=point(0.9, 90_000_000, feasible=False))
    tell(made, "t0001", 2, 0.4, 5_000_000, **done, point=point(0.4, 5_000_000, step=1))
    tell(made, "t0002", 3, 0.45, 2_000_000, point=point(0.45, 2_000_000))
    yield made
    made.close()


def test_front_takes_complete_trials_within_the_limits(journal: Journal) -> None:
    front = RunningFront(journal.log)
    assert front.update() == [[0.5, 4e6]]
    tell(journal, "t0002", 4, 0.3, 1_000_000, done=True, finished=True, point=point(0.3, 1_000_000, step=1))
    assert sorted(front.update()) == [[0.3, 1e6], [0.45, 2e6], [0.5, 4e6]]
    assert len(front.update()) == 3


def test_gauges_tell_of_running_trials_and_of_the_study(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}
    gauges = Gauges("X", journal.log)
    monkeypatch.setattr(gauges, "_set", lambda name, value, **tags: told.update({(name, *tags.values()): value}))
    gauges.refresh(["t0002", "a trial that the journal does not know"])
    assert told == {
        ("val_macro_avg_acc", "t0002"): 0.45,
        ("macs", "t0002"): 2e6,
        ("epochs", "t0002"): 3,
        ("trials", "running"): 1,
        ("trials", "complete"): 2,
        ("trials", "stopped early"): 0,
        ("trials", "failed"): 0,
        ("rejected", "over the limits"): 1,
        ("front_size",): 1,
        ("best_val_macro_avg_acc",): 0.5,
    }
