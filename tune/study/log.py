"""The log of a study, which writes each event to the journal and then applies it to all reducers.

log = StudyLog(journal.append)                 # journal: the Journal of the study; without it, nothing is written
log.attach(sampler, rungs)                     # reducers: objects whose state is computed from the events alone
log.replay(read_events(Path("runs/x")))        # a resume: applies the events that earlier drivers wrote
log.add(TrialEnded(trial="t0003", outcome="completed"))     # a new event: writes it, then applies it
log.state.trials["t0003"].status               # "complete"; log.state is the StudyState
"""

from collections.abc import Callable, Iterable
from typing import Any

from tune.study.events import Event
from tune.study.state import Reducer, StudyState


class StudyLog:
    """Writes the events of a study with `write`, and applies them to the reducers. The first reducer is `state`.

    `write` gets a batch of events as a tuple and must store them durably. By default, nothing is written.
    """

    def __init__(self, write: Callable[[tuple[Event, ...]], Any] = lambda events: None):
        self.state = StudyState()
        self._reducers: list[Reducer] = [self.state]
        self._write = write

    def attach(self, *reducers: Reducer) -> None:
        """Add `reducers` to the log. Only the events that are replayed or added afterwards are applied to them."""
        self._reducers += reducers

    def replay(self, events: Iterable[Event]) -> None:
        """Apply `events`, which the journal contains already, to all reducers, without writing them again."""
        for event in events:
            self._apply(event)

    def add(self, *events: Event) -> None:
        """Write `events` in one batch, then apply them in order to all reducers.

        If the write raises an error, no event is applied.
        """
        self._write(events)
        for event in events:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        for reducer in self._reducers:
            reducer.apply(event)
