"""`study.json` as typed values: round trips, both formats, and errors that name the key."""

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from analysis.manifest import (
    FORMAT,
    Baseline,
    Change,
    Dataset,
    Limits,
    Prepared,
    Progress,
    Refitted,
    Requested,
    Resolved,
    ResultsError,
    StudyManifest,
    Teacher,
    manifest_of,
    read_manifest,
)
from tests.support.example_study import manifest as example

FULL = StudyManifest(
    Requested(
        name="x",
        created="2026-01-05T09:30:00+00:00",
        command="python tune/run.py --space kd",
        overrides=("train.lr=0.1",),
        num_samples=12,
        seeds_per_config=3,
        sampler="random",
        scheduler="none",
        seed=7,
        max_concurrent=2,
        cpus_per_trial=0.5,
        checkpoint_interval=5.0,
        refit_of="y",
        refit=(Refitted("t0001", {"a": 1}, {"train.lr": 0.1}, (0, 1), ({"stem": [8, 16], "expand": [], "out": [8]},)),),
        gpus_per_trial=0.25,
        warm_start=("/runs/earlier",),
        confirmations=("t0001r3", "t0002r3"),
        extended_from=(6, 9),
    ),
    Resolved(
        folder="/runs/x",
        remote="s3://bucket/x",
        space={"name": "kd", "parameters": {"train.lr": {"loguniform": [0.001, 0.1]}}, "base": []},
        config={"train.lr": 0.1, "student.branches": ["3x3", "1x1"], "teacher.name": None},
        objectives={"val_macro_avg_acc": "max", "macs": "min", "bytes": "min"},
        limits=Limits(30e6, 128_000, "int8"),
        code={"data/tau.py": "0a1b"},
        versions={"torch": "2.11.0"},
        frontend={"n_mels": 256},
        deployed_form="fused",
    ),
    Prepared(
        Dataset(
            "/data/tau", 25, 1600, 420, 10, "by location", ("left out: a.wav",), {"sound": "00ff", "clips": 2020}, 2400
        ),
        Baseline("logistic regression", 0.552, 0.51),
        (Teacher("ast", 0.741, "beef"), Teacher("cnn")),
    ),
    Progress(
        status="extended",
        trials={"complete": 3, "crashed": 1, "rejected": 2},
        rejected_reasons={"over the limit on MACs": 2},
        finished="2026-01-05T09:38:12+00:00",
        wall_s=492.5,
        drivers=2,
        epochs_repeated=4,
        changes=(Change("2026-01-05T09:31:00+00:00", "the code has changed: data/tau.py"),),
        test_opened=("2026-01-05T10:00:00+00:00",),
    ),
)


def test_a_full_manifest_makes_the_round_trip_through_a_file(tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    file.write_text(json.dumps(FULL.to_json()), encoding="utf-8")
    assert read_manifest(file) == FULL


def test_the_full_manifest_above_has_no_default_left() -> None:
    """A field at its default would not be tested by the round trip."""
    parts = (FULL.requested, FULL.resolved, FULL.prepared, FULL.progress, FULL.prepared.dataset, FULL.resolved.limits)
    for part in parts:
        for field in dataclasses.fields(part):
            factory = field.default_factory
            default = factory() if callable(factory) else field.default
            assert getattr(part, field.name) != default, field.name


def test_the_file_is_flat_and_each_key_belongs_to_one_part() -> None:
    written = FULL.to_json()
    parts = typing.get_type_hints(StudyManifest).values()
    keys = [field.name for part in parts for field in dataclasses.fields(part)]
    assert len(set(keys)) == len(keys)
    assert set(written) == {"format", *keys} and written["format"] == FORMAT == 2
    assert json.loads(json.dumps(written)) == written  # lists instead of tuples


def test_format_1_is_read_with_defaults_and_written_as_format_2() -> None:
    old = example()
    assert "format" not in old
    read = manifest_of(old, "study.json")
    assert (read.requested.name, read.requested.seed, read.requested.num_samples) == ("example", 7, 18)
    assert read.resolved.limits == Limits(30_000_000, 128_000, "fp16")
    assert read.prepared.dataset.n_validation == 420 and read.prepared.dataset.fingerprint == {}
    assert read.prepared.baseline == Baseline("logistic regression on log-mel means and deviations", 0.552, None)
    assert read.progress.trials == {"complete": 12, "stopped early": 4, "failed": 2, "rejected": 3}
    assert read.progress.changes == () and read.resolved.code == {}
    written = read.to_json()
    assert written["format"] == 2 and manifest_of(written, "study.json") == read
    assert {key: written[key] for key in old if key not in ("dataset", "teachers")} == {
        key: old[key] for key in old if key not in ("dataset", "teachers")
    }


def test_null_stands_for_a_default() -> None:
    read = manifest_of(example() | {"limits": None, "trials": None, "baseline": None, "seed": None}, "study.json")
    assert read.resolved.limits == Limits() and read.progress.trials is None
    assert read.prepared.baseline is None and read.requested.seed == 0


@pytest.mark.parametrize("number", [3, 0, -1, "2", 2.0, True, None])
def test_an_unknown_format_is_refused(number: Any) -> None:
    with pytest.raises(ResultsError, match=rf"^study\.json: format is {re.escape(repr(number))};"):
        manifest_of(FULL.to_json() | {"format": number}, "study.json")


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"name": 5}, "name", "5"),
        ({"seed": "7"}, "seed", '"7"'),
        ({"seed": True}, "seed", "true"),
        ({"seed": 7.5}, "seed", "7.5"),
        ({"wall_s": "long"}, "wall_s", '"long"'),
        ({"wall_s": False}, "wall_s", "false"),
        ({"wall_s": float("inf")}, "wall_s", "Infinity"),
        ({"wall_s": 10**400}, "wall_s", "1000"),
        ({"overrides": "a=1"}, "overrides", '"a=1"'),
        ({"overrides": ["a=1", 2]}, "overrides[1]", "2"),
        ({"extended_from": [6, None]}, "extended_from[1]", "null"),
        ({"limits": [1, 2]}, "limits", "[1, 2]"),
        ({"limits": {"macs": "30e6"}}, "limits: macs", '"30e6"'),
        ({"limits": {"precision": "fp8"}}, "limits.precision", "fp8"),
        ({"objectives": {"macs": 1}}, "objectives.macs", "1"),
        ({"objectives": {"macs": "down"}}, "objectives.macs", "down"),
        ({"status": "done"}, "status", "done"),
        ({"trials": {"complete": "all"}}, "trials.complete", '"all"'),
        ({"dataset": "tau"}, "dataset", '"tau"'),
        ({"dataset": {"n_train": 1.5}}, "dataset: n_train", "1.5"),
        ({"baseline": {"val_macro_avg_acc": [0.5]}}, "baseline: val_macro_avg_acc", "[0.5]"),
        ({"teachers": {"name": "ast"}}, "teachers", '{"name": "ast"}'),
        ({"teachers": [{"name": "ast"}, "cnn"]}, "teachers[1]", '"cnn"'),
        ({"changes": [{"time": 3, "what": "code"}]}, "changes[0]: time", "3"),
        ({"changes": [{"time": "2026-01-05"}]}, "changes[0]", "what"),
        ({"code": {"a.py": None}}, "code.a.py", "null"),
        ({"name": ""}, "name", ""),
        ({"objectives": {}}, "objectives", ""),
    ],
)
def test_a_wrong_value_is_named_with_its_key(change: dict[str, Any], key: str, value: str) -> None:
    with pytest.raises(ResultsError) as error:
        manifest_of(FULL.to_json() | change, "study.json")
    message = str(error.value)
    assert message.startswith("study.json: ") and key in message and value in message
    assert "\n" not in message and len(message) < 200


