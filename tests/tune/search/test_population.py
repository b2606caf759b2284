"""Population based training: which trials are exploited, and how values are explored."""

import json
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from search_spaces import load_space, space_from_dict
from tests.support.tune.ray_search import RATES, trial
from trainables.config.schema import MUTABLE_KEYS, key_types
from tune.search.halving import SchedulerError
from tune.search.ray_adapter import (
    Population,
    check_population,
    explored,
)


def test_pbt_refuses_a_space_with_more_than_one_network() -> None:
    check_population(load_space("pbt"))
    for make in (check_population, lambda space: Population(space, 8, 0)):
        with pytest.raises(SchedulerError) as error:
            make(load_space("kd_prune"))
        for key in ("kd_prune", "prune.ratios", "student.base_channels", "student.branches", *MUTABLE_KEYS):
            assert key in str(error.value)


def test_mutable_keys_are_of_the_configuration() -> None:
    assert set(MUTABLE_KEYS) <= set(key_types())
    assert set(load_space("pbt").parameters) <= set(MUTABLE_KEYS)


MIXED = space_from_dict(
    {
        "name": "s",
        "parameters": {"train.lr": {"loguniform": [0.001, 0.02]}, "augment.mixup_alpha": {"choice": [0.0, 0.2, 0.4]}},
    }
)
MINE = {"study_dir": "a", "seed": 1, "replicate": 0, "train.lr": 0.002, "augment.mixup_alpha": 0.0}
OTHER = MINE | {"replicate": 1, "train.lr": 0.019, "augment.mixup_alpha": 0.4}


def at_epoch(population: Population, name: str, epoch: int, **config: Any) -> Any:
    """Return a trial that population based training has registered at an epoch."""
    ray_trial = trial(name, **config)
    population._trial_state[ray_trial] = SimpleNamespace(last_train_time=epoch, last_score=0.5, last_checkpoint=None)  # type: ignore[assignment]
    return ray_trial


def new_configs(seed: int, name: str = "t0000", epochs: range = range(1, 40)) -> list[dict[str, Any]]:
    """Return the configurations that a trial takes over at several epochs."""
    found = []
    for epoch in epochs:
        population = Population(MIXED, dense_epochs=8, seed=seed)
        mine, other = at_epoch(population, name, epoch, **MINE), at_epoch(population, "t0001", epoch, **OTHER)
        found.append(population._get_new_config(mine, other)[0])
    return found


def test_pbt_keeps_names_and_ranges() -> None:
    configs = new_configs(0)
    for config in configs:
        assert (config["trial"], config["study_dir"], config["replicate"]) == ("t0000", "a", 0)
        assert 0.001 <= config["train.lr"] <= 0.02
        assert config["augment.mixup_alpha"] in (0.0, 0.2, 0.4)
    assert len({config["train.lr"] for config in configs}) > 3
    assert {config["augment.mixup_alpha"] for config in configs} == {0.0, 0.2, 0.4}


def test_pbt_draws_are_a_function_of_seed_trial_and_epoch() -> None:
    """They depend neither on Python's or NumPy's global generator nor on the number of earlier draws."""
    random.seed(1)
    np.random.seed(1)
    first = new_configs(0)
    random.seed(2)
    np.random.seed(2)
    state = random.getstate()
    assert new_configs(0) == first
    assert random.getstate() == state
    assert new_configs(1) != first
    others = [config | {"trial": "t0000"} for config in new_configs(0, "t0002")]
    assert others != first
    assert len({json.dumps(config) for config in first}) > 10, "epochs differ"
    population = Population(MIXED, dense_epochs=8, seed=0)
    mine, other = at_epoch(population, "t0000", 7, **MINE), at_epoch(population, "t0001", 7, **OTHER)
    again = [population._get_new_config(mine, other)[0] for _ in range(3)]
    assert again == [first[6]] * 3


def test_the_donor_is_drawn_from_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The donor depends neither on the order of Ray's trials nor on Python's global generator."""
    donors: list[str] = []
    monkeypatch.setattr(
        Population, "_exploit", lambda self, controller, own, donor: donors.append(donor.config["trial"])
    )
    for global_seed in (1, 2):
        random.seed(global_seed)
        for epoch in range(1, 25):
            population = Population(RATES, dense_epochs=8, seed=0)
            best = [at_epoch(population, f"t000{i}", epoch, **MINE) for i in range(4)]
            for donor in best:
                population._trial_state[donor].last_checkpoint = object()  # type: ignore[assignment]
            worst = at_epoch(population, "t0009", epoch, **MINE)
            random.shuffle(best)
            population._checkpoint_or_exploit(worst, None, best, [worst])  # type: ignore[arg-type]
    assert len(donors) == 2 * 24
    assert donors[:24] == donors[24:]
    assert len(set(donors)) == 4


def test_explored_values_of_a_range_with_steps() -> None:
    spec = {"step": 0.25, "uniform": [0.0, 1.0]}
    assert {explored(spec, 0.5, np.random.default_rng(i)) for i in range(400)} == {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize("spec", [{"uniform": [0.1, 0.9]}, {"loguniform": [0.001, 0.02]}, {"choice": [0.0, 0.2, 0.4]}])
def test_explored_values(spec: dict[str, Any]) -> None:
    """A quarter of the values are new samples, the others 0.8 or 1.2 times the old value, or neighbouring choices."""
    old = 0.2 if "choice" in spec else spec[next(iter(spec))][0] * 1.5
    low, high = min(spec[next(iter(spec))]), max(spec[next(iter(spec))])
    values = [explored(spec, old, np.random.default_rng(i)) for i in range(400)]
    assert all(low <= value <= high for value in values)
    if "choice" in spec:
        assert Counter(values)[0.2] == pytest.approx(400 / 12, rel=0.5)
    else:
        near = [value for value in values if value in (pytest.approx(old * 0.8), pytest.approx(old * 1.2))]
        assert len(near) == pytest.approx(300, rel=0.1)
        assert len(set(values)) > 50
