"""SIGINT (Ctrl-C) and SIGTERM end a command in order, in each of its phases, with exit status 130.

    end_at_once()                        # first statement of a command: a signal during its imports ends it at once
    with interruptible():                # body of `main`: a signal raises KeyboardInterrupt, also where it was ignored
        ...

Shells (for background jobs of a script), nohup, cron and CI systems can start a process with SIGINT ignored, and Python
leaves it ignored. In such a process, Ctrl-C would have no effect, nor would SIGTERM if its handler passes it on as
SIGINT, as that of `handle_signals` does. The functions of this file therefore set the handlers of both signals.

This file uses only the standard library, so that a command can import it before its other imports, which take seconds.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # exit status after an interrupt, as in shells: 128 + SIGINT
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_at_once() -> None:
    """Let SIGINT and SIGTERM end this process with one line and exit status 130, for the time of its imports.

    An exception could not do so: some imports catch it, and others print a traceback of many lines.
    """
    _handle(_end_before_work)


@contextmanager
def interruptible() -> Iterator[None]:
    """In the `with` block, let SIGINT and SIGTERM raise KeyboardInterrupt, even if the process was started with them
    ignored or blocked. Outside the main thread, which alone can handle signals, do nothing.

    After the block, the former handlers are restored. Two things differ if `end_at_once` was called before the block:
    after the block, a signal ends the process without a message; and if the block was interrupted, the process exits
    without the exit functions (`atexit`) of its libraries, because Ray's function crashes if the start of Ray was
    interrupted. Ray's processes need no such function: they end when this process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handle_signals()
    try:
        yield
    except KeyboardInterrupt:
        if _end_before_work in before.values():
            atexit.register(_leave)  # runs before the functions that were registered earlier
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, _end_after_work if handler is _end_before_work else handler)


def handle_signals() -> None:
    """Let SIGINT raise KeyboardInterrupt, and let SIGTERM do what SIGINT does at that moment: Ray Tune replaces the
    handler of SIGINT during a search.

    Call this function again after `ray.init`, which replaces the handler of SIGTERM.
    """
    _handle(signal.default_int_handler)
    signal.signal(signal.SIGTERM, _as_sigint)


def _handle(handler) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _as_sigint(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


def _leave() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _end_before_work(number: int, frame: FrameType | None) -> NoReturn:
    # neither `print` nor an exception: the signal may come in the middle of a write, or of the import of a C library
    os.write(1, b"interrupted before the work began: repeat the command\n")
    os._exit(INTERRUPTED)


def _end_after_work(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(INTERRUPTED)
