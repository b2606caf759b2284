"""Reasons of failures in one line, from the texts that Ray 2.60 writes."""

import numpy as np
import pytest
import torch

from tests.support.tune.ray_search import trial
from tune.search.failures import crash_of, reason_of, short_reason

HEADING = "Failure # {} (occurred at 2026-11-27_20-21-46)\n"
TASK_ERROR = """\x1b[36mray::T.train()\x1b[39m (pid=26466, ip=192.0.2.2, repr=<oom.T object at 0x7f55b6a9f310>)
           ^^^^^^^^^^^^^^^^^^
  File "/lib/ray/tune/trainable/trainable.py", line 326, in train
    result = self.step()
             ^^^^^^^^^^^
  File "/tmp/oom.py", line 13, in step
    raise error
{0}
"""
WORKER_DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: T
\tactor_id: e1338bcc1e8cb788c94b211d01000000
\tip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly.
"""
LOW_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (ID: 88d8) was \
23.1GB used / 23.54GB limit (0.981312)
Ray killed 1 worker(s) based on the killing policy
Top 10 memory users: PID	MEM(GB)	COMMAND
25522	0.52	python x.py
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/
"""


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (TASK_ERROR.format("ValueError: first line\nsecond line: more"), ("ValueError: first line",)),
        (TASK_ERROR.format("OSError: [Errno 28] No space left on device"), ("OSError: [Errno 28]",)),
        (TASK_ERROR.format("torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"), ("out of GPU memory", "2 GiB")),
        (TASK_ERROR.format("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9 GiB"), ("out of memory",)),
        (TASK_ERROR.format("ValueError: MemoryError is a word"), ("ValueError: MemoryError",)),
        (LOW_MEMORY, ("out of memory", "23.1GB used / 23.54GB")),
        (WORKER_DIED, ("worker process died",)),
        ("The actor died because its node has died. Node Id: 7\n\tits raylet crashed", ("machine of the worker",)),
        ("", ("",)),
    ],
)
def test_the_reason_is_one_line(text, parts):
    reason = short_reason(text)
    assert all(part in reason for part in parts) and "\n" not in reason
    assert "docs.ray.io" not in reason and "second line" not in reason


def test_the_reason_of_a_trial_is_that_of_its_last_failure(tmp_path):
    failed = trial("t0000")
    assert crash_of(failed) == "unknown error"
    failed.error_file = str(tmp_path / "error.txt")
    (tmp_path / "error.txt").write_text(
        HEADING.format(1) + LOW_MEMORY + HEADING.format(2) + TASK_ERROR.format("KeyError: 'x'")
    )
    assert crash_of(failed) == "KeyError: 'x'"


def test_a_full_memory_is_named():
    with pytest.raises(MemoryError) as full:
        np.empty(2**60, np.int8)
    assert reason_of(full.value).startswith("out of memory: Unable to allocate 1.00 EiB")
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**60, dtype=torch.int8)
    assert reason_of(full.value).startswith("out of memory: ")
    assert reason_of(torch.OutOfMemoryError("CUDA out of memory. Tried")).startswith("out of GPU memory: CUDA")
    assert reason_of(RuntimeError(LOW_MEMORY)).startswith("out of memory: 23.1GB")
    assert reason_of(AssertionError()) == "AssertionError"
