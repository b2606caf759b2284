"""Studies in an object store through Ray: drivers one after another, and at once."""

import csv
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.data.planted import NAMES, bomb, plant
from tests.support.machines import PATIENCE_S, QUICK, SMALL, SPACE, Line, Machine, content, end, ray_nodes, wait_until
from tests.support.tune.mirrored import SECRET
from trainables.outputs.storage import Store, TrialCheckpoints
from tune.study.journal import read_events
from tune.study.state import StudyState

REPORT = ("report.html", "report.md", "front.csv", "front.png", "front.svg")
pytestmark = pytest.mark.slow  # starts an S3 server


@pytest.fixture(scope="module")
def address(environment: None) -> Iterator[str]:
    with ray_nodes() as found:
        yield found


class Cluster:
    """The command line of a small study, and machines to run it on."""

    def __init__(self, bucket: str, tmp_path: Path, dataset: Path, endpoint: str, address: str):
        self.bucket, self.tmp_path, self.endpoint = bucket, tmp_path, endpoint
        (tmp_path / "s.yaml").write_text(SPACE)
        self.arguments = ["--address", address, f"--dataset_dir={dataset}", f"--cache_dir={tmp_path / 'cache'}", *SMALL]

    def machine(self, name: str, endpoint: str | None = None) -> Machine:
        return Machine(self.tmp_path / name, endpoint or self.endpoint)

    def words(self, name: str = "x", trials: int = 3, epochs: int = 3, storage: str = "asc") -> list[str]:
        return [
            *("--space", str(self.tmp_path / "s.yaml"), "--name", name, "--resume", "auto"),
            *("--storage", f"{self.bucket}/{storage}", "--num-samples", str(trials), "--max-concurrent", "1"),
            *("--scheduler", "fifo", "--checkpoint-interval", "0", f"train.epochs={epochs}", *self.arguments),
        ]


@pytest.fixture
def cluster(bucket: str, tmp_path: Path, tiny_tau: Path, server: str, address: str) -> Cluster:
    return Cluster(bucket, tmp_path, tiny_tau, server, address)


def events_of(store: Store, folder: Path) -> list:
    """Return the events of the study in a store; `folder` is used for its copy."""
    shutil.rmtree(folder, ignore_errors=True)
    store.pull("journal", folder / "journal")
    return list(read_events(folder))


def check_log(events: list, trials: int, drivers: int) -> None:
    """Check that all trials ended, and that no epoch, point or end is recorded twice."""
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
    """Machine A is killed, B continues from the store alone and finishes, A evaluates the newest files."""
    a, b, store = cluster.machine("a"), cluster.machine("b"), Store(f"{bucket}/asc/x")
    first = a.start(*cluster.words())
    wait_until(lambda: "step0" in store.names("experiments/t0001"), first)
    end(first)
    assert store.names("journal") == ["000001-0001.jsonl"]
    mark = tmp_path / "exploded"
    (run,) = store.names("ray")
    for folder in ("", "ray/", f"ray/{run}/", f"ray/{run}/t0001/", f"ray/{run}/t0001/checkpoint_999999/", "wandb/"):
        for name in NAMES:  # whoever may write to the bucket runs no code on the machines of its users
            store.write(folder + name, bomb(mark))
    plant([tmp_path / "cache", tmp_path / "a"], mark)
    status, output = b.run(*cluster.words())
    assert status == 0, output
    assert not mark.exists()
    check_log(events_of(store, tmp_path / "read"), trials=3, drivers=2)
    assert {"study.json", "points.csv", "trials.csv", "report.html", "front.csv"} <= set(store.names(""))
    assert len(TrialCheckpoints(f"{bucket}/asc/x/ray", "t0002").newest_first()) == 1
    before = content(store)
    curves = {name: store.read(f"experiments/{name}/results.csv").count(b"\n") for name in store.names("experiments")}
    assert curves == {"t0000": 6, "t0001": 6, "t0002": 6}, "a header and five epochs each"
    status, output = a.run(f"{bucket}/asc/x", command="evaluate")
    assert status == 0, output
    after = content(store)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"test.csv", "study.json", *REPORT}
    manifest = json.loads(store.read("study.json"))
    assert manifest["status"] == "complete" and len(manifest["test_opened"]) == 1
    text = "".join(p.read_text(errors="ignore") for p in tmp_path.rglob("*.json*"))
    assert SECRET not in text
    status, output = b.run(*cluster.words())
    assert status == 0 and "complete already" in output
    assert store.read("test.csv") == a_file(after, store)


def a_file(known: dict, store: Store) -> bytes:
    """Return test.csv of the store, which must be unchanged since `known`."""
    assert content(store)["test.csv"] == known["test.csv"]
    return store.read("test.csv")


