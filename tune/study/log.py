"""The log of a study: each event is written, then applied to every reducer; a resume applies the same events again.

log = StudyLog(journal.append)                 # or StudyLog() for a search in memory
log.attach(sampler, rungs)
log.replay(read_events(study))                 # events of earlier drivers
log.add(TrialEnded(trial="t0003", outcome="completed"))
"""

from collections.abc import Callable, Iterable
from typing import Any

from tune.study.events import Event
from tune.study.state import Reducer, StudyState


class StudyLog:
    """Writes the events of a study and applies them to its reducers; `state` is the first reducer."""

    def __init__(self, write: Callable[[tuple[Event, ...]], Any] = lambda events: None):
        self.state = StudyState()
        self._reducers: list[Reducer] = [self.state]
        self._write = write

    def attach(self, *reducers: Reducer) -> None:
        """Add reducers, to which all further events are applied; call it before the first event."""
        self._reducers += reducers

    def replay(self, events: Iterable[Event]) -> None:
        """Apply events that earlier drivers wrote, without writing them again."""
        for event in events:
            self._apply(event)

    def add(self, *events: Event) -> None:
        """Write events together, then apply them in order. If the write fails with OSError, no event is applied."""
        self._write(events)
        for event in events:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        for reducer in self._reducers:
            reducer.apply(event)
