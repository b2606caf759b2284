"""A study's folder in an object store, without Ray: what is sent, fetched and restored."""

import os
import shutil
from pathlib import Path

import boto3
import pytest

from analysis.typed_json import ResultsError
from tests.support.machines import content
from tests.support.tune.mirrored import SECRET, drive
from trainables.outputs.storage import Store
from tune.study.journal import read_state
from tune.study.manifest import StudyError
from tune.study.reader import Follower, open_place
from tune.study.store import Mirror, check_store, work_root, working_folder

pytestmark = pytest.mark.slow  # starts an S3 server


def test_bad_uris(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="nowhere"):
        check_store("s3://nowhere/x")
    with pytest.raises(StudyError, match="AWS_SECRET_ACCESS_KEY") as error:
        check_store(f"s3://testing:{SECRET}@studies/x")
    assert SECRET not in str(error.value)
    with pytest.raises(StudyError, match="s9://studies/x"):
        check_store("s9://studies/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StudyError, match="s3://studies/x"):
        check_store("s3://studies/x")


def test_folders_go_and_come(bucket: str, tmp_path: Path) -> None:
    store = Store(f"{bucket}/a")
    (tmp_path / "x" / "inner").mkdir(parents=True)
    (tmp_path / "x" / "inner" / "file").write_text("content")
    store.push(tmp_path / "x", "b/x")
    assert store.names("b") == ["x"]
    assert store.names("nothing") == []
    assert store.read("b/x/inner/file") == b"content"
    assert store.stamp("b/x/inner/file")[0] == 7
    store.pull("b/x", tmp_path / "y")
    assert (tmp_path / "y" / "inner" / "file").read_text() == "content"
    store.pull("b/x/inner/file", tmp_path / "z" / "file")
    assert (tmp_path / "z" / "file").read_text() == "content"
    store.delete("b/x")
    assert store.names("b/x") == []


@pytest.mark.parametrize("prefix", ["", "journal/", "experiments/t0000/step0/"])
def test_objects_whose_keys_lead_elsewhere_are_not_copied(bucket: str, tmp_path: Path, prefix: str) -> None:
    """A key is a text that may contain `..`; as a part of a local path, this is the parent folder."""
    uri, folder = f"{bucket}/x", tmp_path / "a" / "b" / "c" / "x"
    drive(folder, "t0000").close()
    mirror = Mirror(folder, uri)
    mirror.push(last=True)
    for key in (f"x/{prefix}..", f"x/{prefix}../../../../planted"):
        boto3.client("s3").put_object(Bucket="studies", Key=key, Body=b"planted")
    before = sorted(tmp_path.rglob("*"))
    reads = [mirror.pull, lambda: open_place(uri)] if not prefix.startswith("experiments") else []
    reads += [lambda: mirror.pull_networks([prefix.rstrip("/")]), lambda: Store(uri).pull(prefix, tmp_path / "copy")]
    for read in reads:
        with pytest.raises((OSError, ResultsError), match=r"'(\.\./)*\.\.(/planted)?'"):
            read()
    assert sorted(tmp_path.rglob("*")) == before


def test_each_uri_and_endpoint_has_a_working_folder_of_its_own(bucket: str, tmp_path: Path, monkeypatch) -> None:
    """The folder does not depend on the current directory, and URIs that differ in one character do not share one."""
    uris = ["s3://studies/a/b", "s3://studies/a-b", "s3://studies/a_b", "s3://studies/a/b/c", "s3://studies/A/b"]
    folders = [working_folder(uri) for uri in uris]
    assert len(set(folders)) == len(uris)
    assert all(folder.is_relative_to(work_root()) for folder in folders)
    assert working_folder(uris[0] + "/") == folders[0]
    monkeypatch.chdir(tmp_path)
    assert [working_folder(uri) for uri in uris] == folders
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert not {working_folder(uri) for uri in uris} & set(folders)


def test_a_machine_that_comes_back_takes_what_another_has_gone_on_with(bucket: str, tmp_path: Path) -> None:
    here, there, uri = tmp_path / "here", tmp_path / "there", f"{bucket}/x"
    drive(here, "t0000").close()
    (here / "study.json").write_text("first")
    (here / "points.csv").write_text("first")
    Mirror(here, uri).push(last=True)
    drive(here, "t0001").close()  # not sent: this driver was killed
    (here / "study.json").write_text("not sent")
    again = Mirror(here, uri)
    again.pull()  # no other driver has continued, so its events are kept
    assert list(read_state(here).trials) == ["t0000", "t0001"]
    assert (here / "study.json").read_text() == "not sent"
    another = Mirror(there, uri)
    another.pull()
    assert list(read_state(there).trials) == ["t0000"]
    drive(there, "t0002").close()
    another.push(last=True)
    (here / "experiments" / "t0001").mkdir(parents=True)
    (here / "experiments" / "t0001" / "info.json").write_text("old")
    third = Mirror(here, uri)
    third.pull()
    assert list(read_state(here).trials) == ["t0000", "t0002"]
    assert (here / "study.json").read_text() == "first"
    assert not (here / "experiments").exists()
    before = content(Store(uri))
    third.push(last=True)
    assert content(Store(uri)) == before


def test_only_what_changed_here_is_sent(bucket: str, tmp_path: Path) -> None:
    """An old local file never overwrites a newer one in the store, whichever is longer."""
    uri, first, second = f"{bucket}/x", tmp_path / "one", tmp_path / "two"
    drive(first, "t0000").close()
    for name in ("study.json", "test.csv", "report.html"):
        (first / name).write_text(f"{name} of the first")
    Mirror(first, uri).push(last=True)
    mirror = Mirror(second, uri)
    mirror.pull()
    (second / "test.csv").write_text("new")
    mirror.push(last=True)
    stale = Mirror(first, uri)
    stale.pull()
    assert (first / "test.csv").read_text() == "new"
    (first / "study.json").write_text("evaluated")
    stale.push(last=True)
    store = Store(uri)
    assert store.read("test.csv") == b"new" and store.read("study.json") == b"evaluated"
    assert store.read("report.html") == b"report.html of the first"


def test_the_journal_is_sent_last(bucket: str, tmp_path: Path, monkeypatch) -> None:
    sent = []
    push = Store.push
    monkeypatch.setattr(Store, "push", lambda self, local, name: (sent.append(name), push(self, local, name))[1])
    drive(tmp_path / "x", "t0000").close()
    for name in ("study.json", "zzz.csv"):
        (tmp_path / "x" / name).write_text("")
    mirror = Mirror(tmp_path / "x", f"{bucket}/x")
    mirror.push(last=True)
    assert sent == ["study.json", "zzz.csv", "journal/000001-0001.jsonl"]
    mirror.push(last=True)
    assert len(sent) == 3


def test_a_push_that_was_killed_is_gone_on_with(bucket: str, tmp_path: Path, monkeypatch) -> None:
    """The push is killed after it sent the first of two journal segments, before this is recorded."""
    folder, uri = tmp_path / "x", f"{bucket}/x"
    drive(folder, "t0000").close()
    Mirror(folder, uri).push(last=True)
    drive(folder, "t0001").close()
    drive(folder, "t0002").close()
    state = (folder / ".mirror.json").read_text()
    sent = []
    push = Store.push

    def dies(self: Store, local: Path, name: str) -> None:
        if sent:
            raise KeyboardInterrupt
        sent.append(name)
        push(self, local, name)

    monkeypatch.setattr(Store, "push", dies)
    with pytest.raises(KeyboardInterrupt):
        Mirror(folder, uri).push(last=True)
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"])
    (folder / ".mirror.json").write_text(state)
    again = Mirror(folder, uri)
    again.pull()
    assert list(read_state(folder).trials) == ["t0000", "t0001", "t0002"]
    again.push(last=True)
    assert len(Store(uri).names("journal")) == 3


def test_files_that_are_lost_here_come_back(bucket: str, tmp_path: Path) -> None:
    folder, uri = tmp_path / "x", f"{bucket}/x"
    drive(folder, "t0000").close()
    (folder / "study.json").write_text("{}")
    Mirror(folder, uri).push(last=True)
    Store(uri).write("experiments/t0000/step0/weights", b"w")
    mirror = Mirror(folder, uri)
    mirror.pull_networks(["experiments/t0000/step0"])
    (folder / "study.json").unlink()
    (folder / "experiments" / "t0000" / "step0" / "weights").unlink()
    again = Mirror(folder, uri)
    again.pull()
    again.pull_networks(["experiments/t0000/step0"])
    assert (folder / "study.json").read_text() == "{}"
    assert (folder / "experiments" / "t0000" / "step0" / "weights").read_bytes() == b"w"


def test_a_reader_follows_a_study_that_is_renewed_under_its_name(bucket: str, tmp_path: Path) -> None:
    uri, folder = f"{bucket}/x", tmp_path / "x"
    drive(folder, "t0000", "t0001").close()
    (folder / "study.json").write_text("{}")
    Mirror(folder, uri).push(last=True)
    place = open_place(uri)
    follower = Follower(place.folder)
    follower.update()
    assert list(follower.state.trials) == ["t0000", "t0001"]
    Store(bucket).delete("x")
    shutil.rmtree(folder)
    drive(folder, "t0005").close()
    (folder / "study.json").write_text("{}")
    Mirror(folder, uri).push(last=True)
    place.refresh()
    follower.update()
    assert list(follower.state.trials) == ["t0005"]