@pytest.mark.ray
def test_a_study_that_is_made_anew_under_its_name(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    """A has files of a study; B deletes it in the store and runs another one of that name, which A then evaluates."""
    a, b, store = cluster.machine("a"), cluster.machine("b"), Store(f"{bucket}/asc/x")
    assert a.run(*cluster.words(trials=1))[0] == 0
    assert a.run(f"{bucket}/asc/x", command="evaluate")[0] == 0
    Store(f"{bucket}/asc").delete("x")
    status, output = b.run(*cluster.words(trials=1, epochs=2), "seed=5")
    assert status == 0, output
    before = content(store)
    status, output = a.run(f"{bucket}/asc/x", command="evaluate")
    assert status == 0, output
    after = content(store)
    assert "opened for" in output and {n for n in before if before[n] != after[n]} <= {*("study.json", *REPORT)}
    tested = list(csv.DictReader(io.StringIO(store.read("test.csv").decode())))
    points = list(csv.DictReader(io.StringIO(store.read("points.csv").decode())))
    assert {(r["trial_id"], r["step"]) for r in tested} <= {(r["trial_id"], r["step"]) for r in points}
    # deleted again, and started anew on a machine that still has files of it
    Store(f"{bucket}/asc").delete("x")
    status, output = b.run(*cluster.words(trials=1, epochs=2))
    assert status == 0 and "test.csv" not in store.names(""), output
    check_log(events_of(store, tmp_path / "read"), trials=1, drivers=1)


@pytest.mark.ray
def test_drivers_that_start_at_once(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    """Two drivers start on one machine, one on another; one runs the study, the others write nothing."""
    store, elsewhere = Store(f"{bucket}/asc/x"), cluster.machine("a")
    (tmp_path / "a" / "elsewhere").mkdir()
    elsewhere.directory = tmp_path / "a" / "elsewhere"
    machines = [cluster.machine("a"), elsewhere, cluster.machine("b")]
    drivers = [machine.start(*cluster.words(trials=1)) for machine in machines]
    outputs = [driver.communicate(timeout=PATIENCE_S)[0] for driver in drivers]
    assert sorted(driver.returncode for driver in drivers) == [0, 2, 2], outputs
    for driver, text in zip(drivers, outputs, strict=True):
        if driver.returncode:
            assert any(words in text for words in ("being run", "taken over", "exists already")), text
    check_log(events_of(store, tmp_path / "read"), trials=1, drivers=1)


# a driver that pauses itself once; a signal from outside might find it holding a lock or sending a file
PAUSES = QUICK.replace(
    "sys.exit(main())",
    """
import os, signal, tune.commands.driving
from tune.study.access import StudyAccess
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
    "preparation": 'pause_before(tune.commands.driving, "prepare", lambda *_: True)',
    "search": 'pause_before(StudyAccess, "push", lambda s: "step0" in s.mirror.store.names("experiments/t0000"))',
}


@pytest.mark.ray
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_paused_driver_finds_that_it_has_lost_the_study(
    cluster: Cluster, bucket: str, tmp_path: Path, moment: str
) -> None:
    """The driver is stopped by SIGSTOP until another machine has finished the study; then it writes nothing."""
    a = Machine(tmp_path / "a", cluster.endpoint, PAUSES.replace("MOMENT", MOMENTS[moment]))
    b, store = cluster.machine("b"), Store(f"{bucket}/asc/x")
    words = cluster.words(trials=2, epochs=4)
    paused = a.start(*words)
    try:
        wait_until(lambda: bool(os.waitid(os.P_PID, paused.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)), paused)
        status, output = b.run(*words)
        if status:  # the claim has not expired yet
            assert status == 2 and str(paused.pid) in output
            time.sleep(6)
            status, output = b.run(*words)
        assert status == 0, output
        before = content(store)
        os.kill(paused.pid, signal.SIGCONT)
        output, _ = paused.communicate(timeout=PATIENCE_S)
    finally:
        end(paused)
    assert paused.returncode == 2, output
    assert "taken over" in output
    assert content(store) == before
    check_log(events_of(store, tmp_path / "read"), trials=2, drivers=2 if moment == "search" else 1)


@pytest.mark.ray
@pytest.mark.parametrize("taken", [False, True])
def test_a_driver_that_loses_its_storage(cluster: Cluster, bucket: str, tmp_path: Path, taken: bool) -> None:
    """The driver continues when the storage is back, unless another machine has taken the study over."""
    line, store = Line(cluster.endpoint), Store(f"{bucket}/asc/x")
    a, b = cluster.machine("a", line.endpoint), cluster.machine("b")
    words = cluster.words(trials=2, epochs=4)
    driver = a.start(*words)
    try:
        wait_until(lambda: "step0" in store.names("experiments/t0000"), driver)
        line.cut()
        time.sleep(6)
        if taken:
            status, output = b.run(*words)
            assert status == 0, output
        before = content(store)
        line.mend()
        output, _ = driver.communicate(timeout=PATIENCE_S)
    finally:
        line.cut()
        end(driver)
    if taken:
        assert driver.returncode == 2, output
        assert "taken over" in output
        assert content(store) == before
    else:
        assert driver.returncode == 0, output
    state = StudyState()
    for event in events_of(store, tmp_path / "read"):
        state.apply(event)
    assert state.counts()["complete"] == 2
