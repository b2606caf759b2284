"""A study in an object store, with a real S3 server (moto) on this machine: drivers one after another, and at once."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

import tune.study.lease
from tests.support.machines import PATIENCE_S, QUICK, SMALL, SPACE, Line, Machine, content, end, ray_nodes, wait_until
from tests.support.paths import ROOT
from trainables.outputs.storage import Store, TrialCheckpoints
from tune.study.events import DriverStarted, TrialCreated
from tune.study.hold import hold
from tune.study.journal import Journal, Reading, read_events, read_state
from tune.study.lease import StoreLease, StudyLost, find_claim
from tune.study.manifest import StudyError
from tune.study.reader import Follower, open_place
from tune.study.state import StudyState
from tune.study.store import Mirror, check_store, work_root, working_folder

pytestmark = pytest.mark.slow  # starts an S3 server
SECRET = "not-a-real-secret"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="module")
def environment(server: str) -> Iterator[None]:
    """Credentials and the endpoint, also for the Ray cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture(scope="module")
def address(environment: None) -> Iterator[str]:
    with ray_nodes() as found:
        yield found


@pytest.fixture
def bucket(environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "this-machine"))
    client = boto3.client("s3")
    client.create_bucket(Bucket="studies")
    yield "s3://studies"
    found = client.list_objects_v2(Bucket="studies").get("Contents", [])
    for start in range(0, len(found), 1000):
        client.delete_objects(
            Bucket="studies", Delete={"Objects": [{"Key": o["Key"]} for o in found[start : start + 1000]]}
        )


# the parts


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


def test_each_uri_and_endpoint_has_a_working_folder_of_its_own(bucket: str, tmp_path: Path, monkeypatch) -> None:
    """Wherever the command is started; URIs that differ in one character do not share a folder."""
    uris = ["s3://studies/a/b", "s3://studies/a-b", "s3://studies/a_b", "s3://studies/a/b/c", "s3://studies/A/b"]
    folders = [working_folder(uri) for uri in uris]
    assert len(set(folders)) == len(uris)
    assert all(folder.is_relative_to(work_root()) for folder in folders)
    assert working_folder(uris[0] + "/") == folders[0]
    monkeypatch.chdir(tmp_path)
    assert [working_folder(uri) for uri in uris] == folders
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert not {working_folder(uri) for uri in uris} & set(folders)


def trial(name: str) -> TrialCreated:
    return TrialCreated(trial=name, config_id=name, replicate=0, params={}, values={})


def drive(folder: Path, *names: str) -> Journal:
    """A driver that writes trials into the journal in `folder`."""
    reading = Reading(folder)
    reading.apply(StudyState().apply)
    journal = Journal(folder, reading.after)
    journal.append((DriverStarted(command=""), *map(trial, names)))
    return journal


def test_a_machine_that_comes_back_takes_what_another_has_gone_on_with(bucket: str, tmp_path: Path) -> None:
    here, there, uri = tmp_path / "here", tmp_path / "there", f"{bucket}/x"
    drive(here, "t0000").close()
    (here / "study.json").write_text("first")
    (here / "points.csv").write_text("first")
    Mirror(here, uri).push(last=True)
    drive(here, "t0001").close()  # not sent: this driver was killed
    (here / "study.json").write_text("not sent")
    again = Mirror(here, uri)
    again.pull()  # nobody has gone on since: its events are kept
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
    """An old local file never overwrites the store's, whichever of the two is longer."""
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


def test_a_claim_is_renewed_released_and_refused(bucket: str, monkeypatch) -> None:
    monkeypatch.setattr(tune.study.lease, "RENEW_S", 0.2)
    first, second = (StoreLease(Store(f"{bucket}/x")) for _ in range(2))
    first.acquire(settle_s=0)
    with pytest.raises(StudyError, match=str(os.getpid())):
        second.acquire(settle_s=0)

    def renewed_ns() -> int:
        return max(stamp[1] for name, stamp in first.store.stamps("lease").items() if name.endswith(".alive"))

    begin, until = renewed_ns(), time.monotonic() + 60
    while renewed_ns() == begin and time.monotonic() < until:
        time.sleep(0.1)
    assert renewed_ns() > begin, "the claim is not renewed"
    first.release()
    claim = find_claim(first.store)
    assert claim and claim.claim.released and not claim.alive
    second.acquire(settle_s=0)
    assert second.generation == 2
    with pytest.raises(StudyLost):
        first.verify()
    with pytest.raises(StudyLost):
        first.check()
    second.release()


