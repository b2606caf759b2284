"""Say in one line why a worker of Ray or a search failed. The tracebacks are in the log file of the study.

    reason_of(error)     # of an exception that ended the search
    crash_of(trial)      # of a trial of Ray Tune, from the text file that Ray wrote

Ray describes a failure by a text of 10 to 60 lines: a traceback with the exception of the worker at its end, or a
report about a worker that was killed, whose last lines are links to Ray's documentation.
"""

import re
from pathlib import Path

from ray.tune.experiment import Trial

from trainables.engine.device import HOST_REMEDY, out_of_memory

_ATTEMPT = re.compile(r"^Failure # \d+ \(occurred at .*\)$", re.MULTILINE)  # Ray's heading of each failure of a trial
_FRAME = re.compile(r"^  File \".*\", line \d+", re.MULTILINE)
_FULL = re.compile(r"[\w.]*MemoryError\b|.*can't allocate memory|.*low on memory")  # of Python, NumPy, PyTorch, Ray
_USED = re.compile(r"was ([\d.]+ ?[KMGT]?B (?:used )?/ [\d.]+ ?[KMGT]?B)")  # in Ray's report on a full memory


def reason_of(error: BaseException) -> str:
    """Return the reason of `error` in one line; the name of its class if it has no message."""
    return out_of_memory(error) or short_reason(str(error)) or type(error).__name__


def crash_of(trial: Trial) -> str:
    """Return why `trial` failed the last time in one line, from the error file that Ray wrote for it."""
    if trial.error_file and Path(trial.error_file).is_file():
        return short_reason(Path(trial.error_file).read_text(errors="replace")) or "unknown error"
    return "unknown error"


def short_reason(text: str) -> str:
    """Return the reason of a failure in one line, from the `text` with which Ray describes it.

    If `text` has several failures of a trial, the reason is that of the last one. For a traceback, it is the exception
    and the first line of its message. A full memory and a worker that died are named as such.
    """
    text = _ATTEMPT.split(text)[-1].strip()
    frames = list(_FRAME.finditer(text))
    lines = text[frames[-1].start() if frames else 0 :].splitlines()
    first = next((line for line in lines if line.strip() and not line.startswith(" ")), "")  # below the last frame
    if "CUDA out of memory" in first:
        return f"out of GPU memory: {first}"
    if _FULL.match(first):
        used = _USED.search(text)
        detail = f"{used[1]}, and Ray killed the worker" if used else first
        return f"out of memory: {detail}. {HOST_REMEDY}"
    if "worker process has died" in text or "crashed unexpectedly" in text:
        return (
            "the worker process died without a message: it was killed (by a person, or because the memory of its "
            "machine was full), or it crashed in a library"
        )
    if "node has died" in text or "node died" in text:
        return "the machine of the worker was lost"
    return first
