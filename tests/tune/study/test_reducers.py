"""The state of a running driver equals the state that replaying its log gives, after every event."""

import json
from pathlib import Path

import pytest

from tests.support.simulated import RandomStudy, Reducers
from tune.study.events import Event, EventError, TrialCreated, TrialEnded, TrialRetried, decode, encode
from tune.study.state import StudyState

N_LOGS, N_EVENTS = 300, 40


def record(folder: Path, seed: int, n_events: int) -> tuple[RandomStudy, list[str]]:
    """Return a random study, and the digest of the driver's state after each of its events."""
    digests: list[str] = []

    class Live(RandomStudy):
        def _start(self) -> None:
            init = Reducers.__init__

            def attached(reducers: Reducers, *arguments, **options) -> None:
                init(reducers, *arguments, **options)
                seen = 0

                class After:
                    def apply(self, event: Event) -> None:
                        nonlocal seen
                        seen += 1
                        if seen > len(digests):  # not during a replay
                            digests.append(reducers.digest())

                reducers.log.attach(After())

            Reducers.__init__ = attached  # type: ignore[method-assign]
            try:
                super()._start()
            finally:
                Reducers.__init__ = init  # type: ignore[method-assign]

    study = Live(folder, seed)
    study.run(n_events)
    return study, digests


@pytest.mark.slow
def test_live_state_equals_replayed_state_after_every_event(tmp_path: Path) -> None:
    """Checked for 300 random logs, every prefix of each, and every reducer.

    The replay of a prefix is the first part of the replay of the complete log, because `apply` receives single events.
    One prefix of each log is replayed separately to check this.
    """
    kinds: dict[str, int] = {}
    for seed in range(N_LOGS):
        study, live = record(tmp_path, seed, N_EVENTS)
        assert len(live) == len(study.events)
        read = [decode(json.loads(encode(event))) for event in study.events]  # as read from a journal
        replayed = Reducers(tmp_path, sampler="random", **study.options)
        for n, event in enumerate(read):
            replayed.log.replay([event])
            assert replayed.digest() == live[n], f"log {seed}, event {n}: {event}"
            kinds[event.kind] = kinds.get(event.kind, 0) + 1
        cut = seed % len(read)
        prefix = Reducers(tmp_path, sampler="random", **study.options)
        prefix.log.replay(read[: cut + 1])
        assert prefix.digest() == live[cut]
    assert kinds["driver_started"] > N_LOGS * 1.2, "drivers died"
    assert min(kinds[k] for k in ("trial_retried", "trial_restored", "point_measured", "sample_rejected")) > 50
    assert {"trial_created", "trial_ended", "epoch_reported", "configuration_judged"} <= set(kinds)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_with_a_history_too(tmp_path: Path, sampler: str) -> None:
    """Samplers that learn from results draw the same samples in a resumed as in an uninterrupted driver."""
    for seed in range(3):
        study = RandomStudy(tmp_path, seed, scheduler="mo_asha")
        study.run(60)
        ours, theirs = (Reducers(tmp_path, sampler=sampler, **study.options) for _ in range(2))
        for reducers in (ours, theirs):
            reducers.log.replay(study.events)
            for _ in range(3):
                reducers.sampler.draw(reducers.log)
        assert ours.sampler.digest() == theirs.sampler.digest()  # times of events may differ between the two


def created(name: str, config_id: str | None = None) -> TrialCreated:
    return TrialCreated(trial=name, config_id=config_id or name, replicate=0, params={}, values={})


@pytest.mark.parametrize(
    "events",
    [
        [TrialEnded(trial="t0000", outcome="failed")],
        [created("t0000"), created("t0000")],
        [created("t0000r1", "t0000")],
        [created("t0000"), *[TrialEnded(trial="t0000", outcome="completed")] * 2],
    ],
)
def test_events_that_cannot_follow_are_refused(events: list[Event]) -> None:
    state = StudyState()
    with pytest.raises(EventError, match="t0000"):
        for event in events:
            state.apply(event)


def test_a_trial_ends_in_one_way_and_a_crash_can_be_retried() -> None:
    state = StudyState()
    for event in (created("t0000"), TrialEnded(trial="t0000", outcome="crashed", reason="the node died")):
        state.apply(event)
    assert (state.n_ended, [t.name for t in state.crashed]) == (1, ["t0000"])
    state.apply(TrialRetried(trial="t0000"))
    assert (state.n_ended, state.trials["t0000"].status, state.trials["t0000"].reason) == (0, "running", None)
    state.apply(TrialEnded(trial="t0000", outcome="completed"))
    with pytest.raises(EventError):
        state.apply(TrialRetried(trial="t0000"))
