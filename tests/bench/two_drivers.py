"""Test two drivers of one study in an object store with the real timeouts, if one is paused or loses its connection.

    python tests/bench/two_drivers.py                 # all cases, about 20 minutes
    python tests/bench/two_drivers.py --case search --minutes 2

Driver A runs the study. Driver B tries to start at once, and is rejected while the lease of A is valid. The cases:

    preparation      A is paused (SIGSTOP) for 2 minutes while it prepares the data; B takes over when the lease expires
    search           A is paused for 2 minutes during the search; B takes over when the lease expires
    storage          A has no connection to the store for 10 minutes, then continues; B does not try again
    storage_taken    A has no connection to the store for 10 minutes; B takes over when the lease expires

An S3 server (moto) runs on this machine. The exit status is 1 if a check fails.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import boto3
from moto.server import ThreadedMotoServer

from tests.support.machines import AS_IT_IS, SMALL, SPACE, Line, Machine, content, end, ray_nodes, wait_until
from tests.support.tau import make_tau
from trainables.outputs.storage import Store
from tune.study.events import PointMeasured
from tune.study.journal import read_events
from tune.study.lease import FRESH_S
from tune.study.state import StudyState

CASES = {"preparation": 2.0, "search": 2.0, "storage": 10.0, "storage_taken": 10.0}  # minutes
TRIALS = 3


def check(store: Store, folder: Path, drivers: int) -> Iterator[str]:
    """Yield a message for each fault of an ended study, which is read from `store` into `folder`.

    Checked: the number of complete trials, the number of drivers, and that each trial has its two points once.
    """
    shutil.rmtree(folder, ignore_errors=True)
    store.pull("journal", folder / "journal")
    state, points = StudyState(), []
    for event in read_events(folder):
        state.apply(event)
        if isinstance(event, PointMeasured):
            points.append((event.trial, event.point["step"]))
    if state.counts().get("complete") != TRIALS or state.drivers != drivers:
        yield f"{state.counts()}, {state.drivers} drivers; expected {TRIALS} complete trials, {drivers} drivers"
    if len(points) != len(set(points)) or len(points) != 2 * TRIALS:
        yield f"points {sorted(points)}; expected {2 * TRIALS} different points"
    if state.open:
        yield f"trials without an end: {[trial.name for trial in state.open]}; expected none"


def run(case: str, minutes: float, folder: Path, endpoint: str, address: str) -> list[str]:
    """Run one case, with A paused or without storage for `minutes`; return the faults found."""
    line, store = Line(endpoint), Store(f"s3://studies/{case}/x")
    a, b = Machine(folder / f"{case}-a", line.endpoint, AS_IT_IS), Machine(folder / f"{case}-b", endpoint, AS_IT_IS)
    words = ["--space", str(folder / "s.yaml"), "--name", "x", "--resume", "auto", "--storage", f"s3://studies/{case}"]
    words += ["--num-samples", str(TRIALS), "--max-concurrent", "1", "--scheduler", "fifo", "train.epochs=4"]
    words += ["--address", address, f"--dataset_dir={folder / 'tau'}", f"--cache_dir={folder / case}", *SMALL]
    driver, wrong, taken_over = a.start(*words), list[str](), case != "storage"
    try:
        if case == "preparation":
            wait_until(lambda: any(name.endswith(".alive") for name in store.names("lease")), driver)
        else:
            wait_until(lambda: "step0" in store.names("experiments/t0000"), driver)
        begun = time.monotonic()
        if case.startswith("storage"):
            line.cut()
        else:
            os.kill(driver.pid, signal.SIGSTOP)
        status, output = b.run(*words)
        if status != 2 or str(driver.pid) not in output:
            wrong.append(f"B was not rejected while A's lease is valid: {status}, {output[-500:]}")
        if taken_over:
            time.sleep(max(0.0, begun + FRESH_S + 5 - time.monotonic()))
            status, output = b.run(*words)
            if status:
                wrong.append(f"B did not take over: {status}, {output[-500:]}")
        before = content(store)
        time.sleep(max(0.0, begun + 60 * minutes - time.monotonic()))
        line.mend() if case.startswith("storage") else os.kill(driver.pid, signal.SIGCONT)
        output, _ = driver.communicate(timeout=300)
        if driver.returncode != (2 if taken_over else 0):
            wrong.append(f"A ended with {driver.returncode}: {output[-500:]}")
        if taken_over and content(store) != before:
            wrong.append("A changed the store after it had lost the lease")
        wrong += check(store, folder / "read", drivers=1 if case in ("preparation", "storage") else 2)
        last = output.strip().splitlines()[-1]
        away_s = time.monotonic() - begun
        print(f"{case}: A away for {away_s:.0f} s, last line of A: {last[:150]}; {wrong or 'no faults'}", flush=True)
    finally:
        line.cut()
        end(driver)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), help="case to run (default: all cases)")
    parser.add_argument("--minutes", type=float, help="minutes of the pause or outage of A (default: 2 or 10)")
    options = parser.parse_args()
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    boto3.client("s3").create_bucket(Bucket="studies")
    wrong = []
    with tempfile.TemporaryDirectory(prefix="two-drivers-") as made, ray_nodes() as address:
        folder = Path(made)
        (folder / "s.yaml").write_text(SPACE)
        make_tau(folder / "tau")
        for case in [options.case] if options.case else CASES:
            wrong += run(case, options.minutes or CASES[case], folder, f"http://{host}:{port}", address)
    moto.stop()
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
