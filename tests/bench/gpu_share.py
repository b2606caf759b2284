"""Measure the training throughput of 1, 2, 4, ... processes that train students on one GPU at the same time.

    python tests/bench/gpu_share.py                                    # profile=full; 1, 2, 4 and 8 processes
    python tests/bench/gpu_share.py --processes 1,2,4 --seconds 60 student=rep_mobile profile=full

The result shows how many trials should share a GPU. Each process runs the training steps of one trial on noise
(trainables/step_time.py): front-end, augmentation, forward, backward, optimiser. The row with the most clips per second
in total shows the best number of processes, and the value of `--gpus-per-trial` for tune/run.py (1 / processes). Memory
is the maximum that PyTorch reserved in one process.
"""

import argparse
import multiprocessing
import sys
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from trainables.config.compose import compose
from trainables.config.flags import flags_to_overrides
from trainables.config.schema import TrialConfig
from trainables.step_time import random_training


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--processes", default="1,2,4,8", help="numbers of processes to try (default: %(default)s)")
    p.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        help="seconds of training for each number of processes (default: %(default)s)",
    )
    options, words = p.parse_known_args(argv)
    if not torch.cuda.is_available():
        print("gpu_share: PyTorch found no CUDA device; expected one: run this benchmark on a machine with a GPU")
        return 2
    config = compose(["student=rep_mobile", "profile=full", *flags_to_overrides(words)])
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, batch size {config.train.batch_size}")
    table = Table(
        "processes",
        "clips/s in total",
        "clips/s per process",
        "total / one process",
        "MiB per process",
        "--gpus-per-trial",
    )
    alone = 0.0
    for n in map(int, options.processes.split(",")):
        each, memory = measure(config.flat(), n, options.seconds)
        alone = alone or sum(each) / n
        figures = f"{sum(each):,.0f}", f"{sum(each) / n:,.0f}", f"{sum(each) / alone:.2f}x", f"{memory / 2**20:,.0f}"
        table.add_row(str(n), *figures, f"{1 / n:g}")
    Console().print(table)
    return 0


def measure(flat: dict[str, Any], n: int, seconds: float) -> tuple[list[float], int]:
    """Train in `n` processes at the same time, with the flat configuration `flat`.

    Return the clips per second of each process, and the largest GPU memory of a process in bytes.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ready, results = context.Barrier(n), context.Queue()
    processes = [context.Process(target=train, args=(flat, seconds, ready, results)) for _ in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise SystemExit(
            f"gpu_share: {len(failed)} of {n} processes ended with exit status {failed}; expected 0; if the GPU has "
            "too little memory, try smaller numbers with --processes"
        )
    found = [results.get(timeout=10) for _ in range(n)]
    return [rate for rate, _ in found], max(memory for _, memory in found)


def train(flat: dict[str, Any], seconds: float, ready: Barrier, results: "Queue[tuple[float, int]]") -> None:
    """Train for `seconds` in one process; put (clips per second, reserved GPU memory in bytes) into `results`.

    Before, run 5 steps as a warm-up and wait for the other processes.
    """
    with random_training(TrialConfig.from_flat(flat)) as training:
        for _ in range(5):
            training.step()
        ready.wait(timeout=300)
        started, clips = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            clips += training.step()
        rate = clips / (time.perf_counter() - started)
    results.put((rate, torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0))


if __name__ == "__main__":
    sys.exit(main())
