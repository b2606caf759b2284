"""One process of tests/bench/throughput.py: it measures one training loop when the benchmark asks for it.

The arguments are one JSON object: `loop` (baseline or product), `root`, `student`, `n_train`, `n_validation`, `batch`,
`kd`, `workers`. For each line on standard input, it runs what the line names (train, validate, floor, stages), and
writes one line of JSON: the CPU seconds of this process and its children, or of each stage. What libraries print goes
to standard error.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its running children."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # time in user mode and in the kernel
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    """Return the largest memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def build(options: dict[str, Any]) -> Any:
    """Return the training loop that `options` describe."""
    root, n_train, n_validation = Path(options["root"]), options["n_train"], options["n_validation"]
    student, batch, kd = options["student"], options["batch"], options["kd"]
    if options["loop"] == "product":
        import product_loop

        return product_loop.build(root, student, n_train, n_validation, batch, kd)
    import baseline_loop
    import clips
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    train, validation = clips.files(root, "train", n_train), clips.files(root, "validation", n_validation)
    parts = [
        baseline_loop.WavFiles(root, f.names, f.labels.tolist(), f.devices.tolist(), roll)
        for f, roll in ((train, True), (validation, False))
    ]
    teacher = dict(zip(train.names, train.teacher, strict=True)) if kd else None
    return baseline_loop.BaselineLoop(student, parts[0], parts[1], batch, options["workers"], teacher)


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    loop = build(json.loads(sys.argv[1]))
    actions = {"train": "train_epoch", "validate": "validate", "floor": "forward_backward", "stages": "stages"}
    for line in sys.stdin:
        before = cpu_seconds()
        result = getattr(loop, actions[line.strip()])()
        seconds = cpu_seconds() - before
        found = result if line.strip() == "stages" else seconds
        answers.write(json.dumps({"result": found, "peak_bytes": peak_bytes()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
