"""One log, one meaning: an event is written, then applied to every reducer; a resume applies the same events again.

log = StudyLog(journal.append)                 # or StudyLog() for a search in memory
log.attach(sampler, rungs)
log.replay(read_events(study))                 # what earlier drivers wrote
log.add(TrialEnded(trial="t0003", outcome="completed"))
"""

from collections.abc import Callable, Iterable
from typing import Any

from tune.study.events import Event
from tune.study.state import Reducer, StudyState


class StudyLog:
    """The events of a study and the reducers that they are applied to; `state` is the first of these."""

    def __init__(self, write: Callable[[tuple[Event, ...]], Any] = lambda events: None):
        self.state = StudyState()
        self._reducers: list[Reducer] = [self.state]
        self._write = write

    def attach(self, *reducers: Reducer) -> None:
        """Apply all further events to `reducers`, too; before the first event."""
        self._reducers += reducers

    def replay(self, events: Iterable[Event]) -> None:
        """Apply events that are written already."""
        for event in events:
            self._apply(event)

    def add(self, *events: Event) -> None:
        """Write events down together, then apply them in order. OSError where they cannot be written: none is then
        applied."""
        self._write(events)
        for event in events:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        for reducer in self._reducers:
            reducer.apply(event)
