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
import os, signal, sys, time
from data.signals import *
end_at_once()
where = sys.argv[1]
def wait(name):
    if where == name:
        print(name, flush=True)
        time.sleep(60)
wait("before")
status = 0
try:
    with interruptible():
        if where == "ray":  # as Ray Tune does during a search
            signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
        wait("ray")
        if where == "init":  # as ray.init does
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
            handle_signals()
        wait("init")
        wait("work")
except KeyboardInterrupt:
    print("in order", flush=True)
    wait("work")  # a second signal, while the first one is handled
    status = INTERRUPTED
wait("after")
sys.exit(status)
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
        ("ray", "", 7),
        ("after", "", INTERRUPTED),
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


def test_the_handlers_of_before_are_restored_and_other_threads_do_nothing() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    seen: list[object] = []
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        thread = threading.Thread(target=lambda: seen.append(interruptible().__enter__()))
        thread.start()
        thread.join()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in BOTH] == before and seen == [None]
