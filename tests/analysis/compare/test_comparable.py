"""Studies that cannot be compared are refused by key and values; runs that differ only in their seed are one method."""

import dataclasses

import pytest

from analysis.compare import comparable
from analysis.compare.comparable import grouped, labels
from analysis.typed_json import ResultsError
from tests.support.analysis.comparisons import FINGERPRINT, of_data, study
from trainables.inputs.fingerprint import DataFingerprint

POINTS = [(1e6, 0.5), (4e6, 0.6)]
LIMITS = {"macs": 30_000_000, "bytes": 128_000, "precision": "fp16"}


def refused(*studies):
    with pytest.raises(ResultsError) as error:
        grouped(studies)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "changes", "found", "expected"),
    [
        ("limits.macs", {"limits": LIMITS | {"macs": 20_000_000}}, "20000000", "30000000"),
        ("limits.macs", {"limits": LIMITS | {"macs": None}}, "null", "30000000"),
        ("limits.bytes", {"limits": LIMITS | {"bytes": 64_000}}, "64000", "128000"),
        ("limits.precision", {"limits": LIMITS | {"precision": "int8"}}, '"int8"', '"fp16"'),
        ("objectives", {"objectives": {"val_macro_avg_acc": "max", "bytes": "min"}}, '"bytes"', '"macs"'),
        ("dataset.subset", {"dataset": of_data() | {"subset": 25}}, "25", "100"),
        ("dataset.n_classes", {"dataset": of_data() | {"n_classes": 9}}, "9", "10"),
        ("dataset.holdout", {"dataset": of_data() | {"holdout": "20 %"}}, "20 %", "one recording location"),
        *[(f"dataset.fingerprint.{k}", {"dataset": of_data(**{k: "other"})}, "other", v) for k, v in
          {"sound": "5eed", "labels": "1ab", "devices": "de4", "clips": "c11b5", "validation_share": "0.2"}.items()],
    ],
)  # fmt: skip
def test_another_limit_objective_or_data_set_is_refused(key, changes, found, expected):
    first = study("runs/a", POINTS, dataset=of_data())
    message = refused(first, study("runs/b", POINTS, **{"dataset": of_data()} | changes))
    assert f"runs/b: {key} is " in message and found in message and expected in message and "runs/a" in message


def test_other_validation_clips_are_refused_between_methods():
    first = study("a", POINTS, dataset=of_data(validation="v0"), seed=0)
    other = study("b", POINTS, dataset=of_data(validation="v1"), seed=1, sampler="nsga2")
    message = refused(first, other)
    assert "dataset.fingerprint.validation is v1" in message and "v0" in message
    again = study("c", POINTS, dataset=of_data(validation="v1"), seed=1)
    assert "dataset.fingerprint.validation" in refused(first, again, other)  # two runs against one
    assert "seed is seed 1" in refused(study("a", POINTS, seed=0), study("b", POINTS, seed=1, sampler="nsga2"))


def test_the_fingerprint_of_the_tests_is_that_of_a_study():
    fields = {field.name for field in dataclasses.fields(DataFingerprint)}
    assert set(FINGERPRINT) <= fields and {*comparable.FINGERPRINT_KEYS, "validation"} <= set(FINGERPRINT)


def test_data_without_fingerprints_are_compared_by_their_facts():
    dataset = {k: v for k, v in of_data().items() if k != "fingerprint"}
    fewer = dataset | {"n_train": 1500}
    message = refused(study("a", POINTS, dataset=dataset), study("b", POINTS, dataset=fewer, sampler="nsga2"))
    assert "dataset.n_train + dataset.n_validation is 1920, but 2020" in message
    grouped([study("a", POINTS, dataset=of_data()), study("b", POINTS, dataset=dataset, sampler="nsga2")])


def test_a_study_given_twice_a_refit_and_a_single_study_are_refused(tmp_path):
    one = study(tmp_path / "a", POINTS)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert f"{tmp_path / 'link'} was given twice" in refused(one, study(tmp_path / "link", POINTS, name="a"))
    assert "refit_of is 'a'" in refused(one, study(tmp_path / "a/refit", POINTS, refit_of="a"))
    assert "found 1" in refused(one)


def test_runs_that_differ_only_in_their_seed_are_one_method():
    def run(name, seed, **changes):
        return study(f"runs/{name}", POINTS, seed=seed, dataset=of_data(validation=f"v{seed}"), **changes)

    studies = [run("n1", 1, sampler="nsga2"), run("t0", 0), run("n0", 0, sampler="nsga2"),
               run("t1", 1, overrides=["data.cache_dir=/elsewhere", "seed=1"])]  # fmt: skip
    methods = grouped(studies)
    assert [(m.key, m.labels) for m in methods] == [("A", ("n0", "n1")), ("B", ("t0", "t1"))]
    assert [[r.manifest.requested.seed for r in m.runs] for m in methods] == [[0, 1], [0, 1]]
    assert methods[0].label == "n0 and its repetitions (seeds 0, 1)"


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "nsga2"},
        {"scheduler": "none"},
        {"num_samples": 99},
        {"seeds_per_config": 2},
        {"overrides": ["train.lr=0.1"]},
        {"space": {"name": "other"}},
        {"frontend": {"sample_rate": 32000, "hop": 1000}},
        {"warm_start": ["x"]},
        {"seed": 7},  # the same seed: a second run, but not a repetition with another seed
    ],
)
def test_other_settings_or_the_same_seed_make_another_method(changes):
    methods = grouped([study("a", POINTS, seed=7, dataset=of_data()), study("b", POINTS, dataset=of_data(), **changes)])
    assert [method.key for method in methods] == ["A", "B"]


def test_labels_are_unique():
    def named(path, name):
        return study(path, POINTS, name=name)

    same = [named("runs/a/x", "x"), named("runs/b/x", "x"), named("y", "y")]
    assert labels(same) == ["x (a/x)", "x (b/x)", "y"]
    assert labels([named("p/one", "x"), named("p/two", "x"), named("q", "x (one)")]) == [
        "x (one)", "x (two)", "x (one) no. 2"]  # fmt: skip
