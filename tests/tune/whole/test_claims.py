"""Claims, which decide which of several drivers owns a study in an object store."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import tune.study.lease
from tests.support.machines import Machine, end
from tests.support.paths import ROOT
from tests.support.tune.mirrored import drive
from trainables.outputs.storage import Store
from tune.study.access import open_study
from tune.study.lease import StoreLease, StudyLost, find_claim
from tune.study.manifest import StudyError
from tune.study.store import working_folder

pytestmark = pytest.mark.slow  # starts an S3 server


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
    """The paused driver found no claim; another driver has claimed the study with the same number since."""
    first, second = (StoreLease(Store(f"{bucket}/x")) for _ in range(2))
    monkeypatch.setattr(first, "_write", lambda ending, write=first._write: (second_acquires(), write(ending)))

    def second_acquires() -> None:
        if not second.generation:
            second.acquire(settle_s=0)
            time.sleep(1.1)  # times in the store have a resolution of 1 s

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
    with open_study(tmp_path / "x", f"{bucket}/x") as access:
        access.push(last=True)
        Store(bucket).delete("x")
        (tmp_path / "x" / "study.json").write_text("")
        with pytest.raises(StudyLost):
            access.push(last=True)
    assert store.names("") == []


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
    with open_study(folder, uri) as access:
        assert access.generation == 1
        with pytest.raises(StudyError, match=str(os.getpid())), open_study(folder, uri):
            pass
        with pytest.raises(StudyError, match=str(os.getpid())), open_study(tmp_path / "other-machine" / "x", uri):
            pass
        assert open_claim(uri)
    assert not open_claim(uri)


def open_claim(uri: str) -> bool:
    found = find_claim(Store(uri))
    return found is not None and found.alive
