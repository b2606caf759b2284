"""A search session with Ray's searcher, stopper and callback around it."""

from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial

from search_spaces import Space, load_space, space_from_dict
from tests.support.simulated import Reducers
from tune.search.ray_adapter import SessionSearcher
from tune.search.session import SearchSession
from tune.study.events import Event
from tune.study.lease import StudyLost

RATES = space_from_dict({"name": "s", "parameters": {"train.lr": {"loguniform": [0.001, 0.02]}}})


class Study:
    """A search session with its events in memory; if `lost` is set, another driver has taken the study over."""

    def __init__(self, folder: Path, space: Space | None = None, **options: Any):
        self.events: list[Event] = []
        self.lost = False
        options = {"space": space or load_space("kd"), "scheduler": "asha", "sampler": "random", **options}
        self.reducers = Reducers(folder, write=self._write, **options)
        self.log = self.reducers.log
        self.session: SearchSession = self.reducers.session()

    def _write(self, events: tuple[Event, ...]) -> None:
        if self.lost:
            raise StudyLost("another driver has it")
        self.events += events


def suggested(searcher: SessionSearcher, trial_id: str) -> dict[str, Any]:
    config = searcher.suggest(trial_id)
    assert isinstance(config, dict)
    return config


class RayTrial:
    """A replacement of Ray's trial with the attributes that callbacks and population based training read."""

    def __init__(self, name: str, status: str, config: dict[str, Any]):
        self.config, self.status, self.trial_id = {"trial": name, **config}, status, f"id-{name}"
        self.error_file: str | None = None


def trial(name: str, status: str = Trial.RUNNING, **config: Any) -> Any:
    return RayTrial(name, status, config)
