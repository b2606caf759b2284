"""SIGINT (Ctrl-C) and SIGTERM end a command cleanly, in each of its phases, with exit status 130.

    end_at_once()                        # first statement of a command: a signal during its imports ends it at once
    with interruptible():                # body of `main`: a signal raises KeyboardInterrupt, also where it was ignored
        ...

Shells (for background jobs of a script), nohup, cron and CI systems can start a process with SIGINT ignored, and Python
leaves it ignored. In such a process, Ctrl-C would have no effect. While a command does its work, SIGTERM would have
none either, because its handler (of `handle_signals`) raises SIGINT. So the functions here set both handlers.

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
    """Let SIGINT and SIGTERM end this process at once, with one printed line and exit status 130.

    Call this function before the slow imports; `interruptible` replaces the handlers after them. An exception could not
    end the process: some imports catch it, and others print a traceback of many lines.
    """
    _handle(_end_before_work)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the `with` block, even if the process was started with them
    ignored or blocked. Outside the main thread, which alone can handle signals, do nothing.

    After the block, the former handlers are restored, unless `end_at_once` was called before the block. In this case,
    a signal after the block ends the process without a message. And if the block was interrupted, the process exits
    without running the exit functions (`atexit`) of its libraries: the one that Ray registers would crash if Ray was
    interrupted while it started. Ray's processes do not need it: they end when this process ends.
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