def test_two_claims_of_one_moment_leave_one_owner(bucket: str) -> None:
    for round_ in range(4):
        leases = [StoreLease(Store(f"{bucket}/x{round_}")) for _ in range(3)]
        barrier, owners, refused = threading.Barrier(len(leases)), list[StoreLease](), list[StudyError]()

        def claim(lease: StoreLease, barrier=barrier, owners=owners, refused=refused) -> None:
            barrier.wait()
            try:
                lease.acquire(settle_s=3.0)
                owners.append(lease)
            except StudyError as error:
                refused.append(error)

        threads = [threading.Thread(target=claim, args=(lease,)) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(owners), len(refused)) == (1, 2)
        owners[0].verify()
        owners[0].release()


def test_a_driver_that_is_paused_while_it_claims_does_not_take_the_study(bucket: str, monkeypatch) -> None:
    """It had seen no claim, and another driver has the study when it goes on with the same number."""
    first, second = (StoreLease(Store(f"{bucket}/x")) for _ in range(2))
    monkeypatch.setattr(first, "_write", lambda ending, write=first._write: (second_acquires(), write(ending)))

    def second_acquires() -> None:
        if not second.generation:
            second.acquire(settle_s=0)
            time.sleep(1.1)  # a store's times are whole seconds

    with pytest.raises(StudyError):
        first.acquire(settle_s=0)
    assert (first.generation, second.generation) == (1, 1)
    second.verify()
    assert len([name for name in second.store.names("lease") if name.endswith(".json")]) == 1
    second.release()


def test_a_claim_of_another_version_is_refused(bucket: str) -> None:
    store = Store(f"{bucket}/x")
    store.write("lease/000007-ab.json", b'{"format": 9}')
    with pytest.raises(StudyError, match="000007-ab"):
        StoreLease(store).acquire(settle_s=0)
    assert store.names("lease") == ["000007-ab.json"]


def test_a_driver_whose_study_is_deleted_stops(bucket: str, tmp_path: Path) -> None:
    store = Store(f"{bucket}/x")
    drive(tmp_path / "x", "t0000").close()
    with hold(tmp_path / "x", f"{bucket}/x") as held:
        held.push(last=True)
        Store(bucket).delete("x")
        (tmp_path / "x" / "study.json").write_text("")
        with pytest.raises(StudyLost):
            held.push(last=True)
    assert store.names("") == []


def test_a_push_that_was_killed_is_gone_on_with(bucket: str, tmp_path: Path, monkeypatch) -> None:
    """After the first of two journal segments was sent, and before that was noted."""
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


