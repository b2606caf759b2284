"""Ray kills a worker because the memory of its machine is full; the study ends as documented."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.tune as rt
from ray import cloudpickle

from tests.support.machines import PATIENCE_S
from tests.support.tune.ray_search import RATES, Study
from tune.search import ray_adapter
from tune.search.ray_adapter import ray_scheduler, run_tuner

FULL = {"memory_usage_threshold": 0.001, "memory_monitor_refresh_ms": 100}  # each machine has used 0.1 % of its memory


class Sleeper(rt.Trainable):
    """A Trainable that does nothing until it is killed."""

    def step(self) -> dict[str, Any]:
        time.sleep(PATIENCE_S)
        return {"done": True}


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_ray_kills_is_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning and the reason of the crash name the memory and the remedy."""
    monkeypatch.setattr(ray_adapter, "MAX_FAILURES", 1)  # one retry, so that the test is short
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import modules of tests
    warnings: list[str] = []
    study = Study(tmp_path, RATES, scheduler="fifo")
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, _system_config=FULL)
    try:
        run_tuner(
            study.session,
            Sleeper,
            {},
            scheduler=ray_scheduler("fifo", RATES, 8, seed=0),
            n_trials=2,
            resources={"cpu": 1, "gpu": 0},
            max_concurrent=1,
            storage=str(tmp_path / "ray"),
            run="run001",
            step=lambda running: None,
            warn=warnings.append,
        )
    finally:
        ray.shutdown()
    trials = study.log.state.trials
    assert [(t.name, t.outcome) for t in trials.values()] == [("t0000", "crashed"), ("t0001", "crashed")]
    for text in (*warnings, *(str(t.reason) for t in trials.values())):
        assert "out of memory: " in text and "Ray killed the worker" in text and "train.batch_size" in text
        assert "\n" not in text and "docs.ray.io" not in text
    assert [text.split()[0] for text in warnings] == ["t0000", "t0001"]
