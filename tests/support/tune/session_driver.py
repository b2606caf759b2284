"""A driver of a simulated study without Ray."""

from pathlib import Path
from typing import Any

from search_spaces import load_space
from tests.support.simulated import Reducers
from tune.search.session import SearchSession
from tune.study.events import (
    Event,
)
from tune.study.state import TrialState


class Driver:
    """A driver of a study of space kd; it replays the `events` of its predecessors, then adds its own."""

    def __init__(self, folder: Path, events: list[Event] | None = None, **options: Any):
        self.events = [] if events is None else events
        options = {"space": load_space("kd"), "scheduler": "fifo", "sampler": "random", **options}
        self.reducers = Reducers(folder, write=self.events.extend, **options)
        self.log = self.reducers.log
        self.log.replay(list(self.events))
        self.session: SearchSession = self.reducers.session()

    def next(self) -> TrialState:
        trial = self.session.next_trial()
        assert trial is not None
        return trial

    def report(self, *results: dict[str, Any]) -> list[bool]:
        return [self.session.report(r["config"]["trial"], r) for r in results]

    def new_events(self, action: Any) -> list[Event]:
        before = len(self.events)
        action()
        return self.events[before:]


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def row(epochs: int, stage: int = 0) -> dict[str, Any]:
    """Return a row of the learning curve, as a checkpoint contains it."""
    return {"stage": stage, "epoch": epochs, "epochs": epochs, "val_macro_avg_acc": epochs / 10, "macs": 1e6}
