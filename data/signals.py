"""SIGINT (Ctrl-C) and SIGTERM end a command cleanly, in each of its phases, with exit status 130.

    end_at_once()                        # first statement of a command: a signal during its imports ends it at once
    with interruptible() as interrupts:  # body of `main`: a signal raises KeyboardInterrupt, also where it was ignored
        with interrupts.storage():       # an access to a disk, share or object store, which may not answer
            ...

Shells (for background jobs of a script), nohup, cron and CI systems can start a process with SIGINT ignored, and Python
leaves it ignored. In such a process, Ctrl-C would have no effect. While a command does its work, SIGTERM would have
none either, because its handler (of `handle_signals`) raises SIGINT. So the functions here set both handlers.

Python calls a handler only between two steps of Python code. While a C function waits for a storage that does not
answer, no handler is called, and no exception ends the command. A thread of `interruptible` notices the signal all the
same, and ends the process if the command does not end in time.

This file uses only the standard library, so that a command can import it before its other imports, which take seconds.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130  # exit status after an interrupt, as in shells: 128 + SIGINT
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIMIT_S = 90.0  # time for the end of a command after a signal; tune/cluster/job_env.yaml sends SIGKILL after 120 s
STORAGE_S = 10.0  # of this, time for accesses to the storage
TICK_S = 0.1  # time between two looks at these limits


def end_at_once() -> None:
    """Let SIGINT and SIGTERM end this process at once, with one printed line and exit status 130.

    Call this function before the slow imports; `interruptible` replaces the handlers after them. An exception could not
    end the process: some imports catch it, and others print a traceback of many lines.

    At its very end, when all exit functions have run, the process ignores both signals: Python gives them their default
    action then, so that a signal would replace the exit status of a command that has done its work.

    `ray.init` would give SIGTERM a handler in C++ that prints a stack and ends the process. Ray reads the environment
    variable that prevents it when it is imported.
    """
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    atexit.register(_handle, signal.SIG_IGN)  # the first function to be registered runs last
    _handle(_end_before_work)


class Interrupts:
    """Whether a signal has arrived, and the time limits of a command after it; `interruptible` yields this object.

    An object that was created otherwise has no effect: `received` is never set, and no limit applies.
    """

    def __init__(self, limit_s: float = LIMIT_S):
        self.received = threading.Event()  # set after SIGINT or SIGTERM, whichever handler they have
        self.advice = "repeat the command"  # how to continue, for the line of a command that does not end in time
        self.own_process = False  # whether `end_at_once` was called: then this command is the whole process
        self._limit_s = limit_s
        self._accesses = 0  # number of `storage` blocks that were entered and not left
        self._over = threading.Event()

    @contextmanager
    def storage(self) -> Iterator[None]:
        """Mark the `with` block as an access to the storage. After a signal, these blocks may last `STORAGE_S` seconds
        in all; then one line is printed, and the process ends with exit status 130. Only for the main thread."""
        self._accesses += 1
        try:
            yield
        finally:
            self._accesses -= 1

    def leave(self, status: int) -> int:
        """Return `status`, and let the process exit with it without the exit functions of its libraries.

        After a use of Ray and torch, these functions and the end of Python take 2 s, and 10 s on a busy machine. A
        signal in this time could change the exit status.
        """
        if self.own_process:
            atexit.register(_leave, status)  # runs before the functions that were registered earlier
        return status

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notice the signals that arrive in the `with` block, and end the process if the block then lasts too long."""
        # the C part of Python writes the number of each signal to this pipe, even if no Python code can run
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            self._over.set()
            os.close(writing)  # ends the thread

    def _watch(self, reading: int) -> None:
        """Wait for a signal, then for the end of the `watched` block. End the process if a limit is exceeded first."""
        with os.fdopen(reading, "rb", buffering=0) as numbers:
            while not set(number := numbers.read(1)) & set(SIGNALS):
                if not number:
                    return
            self.received.set()
            began = last = time.monotonic()
            storage_s = 0.0
            while not self._over.wait(TICK_S):
                now = time.monotonic()
                storage_s, last = storage_s + (now - last if self._accesses else 0.0), now
                if storage_s > STORAGE_S:
                    self._end("the storage does not answer, so the newest changes may not be written to it")
                if now - began > self._limit_s:
                    self._end(f"the command did not end within {self._limit_s:.0f} s and was stopped")

    def _end(self, reason: str) -> NoReturn:
        try:
            os.write(1, f"interrupted; {reason}. To continue, {self.advice}\n".encode())
        finally:
            os._exit(INTERRUPTED)


@contextmanager
def interruptible(limit_s: float = LIMIT_S) -> Iterator[Interrupts]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the `with` block, even if the process was started with them
    ignored or blocked. Outside the main thread, which alone can handle signals, do nothing.

    If the block has not ended `limit_s` seconds after a signal, or if its accesses to the storage last too long
    (`Interrupts.storage`), one line is printed, and the process ends with exit status 130.

    After the block, the former handlers are restored, unless `end_at_once` was called before the block. In this case,
    a signal after the block ends the process with a line that the work is done. And if the block was interrupted, the
    process exits without running the exit functions (`atexit`) of its libraries: the one that Ray registers would crash
    if Ray was interrupted while it started. Ray's processes do not need it: they end when this process ends.
    """
    interrupts = Interrupts(limit_s)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    unraisable = sys.unraisablehook
    sys.unraisablehook = partial(_interrupt_again, threading.get_ident(), unraisable)
    interrupts.own_process = _end_before_work in before.values()
    handle_signals()
    try:
        with interrupts.watched():
            yield interrupts
    except KeyboardInterrupt:
        interrupts.leave(INTERRUPTED)
        raise
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, _end_after_work if handler is _end_before_work else handler)


def handle_signals() -> None:
    """Let SIGINT raise KeyboardInterrupt, and let SIGTERM raise SIGINT.

    So SIGTERM always calls the present handler of SIGINT. During a search this is the handler of Ray Tune, and both
    signals end the search in the same way. Call this function again after `ray.init`, which replaces the handler of
    SIGTERM.
    """
    _handle(signal.default_int_handler)
    signal.signal(signal.SIGTERM, _as_sigint)


def _handle(handler) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _interrupt_again(thread: int, former: Callable[[Any], object], unraisable: Any) -> None:
    """Interrupt the thread `thread` once more if Python has dropped a KeyboardInterrupt, as it does in `__del__`.

    All other dropped exceptions go to `former`, the hook from before.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # later, because here it would be dropped, too
        again = threading.Timer(TICK_S, signal.pthread_kill, (thread, signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        former(unraisable)


def _as_sigint(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


def _leave(status: int) -> NoReturn:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _end_before_work(number: int, frame: FrameType | None) -> NoReturn:
    # neither `print` nor an exception: the signal may come in the middle of a write, or of the import of a C library
    os.write(1, b"interrupted before the work began: repeat the command\n")
    os._exit(INTERRUPTED)


def _end_after_work(number: int, frame: FrameType | None) -> NoReturn:
    os.write(1, b"interrupted after the end of the work\n")
    os._exit(INTERRUPTED)
