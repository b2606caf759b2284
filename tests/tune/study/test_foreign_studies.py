"""Studies that came from somebody else: links, locks, URIs, objects and folders that lead out of the study."""

import json
from pathlib import Path

import pytest

from analysis.manifest import Requested, Resolved, StudyManifest
from analysis.typed_json import ResultsError
from trainables.outputs.storage import Store, TrialCheckpoints
from tune.study.access import lock_of, open_study
from tune.study.lease import find_claim
from tune.study.manifest import StudyError, write_manifest
from tune.study.reader import open_place
from tune.study.store import Mirror, check_store, check_uri, is_uri

SECRET = "s3cr3t/+x"
WITH_SECRET = [
    f"s3://KEY:{SECRET}@bucket/x",
    f"s3://{SECRET.replace('/', '')}@bucket/x",
    f"s3:/KEY:{SECRET}@bucket/x",
    f"s3://bucket/x?endpoint_override=http://me:{SECRET}@host:9000",
    f"s3://bucket/x?secret_key={SECRET}",
    f"gs://bucket/x?token={SECRET}",
]


def manifest(folder: Path, **values) -> StudyManifest:
    objectives = {"val_macro_avg_acc": "max", "macs": "min"}
    return StudyManifest(Requested(name=folder.name), Resolved(folder=str(folder), objectives=objectives)).changed(
        **values
    )


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "x"
    write_manifest(folder, manifest(folder))
    (tmp_path / "outside" / "step0").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("link", ["experiments", "experiments/t0000", "journal", "ray", "points.csv", "wandb"])
def test_a_link_out_of_the_study_is_refused(study: Path, tmp_path: Path, link: str) -> None:
    with open_study(study, None):
        open_place(str(study))
    (study / link).parent.mkdir(exist_ok=True)
    (study / link).symlink_to(tmp_path / "outside")
    with pytest.raises(StudyError, match=f"{study / link} ") as error, open_study(study, None):
        pass
    assert str(tmp_path / "outside") in str(error.value)
    with pytest.raises(ResultsError, match=f"{study / link} "):
        open_place(str(study))


def test_links_within_a_study_and_those_of_wandb_are_allowed(study: Path, tmp_path: Path) -> None:
    (study / "wandb").mkdir()
    (study / "wandb" / "latest-run").symlink_to(tmp_path / "outside")  # W&B's links are absolute: the study was moved
    (study / "latest").symlink_to("wandb")
    (tmp_path / "link").symlink_to(study)
    for folder in (study, tmp_path / "link"):
        with open_study(folder, None):
            pass


def test_a_lock_that_is_a_link_is_refused_and_its_target_is_kept(study: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    lock_of(study).symlink_to(tmp_path / "precious")
    with pytest.raises(StudyError, match="symbolic link"), open_study(study, None):
        pass
    assert (tmp_path / "precious").read_text() == "content"


def test_linked_checkpoints_are_neither_read_nor_deleted(study: Path, tmp_path: Path) -> None:
    precious = tmp_path / "outside" / "checkpoint_000000"
    (precious / "inner").mkdir(parents=True)
    for run in ("run001", "run002", "run003"):
        (study / "ray" / run).mkdir(parents=True)
    (study / "ray" / "run001" / "t0000").symlink_to(tmp_path / "outside")
    (study / "ray" / "run002" / "t0000").mkdir()
    (study / "ray" / "run002" / "t0000" / "checkpoint_000000").symlink_to(precious)
    (study / "ray" / "run003" / "t0000" / "checkpoint_000001").mkdir(parents=True)
    checkpoints = TrialCheckpoints(str(study / "ray"), "t0000")
    assert checkpoints.newest_first() == ["run003/t0000/checkpoint_000001"]
    checkpoints.clear(0)
    assert checkpoints.newest_first() == [] and (precious / "inner").is_dir()


@pytest.mark.parametrize("uri", WITH_SECRET)
def test_credentials_in_a_uri_are_refused_and_not_shown(uri: str, tmp_path: Path) -> None:
    actions = [check_uri, is_uri, check_store, open_place]
    actions += [Store, lambda uri: Mirror(tmp_path, uri)] if "://" in uri else []
    for action in actions:
        with pytest.raises((StudyError, ResultsError, ValueError)) as error:
            action(uri)
        assert "s3cr3t" not in str(error.value) and "AWS_SECRET_ACCESS_KEY" in str(error.value)


@pytest.mark.parametrize(
    "uri", ["s3:/bucket/x", "gs:/bucket/x", "s3:bucket/x", "S3:/bucket/x", "abfs:/x", "s3a:/b/x", "file:/tmp/x"]
)
def test_a_uri_with_one_slash_is_no_folder(uri: str) -> None:
    for action in (is_uri, open_place):
        with pytest.raises((StudyError, ResultsError), match="two slashes") as error:
            action(uri)
        assert uri in str(error.value)


@pytest.mark.parametrize("uri", ["s3://b/x?region=eu", "s3://b/../x", "s3://b/x/..", "s3://b//x", "s3://b/\n"])
def test_a_uri_has_no_parameters_and_no_odd_parts(uri: str) -> None:
    with pytest.raises(StudyError):
        is_uri(uri)


@pytest.mark.parametrize("path", ["runs", "/tmp/runs", "./s3:/x", "a:b", "x@y", "s3", "file", "/home/me@work/a:b"])
def test_what_is_a_folder(path: str) -> None:
    assert not is_uri(path)


def test_objects_whose_names_lead_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing of an object store, with a key that contains `..`; a file system has no such names."""
    store = Store(str(tmp_path))
    for name in ("..", "../x", "a/../../x", "a//x", ".", "x\0"):
        with pytest.raises(OSError, match="name") as error:
            store._checked(name)
        assert repr(name) in str(error.value)
    assert store._checked("experiments/t0000/.hidden") == "experiments/t0000/.hidden"


@pytest.mark.parametrize(
    "change",
    [
        {"process": 5},
        {"pid": "../../x"},
        {"pid": True},
        {"released": [[]]},
        {"host": None},
        {"owner": {}},
        {"format": 1.0},
    ],
)
def test_a_claim_with_a_value_of_another_type_is_named(tmp_path: Path, change: dict) -> None:
    valid = {"owner": "0a", "host": "h", "pid": 5, "process": "m/5/1", "released": False, "format": 1}
    file = tmp_path / "lease" / "000001-0a.json"
    file.parent.mkdir()
    file.write_text(json.dumps(valid))
    store = Store(str(tmp_path))
    assert (claim := find_claim(store, 0)) and claim.alive
    for text in (json.dumps(valid | change), "[" * 100_000):
        file.write_text(text)
        with pytest.raises(StudyError, match=r"000001-0a\.json") as error:
            find_claim(store, 0)
        assert "\n" not in str(error.value)
