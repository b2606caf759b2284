"""Conversion of values to Optuna parameters, and the import of an earlier study's points."""

import json
from pathlib import Path

import pytest
from optuna.trial import TrialState as Optunas

from search_spaces import SpaceError, load_space
from tests.support.tune.sampled_search import Search, any_gate, drive, edited
from tune.search.replay import earlier_points, params_of, replay, shortened
from tune.study.events import (
    ConfigurationJudged,
    PointImported,
)
from tune.study.journal import Reading, read_state
from tune.study.writer import Journal

SHIPPED = ("kd", "rep", "families", "prune", "kd_prune", "pbt")


@pytest.mark.parametrize("name", SHIPPED)
def test_parameters_come_back_from_values(name: str) -> None:
    space = load_space(name)
    search = Search(space, any_gate, sampler="random")
    for _ in range(10):
        trial = search.next()
        optuna_trial = search.optuna_trials()[-1]
        found = params_of(space, json.loads(json.dumps(trial.values)))
        assert replay(space, found)[0] == trial.values
        if name != "rep":  # an empty subset is replaced by another one
            assert found == optuna_trial.params
        assert replay(space, optuna_trial.params) == (trial.values, optuna_trial.distributions)


def test_values_outside_a_space_are_refused() -> None:
    space = load_space("kd")
    values = {"distill.kd_alpha": 0.5, "distill.kd_temp": 2.0, "train.lr": 0.01, "student.base_channels": 16}
    assert params_of(space, values) == values
    for key, value in (("distill.kd_alpha", 2.0), ("student.base_channels", 12), ("train.lr", "fast")):
        with pytest.raises(SpaceError, match=key):
            params_of(space, values | {key: value})
    with pytest.raises(SpaceError, match="kd_beta"):
        replay(space, values | {"distill.kd_beta": 0.5})
    assert shortened(space, values, 1) is None


def earlier_study(study: Path) -> int:
    """Write a study of 12 trials to the folder; return how many of its networks another search could have sampled."""
    search = Search()
    drive(search, 12)
    Journal(study, None).append(tuple(search.events))
    return sum(bool(p["step"]) for t in search.log.state.trials.values() for p in t.points)


def test_points_of_an_earlier_study_are_imported(tmp_path: Path) -> None:
    """Known points are not imported twice, and a resume knows the imported points."""
    n_points = earlier_study(tmp_path)
    found = list(earlier_points(load_space("kd_prune"), tmp_path))
    assert len(found) == n_points > 8
    search = Search()
    assert search.sampler.import_points(search.log, found) == len(found)
    assert search.sampler.import_points(search.log, found) == 0
    complete = search.optuna_trials(Optunas.COMPLETE)
    assert [t.params for t in complete] == [params for params, _ in found]
    assert [t.values for t in complete] == [[p["val_macro_avg_acc"], p["macs"]] for _, p in found]
    kinds = [type(event) for event in search.events[1:]]
    assert kinds == [ConfigurationJudged, PointImported] * len(found)
    resumed = Search(events=list(search.events))
    assert resumed.sampler.digest() == search.sampler.digest()
    assert resumed.sampler.import_points(resumed.log, found) == 0
    assert resumed.next().values == search.next().values


def test_an_import_that_a_kill_cut_off_is_completed(tmp_path: Path) -> None:
    earlier_study(tmp_path)
    found = list(earlier_points(load_space("kd_prune"), tmp_path))
    uninterrupted = Search()
    uninterrupted.sampler.import_points(uninterrupted.log, found)
    for cut in (2, 3, 4):  # also between a judgement and its point
        resumed = Search(events=uninterrupted.events[:cut])
        assert resumed.sampler.import_points(resumed.log, found) == len(found) - (cut - 1) // 2
        assert resumed.sampler.digest() == uninterrupted.sampler.digest()


def test_a_space_imports_what_it_could_have_drawn(tmp_path: Path) -> None:
    n_points = earlier_study(tmp_path)
    narrower = list(earlier_points(edited(**{"student.base_channels": {"int": [8, 16], "step": 8}}), tmp_path))
    assert 0 < len(narrower) < n_points
    assert not list(earlier_points(load_space("rep"), tmp_path))


def test_imported_points_that_an_edited_space_does_not_hold(tmp_path: Path) -> None:
    earlier_study(tmp_path)
    search = Search()
    n = search.sampler.import_points(search.log, earlier_points(load_space("kd_prune"), tmp_path))
    narrower = edited(**{"student.base_channels": {"int": [8, 16], "step": 8}})
    resumed = Search(narrower, events=list(search.events)).begin()
    assert 0 < len(resumed.optuna_trials(Optunas.COMPLETE)) < n


def test_the_journal_of_a_search_is_a_study(tmp_path: Path) -> None:
    earlier_study(tmp_path)
    state = read_state(tmp_path)
    assert len(state.trials) == 12
    assert {trial.status for trial in state.trials.values()} == {"complete", "stopped early"}
    assert len(list(Reading(tmp_path))) > 36