def test_a_dead_process_of_this_machine_need_not_be_waited_for(bucket: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "m", os.environ["AWS_ENDPOINT_URL"])
    script = (
        "import time; from trainables.outputs.storage import Store; from tune.study.lease import StoreLease\n"
        f"StoreLease(Store('{bucket}/x')).acquire(0); print('held', flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=machine.folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    lease = StoreLease(Store(f"{bucket}/x"))
    with pytest.raises(StudyError, match=str(process.pid)):
        lease.acquire(settle_s=0)
    end(process)
    lease.acquire(settle_s=0)
    assert lease.generation == 2
    lease.release()


def test_a_held_study_is_locked_here_and_there(bucket: str, tmp_path: Path) -> None:
    uri = f"{bucket}/a/x"
    folder = working_folder(f"{bucket}/a") / "x"
    with hold(folder, uri) as held:
        assert held.generation == 1
        with pytest.raises(StudyError, match=str(os.getpid())), hold(folder, uri):
            pass
        with pytest.raises(StudyError, match=str(os.getpid())), hold(tmp_path / "other-machine" / "x", uri):
            pass
        assert open_claim(uri)
    assert not open_claim(uri)


def open_claim(uri: str) -> bool:
    found = find_claim(Store(uri))
    return found is not None and found.alive


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


# whole studies


class Cluster:
    """The words of a small study, and machines to run them on."""

    def __init__(self, bucket: str, tmp_path: Path, dataset: Path, endpoint: str, address: str):
        self.bucket, self.tmp_path, self.endpoint = bucket, tmp_path, endpoint
        (tmp_path / "s.yaml").write_text(SPACE)
        self.given = ["--address", address, f"--dataset_dir={dataset}", f"--cache_dir={tmp_path / 'cache'}", *SMALL]

    def machine(self, name: str, endpoint: str | None = None) -> Machine:
        return Machine(self.tmp_path / name, endpoint or self.endpoint)

    def words(self, name: str = "x", trials: int = 3, epochs: int = 3, storage: str = "asc") -> list[str]:
        return [
            *("--space", str(self.tmp_path / "s.yaml"), "--name", name, "--resume", "auto"),
            *("--storage", f"{self.bucket}/{storage}", "--num-samples", str(trials), "--max-concurrent", "1"),
            *("--scheduler", "fifo", f"train.epochs={epochs}", *self.given),
        ]


@pytest.fixture
def cluster(bucket: str, tmp_path: Path, tiny_tau: Path, server: str, address: str) -> Cluster:
    return Cluster(bucket, tmp_path, tiny_tau, server, address)


def events_of(store: Store, folder: Path) -> list:
    """The events in a store, read by way of `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    store.pull("journal", folder / "journal")
    return list(read_events(folder))


def check_log(events: list, trials: int, drivers: int) -> None:
    """Everything ended, and no epoch, point or end is there twice."""
    state = StudyState()
    for event in events:
        state.apply(event)
    assert state.counts() == {"complete": trials, "rejected": state.rejected.total()}
    assert state.drivers == drivers
    assert sum(t.repeated for t in state.trials.values()) <= drivers - 1
    points = [(e.trial, e.point["step"]) for e in events if e.kind == "point_measured"]
    assert len(points) == len(set(points)) == 2 * trials


@pytest.mark.ray
def test_start_kill_resume_report_evaluate(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    """A is killed, B goes on without any file of A's machine and finishes, A evaluates: every file in the store is its
    newest."""
    a, b, store = cluster.machine("a"), cluster.machine("b"), Store(f"{bucket}/asc/x")
    first = a.start(*cluster.words())
    wait_until(lambda: "step0" in store.names("experiments/t0001"), first)
    end(first)
    assert store.names("journal") == ["000001-0001.jsonl"]
    status, said = b.run(*cluster.words())
    assert status == 0, said
    check_log(events_of(store, tmp_path / "read"), trials=3, drivers=2)
    assert {"study.json", "points.csv", "report.html", "front.csv"} <= set(store.names(""))
    assert len(TrialCheckpoints(f"{bucket}/asc/x/ray", "t0002").newest_first()) == 1
    before = content(store)
    curves = {name: store.read(f"experiments/{name}/results.csv").count(b"\n") for name in store.names("experiments")}
    assert curves == {"t0000": 6, "t0001": 6, "t0002": 6}, "a header and five epochs each"
    status, said = a.run(f"{bucket}/asc/x", command="evaluate")
    assert status == 0, said
    after = content(store)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"test.csv", "study.json", "report.html", "front.csv", "front.png"}
    manifest = json.loads(store.read("study.json"))
    assert manifest["status"] == "complete" and len(manifest["test_opened"]) == 1
    text = "".join(p.read_text(errors="ignore") for p in tmp_path.rglob("*.json*"))
    assert SECRET not in text
    status, said = b.run(*cluster.words())
    assert status == 0 and "complete already" in said
    assert store.read("test.csv") == a_file(after, store)


def a_file(known: dict, store: Store) -> bytes:
    """test.csv, which must be the one that `known` describes."""
    assert content(store)["test.csv"] == known["test.csv"]
    return store.read("test.csv")


@pytest.mark.ray
def test_a_study_that_is_made_anew_under_its_name(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    """A has files of the first; B deletes it in the store and runs another; A evaluates the new one, which stays."""
    a, b, store = cluster.machine("a"), cluster.machine("b"), Store(f"{bucket}/asc/x")
    assert a.run(*cluster.words(trials=1))[0] == 0
    assert a.run(f"{bucket}/asc/x", command="evaluate")[0] == 0
    Store(f"{bucket}/asc").delete("x")
    status, said = b.run(*cluster.words(trials=1, epochs=2), "seed=5")
    assert status == 0, said
    before = content(store)
    status, said = a.run(f"{bucket}/asc/x", command="evaluate")
    assert status == 0, said
    after = content(store)
    assert "opened for" in said and {n for n in before if before[n] != after[n]} <= {
        *("study.json", "report.html", "front.csv", "front.png")
    }
    tested = list(csv.DictReader(io.StringIO(store.read("test.csv").decode())))
    points = list(csv.DictReader(io.StringIO(store.read("points.csv").decode())))
    assert {(r["trial_id"], r["step"]) for r in tested} <= {(r["trial_id"], r["step"]) for r in points}
    # deleted once more, and begun anew on a machine that still has files of it
    Store(f"{bucket}/asc").delete("x")
    status, said = b.run(*cluster.words(trials=1, epochs=2))
    assert status == 0 and "test.csv" not in store.names(""), said
    check_log(events_of(store, tmp_path / "read"), trials=1, drivers=1)


@pytest.mark.ray
def test_drivers_that_start_at_once(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    """Two on one machine, in two directories, and one on another: one runs the study, the others are refused and have
    written nothing."""
    store, elsewhere = Store(f"{bucket}/asc/x"), cluster.machine("a")
    (tmp_path / "a" / "elsewhere").mkdir()
    elsewhere.directory = tmp_path / "a" / "elsewhere"
    machines = [cluster.machine("a"), elsewhere, cluster.machine("b")]
    drivers = [machine.start(*cluster.words(trials=1)) for machine in machines]
    said = [driver.communicate(timeout=PATIENCE_S)[0] for driver in drivers]
    assert sorted(driver.returncode for driver in drivers) == [0, 2, 2], said
    for driver, text in zip(drivers, said, strict=True):
        if driver.returncode:
            assert any(words in text for words in ("being run", "taken over", "exists already")), text
    check_log(events_of(store, tmp_path / "read"), trials=1, drivers=1)


# a driver that pauses itself, once: a signal from outside may find it with a lock of the cache, or a file on its way
PAUSES = QUICK.replace(
    "sys.exit(main())",
    """
import os, signal, tune.run
from tune.study.hold import Held
paused = []
def pause_before(owner, name, when):
    function = getattr(owner, name)
    def paused_first(*arguments, **named):
        if not paused and when(*arguments):
            paused.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)
        return function(*arguments, **named)
    setattr(owner, name, paused_first)
