"""A start of Ray that fails on this machine is tried once more; its end keeps the handlers of signals."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.machines import TOKEN
from tests.support.paths import ROOT

START = """
import io
import sys
from pathlib import Path

import ray
from rich.console import Console

from tune.ray_start import log_to_file, start_ray
from tune.study.manifest import StudyError

obstacle, mended = Path(sys.argv[1]), sys.argv[2] == "True"


class Screen(io.StringIO):
    def write(self, text):
        if "once more" in text and mended:
            obstacle.unlink()
        return sys.stdout.write(text)


log_to_file(obstacle.with_name("log"))
try:
    start_ray(None, Console(file=Screen(), width=500), obstacle.with_name("log"))
except StudyError as error:
    print("error:", error)
print("running:", ray.is_initialized())
ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("mended", [True, False])
def test_a_failed_start_is_tried_once_more(mended: bool) -> None:
    """A file is in place of Ray's temporary folder; in one case, it is deleted between the two tries."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:  # a short path: Ray's sockets are in it
        obstacle = Path(folder) / "t"
        obstacle.touch()
        done = subprocess.run(
            [sys.executable, "-c", START, str(obstacle), str(mended)],
            cwd=ROOT,
            env=os.environ | TOKEN | {"RAY_TMPDIR": str(obstacle)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr
    first, second, last = done.stdout.splitlines()
    assert "did not start" in first and str(obstacle) in first
    assert second.startswith("dashboard: " if mended else "error: ") and last == f"running: {mended}"
    assert mended or str(obstacle.with_name("log")) in second


END = """
import signal
import sys

from ray._private import node, worker
from rich.console import Console

from tune.ray_start import start_ray, stop_ray

start_ray(None, Console(), "log")
ends, end = [], node.Node.kill_all_processes


def interrupted(self, **options):
    ends.append(options)
    if sys.argv[1] == "True" and len(ends) == 1:
        signal.raise_signal(signal.SIGTERM)
    end(self, **options)


node.Node.kill_all_processes = interrupted
try:
    stop_ray()
    print("stopped")
except KeyboardInterrupt:
    print("interrupted")
print(worker._global_node)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print([bool(int(status["SigCgt"], 16) >> (number - 1) & 1) for number in (signal.SIGINT, signal.SIGTERM)])
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("during", [True, False])
def test_a_signal_during_or_after_the_end_of_ray_has_its_handler(during: bool) -> None:
    """Ray's core worker sets SIGTERM's handler to the default, which would end the process without exit status 130.

    A signal while Ray ends its processes (`during`) does not leave some of them.
    """
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        environment = os.environ | TOKEN | {"RAY_TMPDIR": folder}
        words = [sys.executable, "-c", END, str(during)]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    expected = ["interrupted" if during else "stopped", "None", "[True, True]"]
    assert done.stdout.splitlines()[-3:] == expected, done.stderr


AT_THE_END = """
from data.signals import end_at_once

end_at_once()

import os
import signal
import threading
import time

import ray
from rich.console import Console

from data.signals import interruptible
from tune.ray_start import start_ray

init = ray.init


def interrupted(*arguments, **options):
    init(*arguments, **options)
    os.kill(os.getpid(), signal.SIGTERM)  # the main thread blocks it, so another thread gets it
    time.sleep(10)


ray.init = interrupted
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
with interruptible():
    try:
        start_ray(None, Console(), "log")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
os._exit(0)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_signal_at_the_end_of_rays_start_interrupts_it(tmp_path: Path) -> None:
    """Ray's core worker gives SIGTERM a handler in C++, which printed a stack and ended the process."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        environment = os.environ | TOKEN | {"RAY_TMPDIR": folder}
        words = [sys.executable, "-c", AT_THE_END]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["interrupted"]), done.stderr
