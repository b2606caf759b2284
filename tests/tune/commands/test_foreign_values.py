"""Values of a command line or a study.json that would publish a secret, or name a place outside the storage."""

import os
from pathlib import Path

import pytest

from analysis.manifest import Requested, Resolved, StudyManifest
from tune.commands.evaluate import place_of
from tune.options import check_name, read_request, slug, writable
from tune.planning.checks import check_cache, check_warm_start
from tune.resume import study_named
from tune.study.manifest import StudyError, write_manifest
from tune.study.state import StudyState
from tune.study.store import working_folder

SECRET = "s3cr3t"


def manifest(folder: Path, **values) -> StudyManifest:
    objectives = {"val_macro_avg_acc": "max", "macs": "min"}
    return StudyManifest(Requested(name=folder.name), Resolved(folder=str(folder), objectives=objectives)).changed(
        **values
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--storage", f"s3://KEY:{SECRET}/+@bucket/x"],
        [f"--storage=s3://bucket/x?endpoint_override=http://me:{SECRET}@host"],
        ["--warm-start", "a", f"s3://KEY:{SECRET}@bucket/x"],
        ["--address", f"ray://me:{SECRET}@host:1"],
        [f"data.dataset_dir=http://me:{SECRET}@host/x"],
        [f"--dataset_dir=http://me:{SECRET}@host/x"],
    ],
)
def test_credentials_on_the_command_line_are_refused_and_not_shown(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(StudyError) as error:
        read_request(["--space", "kd", "--storage", str(tmp_path), *words])
    assert SECRET not in str(error.value) and "AWS_SECRET_ACCESS_KEY" in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["data.dataset_dir=${oc.env:SECRET}"],
            ["--dataset_dir=${oc.env:SECRET}"],
            ["--dataset_dir", "${oc.env:SECRET}"],
        ),
        *(
            ["student=${oc.env:SECRET}"],
            ["--student.branches=[3x3,${oc.env:SECRET}]"],
            ["--limits", "macs=${oc.env:SECRET}"],
        ),
        *(["data={dataset_dir: '${oc.env:SECRET}'}"], ["--kd_alpha=${oc.env:SECRET}"], [r"student=$\{oc.env:SECRET\}"]),
    ],
)
def test_an_interpolation_is_refused_before_it_is_replaced(
    refused_early, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    printed = refused_early("--space", "rep", *words)
    assert "${oc.env:SECRET}" in printed and SECRET not in printed


@pytest.mark.parametrize("place", ["base", "choice", "key"])
def test_an_interpolation_in_a_space_is_refused(
    refused_early, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    base = "data.dataset_dir=${oc.env:SECRET}" if place == "base" else "student=rep_mobile"
    choice = "${oc.env:SECRET}" if place == "choice" else "x"
    key = "augment.${oc.env:SECRET}" if place == "key" else "augment.dir_dir"
    (tmp_path / "s.yaml").write_text(f"base: ['{base}']\nparameters:\n  {key}: {{choice: ['{choice}', y]}}\n")
    printed = refused_early("--space", str(tmp_path / "s.yaml"))
    assert "${oc.env:SECRET}" in printed and SECRET not in printed


@pytest.mark.parametrize("name", ["cache", "Cache", "experiments", "aä", "ä", "-x", "_x", "a b", "x" * 101, ""])
def test_what_cannot_be_the_name_of_a_new_study(name: str) -> None:
    with pytest.raises(StudyError) as error:
        check_name(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", ["x", "X.1-b_c", "cache2", "2026", "x" * 100])
def test_names_of_new_studies(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".x", "/x", "a\nb"])
def test_a_typed_name_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as error:
        read_request(["--name", name, "--resume", "--storage", str(tmp_path)])
    assert repr(name) in str(error.value)


def test_a_study_of_an_earlier_version_may_have_another_name(tmp_path: Path) -> None:
    assert read_request(["--name", "aä", "--resume", "--storage", str(tmp_path)]).options.name == "aä"


@pytest.mark.parametrize("text", ["kd_prune", "my space ä", "../x", "ä", "x" * 300, "-", "a.b"])
def test_the_default_name_follows_from_any_space(text: str) -> None:
    check_name(f"{slug(text)}-20260105-093000")
    assert slug("kd_prune") == "kd_prune" and slug("my space ä") == "my-space"


def test_a_warm_start_does_not_show_credentials(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as error:
        study_named(tmp_path, None, f"s3://KEY:{SECRET}@bucket/x")
    assert SECRET not in str(error.value)


def test_the_check_of_a_storage_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / f".probe-{os.getpid()}").symlink_to(tmp_path / "precious")  # the name in earlier versions
    assert writable(str(tmp_path / "runs")) == tmp_path / "runs"
    assert (tmp_path / "precious").read_text() == "content"


def test_the_uri_in_a_study_json_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    uri = "s3://stranger/studies/x"
    elsewhere, copy = tmp_path / "runs" / "x", working_folder("s3://stranger/studies") / "x"
    for folder in (elsewhere, copy):
        write_manifest(folder, manifest(folder, remote=uri))
    assert place_of(str(elsewhere)) == (elsewhere, None)
    with pytest.raises(StudyError, match="s3://") as error:
        place_of(str(copy))
    assert str(copy) in str(error.value)


def test_a_warm_start_from_an_object_store_must_be_typed(tmp_path: Path) -> None:
    found = manifest(tmp_path / "x", warm_start=("/runs/a", "s3://stranger/a"))
    with pytest.raises(StudyError, match="s3://stranger/a"):
        check_warm_start(found, None, StudyState())
    check_warm_start(found, ["/runs/a", "s3://stranger/a"], StudyState())
    check_warm_start(found.changed(warm_start=("/runs/a",)), None, StudyState())
    state = StudyState()
    state.rejected["over the limit"] += 1  # the earlier studies were read before
    check_warm_start(found, None, state)


def test_a_cache_elsewhere_must_be_one_or_be_typed(tmp_path: Path) -> None:
    folder, other = tmp_path / "runs" / "x", tmp_path / "home"
    other.mkdir()
    found = manifest(folder, config={"data.cache_dir": str(other)})
    with pytest.raises(StudyError, match=f"data.cache_dir={other}"):
        check_cache(folder, found, [])
    with pytest.raises(StudyError, match=r"data\.cache_dir="):
        check_cache(folder, found.changed(config={"data.cache_dir": str(tmp_path / "runs" / ".." / "home")}), [])
    check_cache(folder, found, [f"data.cache_dir='{other}'"])
    check_cache(folder, found.changed(config={"data.cache_dir": str(tmp_path / "runs" / "cache")}), [])
    check_cache(folder, found.changed(config={}), [])
    (other / "waveforms.lock").touch()
    check_cache(folder, found, [])