MOMENT
sys.exit(main())
""",
)
MOMENTS = {
    "preparation": 'pause_before(tune.run, "prepare", lambda *_: True)',
    "search": 'pause_before(Held, "push", lambda held: "step0" in held.mirror.store.names("experiments/t0000"))',
}


@pytest.mark.ray
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_paused_driver_finds_that_it_has_lost_the_study(
    cluster: Cluster, bucket: str, tmp_path: Path, moment: str
) -> None:
    """Stopped by SIGSTOP until another machine has finished the study; then it writes nothing more."""
    a = Machine(tmp_path / "a", cluster.endpoint, PAUSES.replace("MOMENT", MOMENTS[moment]))
    b, store = cluster.machine("b"), Store(f"{bucket}/asc/x")
    words = cluster.words(trials=2, epochs=4)
    paused = a.start(*words)
    try:
        wait_until(lambda: bool(os.waitid(os.P_PID, paused.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)), paused)
        refused, said = b.run(*words)
        if refused:  # its claim is fresh still
            assert refused == 2 and str(paused.pid) in said
            time.sleep(6)
            refused, said = b.run(*words)
        assert refused == 0, said
        before = content(store)
        os.kill(paused.pid, signal.SIGCONT)
        said, _ = paused.communicate(timeout=PATIENCE_S)
    finally:
        end(paused)
    assert paused.returncode == 2, said
    assert "taken over" in said
    assert content(store) == before
    check_log(events_of(store, tmp_path / "read"), trials=2, drivers=2 if moment == "search" else 1)


@pytest.mark.ray
@pytest.mark.parametrize("taken", [False, True])
def test_a_driver_that_loses_its_storage(cluster: Cluster, bucket: str, tmp_path: Path, taken: bool) -> None:
    """It goes on when the storage is back, unless another machine has taken the study over."""
    line, store = Line(cluster.endpoint), Store(f"{bucket}/asc/x")
    a, b = cluster.machine("a", line.endpoint), cluster.machine("b")
    words = cluster.words(trials=2, epochs=4)
    driver = a.start(*words)
    try:
        wait_until(lambda: "step0" in store.names("experiments/t0000"), driver)
        line.cut()
        time.sleep(6)
        if taken:
            status, said = b.run(*words)
            assert status == 0, said
        before = content(store)
        line.mend()
        said, _ = driver.communicate(timeout=PATIENCE_S)
    finally:
        line.cut()
        end(driver)
    if taken:
        assert driver.returncode == 2, said
        assert "taken over" in said
        assert content(store) == before
    else:
        assert driver.returncode == 0, said
    state = StudyState()
    for event in events_of(store, tmp_path / "read"):
        state.apply(event)
    assert state.counts()["complete"] == 2