@pytest.mark.parametrize("content", [[], 42, None, "study"])
def test_what_is_no_object_is_refused(content: Any) -> None:
    with pytest.raises(ResultsError, match=f"found {type(content).__name__}"):
        manifest_of(content, "study.json")


@pytest.mark.parametrize("text", ["", '{"name": "x"', "[" * 100_000, '{"seed": ' + "9" * 5000 + "}"])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "study.json"
    file.write_text(text)
    with pytest.raises(ResultsError, match=re.escape(str(file))):
        read_manifest(file)


def test_changed_replaces_keys_of_any_part_and_nothing_else() -> None:
    values: dict[str, Any] = {"seed": 8, "folder": "/elsewhere", "baseline": None, "status": "complete"}
    changed = FULL.changed(**values)
    assert changed.to_json() == FULL.to_json() | values
    assert FULL.changed() == FULL and FULL.requested.seed == 7
    with pytest.raises(TypeError, match="'statsu'"):
        FULL.changed(seed=8, statsu="complete")


def test_trials_asked_for_are_configurations_times_seeds_and_confirmations() -> None:
    assert FULL.requested.n_trials == 12 * 3 + 2
    assert Requested("x").n_trials == 0


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        *(("name", name, repr(name)) for name in ("../x", "/x", "..", "a/b", ".x", "a\nb", "x\x1b[2J")),
        *(
            ("confirmations", [name], repr(name))
            for name in ("t0000r../../x", "t0000", "../t0000r1", "t0000r1/..", "r1")
        ),
        ("config", {"train.lr": "${oc.env:HOME}"}, "config.train.lr contains '${oc.env:HOME}'"),
        ("config", {"distill.teacher_ckpts": ["a", "b${x}"]}, "'b${x}'"),
        ("space", {"base": ["train.lr=${oc.env:HOME}"]}, "'train.lr=${oc.env:HOME}'"),
        ("overrides", ["train.lr=${oc.env:HOME}"], "'train.lr=${oc.env:HOME}'"),
        ("remote", "s3://${oc.env:HOME}/x", "'s3://${oc.env:HOME}/x'"),
    ],
)
def test_a_manifest_of_somebody_else_names_no_path_outside_and_no_secret(key: str, value: Any, named: str) -> None:
    content = FULL.to_json() | {key: value}
    with pytest.raises(ResultsError) as error:
        manifest_of(content, "study.json")
    assert f"study.json: {key}" in str(error.value) and named in str(error.value)


@pytest.mark.parametrize("key", ["remote", "warm_start"])
@pytest.mark.parametrize(
    "uri",
    [
        "s3://me:s3cr3t/x@bucket/x",
        "s3://b/x?endpoint_override=http://me:s3cr3t/x@h:1",
        "s3://b/x?secret_key=s3cr3t/x",
    ],
)
def test_a_manifest_with_credentials_is_refused_without_showing_them(key: str, uri: str) -> None:
    content = FULL.to_json() | {key: uri if key == "remote" else ["/runs/a", uri]}
    with pytest.raises(ResultsError, match=f"study.json: {key}") as error:
        manifest_of(content, "study.json")
    assert "s3cr3t" not in str(error.value)
