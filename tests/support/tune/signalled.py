"""Commands in new processes that were started with SIGINT ignored, and the moment at which they handle SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.support.machines import PATIENCE_S
from tests.support.paths import ROOT


def started(
    words: list[str],
    ignored: bool = True,
    output: Any = subprocess.PIPE,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[str]:
    """Start `python WORDS` in this checkout; with `ignored`, SIGINT is ignored at its start, else at its default.

    Its output goes to `output`, a file or a pipe. `environment` has further environment variables.
    """
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **environment},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )


def wait_for_handler(process: subprocess.Popen, limit_s: float = PATIENCE_S) -> None:
    """Wait until `process` has a handler of SIGTERM."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        if int(fields["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)
    raise AssertionError(f"process {process.pid} has no handler of SIGTERM after {limit_s} s")
