"""SIGINT and SIGTERM in real processes, which were started with the signals at their default, ignored or blocked."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from data.signals import INTERRUPTED, interruptible
from tests.support.machines import PATIENCE_S
from tests.support.paths import ROOT

BOTH = (signal.SIGINT, signal.SIGTERM)
PROGRAM = """
import atexit, os, signal, sys, time
from data.signals import *
end_at_once()
where = sys.argv[1]
def wait(name):
    if where == name:
        print(name, flush=True)
        time.sleep(60)
class Deleted:
    def __del__(self):  # Python drops an exception here
        wait("delete")
class Last:  # Python deletes this object after the exit functions
    def __del__(self, write=os.write, sleep=time.sleep, where=where):
        if where == "last":
            write(1, b"last\\n")
            sleep(2)
last = Last()
wait("before")
status = 0
try:
    with interruptible() as interrupts:
        if where == "ray":  # as Ray Tune does during a search
            signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
        wait("ray")
        if where == "init":  # as ray.init does
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
            handle_signals()
        wait("init")
        wait("work")
        if where == "delete":
            Deleted()
            time.sleep(60)
        if where == "end":  # as libraries whose exit functions take long
            atexit.register(print, "exit function", flush=True)
            interrupts.leave(3)
except KeyboardInterrupt:
    print("in order", flush=True)
    wait("work")  # a second signal, while the first one is handled
    status = INTERRUPTED
wait("after")
sys.exit(status)
"""

# a C function that never returns, as a read from a storage that does not answer: Python calls no handler meanwhile
BLOCKED = """
import ctypes, signal, sys
from contextlib import nullcontext
from data import signals
limit_s, signals.STORAGE_S, at_storage = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "storage"
with signals.interruptible(limit_s) as interrupts:
    interrupts.advice = "type something"
    signal.signal(signal.SIGINT, lambda *_: None)  # as Ray Tune during a search; so it may come before the call below
    print("blocked", flush=True)
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    with interrupts.storage() if at_storage else nullcontext():
        lock(mutex), lock(mutex)
"""


def default() -> None:
    for number in BOTH:
        signal.signal(number, signal.SIG_DFL)


def ignored() -> None:
    for number in BOTH:
        signal.signal(number, signal.SIG_IGN)


def blocked() -> None:
    default()
    signal.pthread_sigmask(signal.SIG_BLOCK, BOTH)


@pytest.mark.slow
@pytest.mark.parametrize("inherited", [default, ignored, blocked])
@pytest.mark.parametrize("sent", BOTH)
@pytest.mark.parametrize(
    ("where", "printed", "status"),
    [
        ("before", "repeat the command\n", INTERRUPTED),
        ("work", "", INTERRUPTED),
        ("init", "in order\n", INTERRUPTED),
        ("delete", "in order\n", INTERRUPTED),
        ("ray", "", 7),
        ("after", "the work\n", INTERRUPTED),
        ("last", "", 0),
    ],
)
def test_a_signal_ends_a_command_in_each_phase(
    where: str, printed: str, status: int, sent: signal.Signals, inherited: Callable[[], None]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, where],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=inherited,
    )
    assert process.stdout and process.stdout.readline() == f"{where}\n"
    process.send_signal(sent)
    if where == "work":
        assert process.stdout.readline() == "in order\n" and process.stdout.readline() == "work\n"
        process.send_signal(sent)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status
    assert output.endswith(printed) and "Traceback" not in output


def test_a_command_leaves_with_its_status_without_the_exit_functions() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "end"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (3, "")


def test_the_handlers_of_before_are_restored_and_other_threads_do_nothing() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    seen: list[object] = []

    def other() -> None:
        with interruptible():
            seen.extend(signal.getsignal(number) for number in BOTH)

    with interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        inside = [signal.getsignal(number) for number in BOTH]
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in BOTH] == before and seen == inside


@pytest.mark.parametrize("sent", BOTH)
@pytest.mark.parametrize(
    ("limit_s", "storage_s", "where", "reason"),
    [(1e9, 0.3, "storage", "storage does not answer"), (0.3, 1e9, "storage", "0 s"), (0.3, 0.0, "elsewhere", "0 s")],
)
def test_a_signal_ends_a_command_that_python_cannot_interrupt(
    limit_s: float, storage_s: float, where: str, reason: str, sent: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, f"{limit_s}", f"{storage_s}", where],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=ignored,
    )
    assert process.stdout and process.stdout.readline() == "blocked\n"
    process.send_signal(sent)
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED
    assert output.startswith("interrupted; ") and reason in output and output.endswith("type something\n")


def test_a_signal_is_noticed_whoever_handles_it_and_no_other_signal_is() -> None:
    with interruptible() as interrupts:
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.raise_signal(signal.SIGUSR1)
        assert not interrupts.received.wait(0.1)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.received.wait(PATIENCE_S)
        signal.signal(signal.SIGUSR1, before)
    with interruptible() as interrupts:
        assert not interrupts.received.wait(0.1)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_command_that_ends_in_time_is_not_ended() -> None:
    with interruptible(1e9) as interrupts:
        (watching,) = [thread for thread in threading.enumerate() if thread.name == "signals"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.received.wait(PATIENCE_S)
    watching.join(PATIENCE_S)
    assert not watching.is_alive()
