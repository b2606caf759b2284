"""Send SIGTERM or SIGINT at random moments to the commands of a study; check that each ends in order and is resumable.

    python tests/bench/signals.py                  # 40 signals, about 25 minutes on 2 cores
    python tests/bench/signals.py --signals 4 --seed 1

Each round makes a study in a new folder: tune/run.py is interrupted at random moments of its run time, with the same
command after each signal, until it ends by itself; then analysis/report.py and tune/evaluate.py in the same way. Half
of the commands are started with SIGINT ignored, as nohup, cron and CI systems start them. After each signal:

    the exit status is 130 within 25 s, and the output has a line that begins with "interrupted" and no traceback
    no process of the command is left after further 20 s
    the storage has no temporary file, and each file that was written in JSON or as a journal can be read

The exit status is 1 if a check fails.
"""

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.machines import processes_with
from tests.support.tau import make_tau
from tests.support.tune.signalled import started, wait_for_handler
from tune.study.journal import read_state

LIMIT_S = 25.0  # for the end of a command after its signal: Ray gives a busy trial 10 s and its own processes 5 s
LEFT_S = 20.0  # for the end of Ray's agents, which look about every 10 s whether their node's process has ended
MARK = "ASC_TUNE_BENCH"  # environment variable that all processes of a command inherit
SETTINGS = (
    *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
    *("train.epochs=4", "train.batch_size=16", "prune.epochs=1", "teacher.train.epochs=1"),
    *("teacher.model.hidden_size=32", "teacher.model.layers=1", "teacher.model.heads=2"),
)


def damaged(storage: Path) -> Iterator[str]:
    """Yield a message for each temporary file in `storage`, and for each JSON file or journal that cannot be read."""
    for path in storage.rglob("*"):
        if path.suffix in (".tmp", ".old") and "ray" not in path.parts:
            yield f"{path} is a temporary file"
        if path.name in ("study.json", "info.json"):
            json.loads(path.read_text())
    for manifest in storage.glob("*/study.json"):
        read_state(manifest.parent)


class Bench:
    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng, self.faults, self.sent = folder, rng, list[str](), Counter[str]()
        self.dataset = make_tau(folder / "TAU-urban-acoustic-scenes-2022-mobile-development")
        self.slowest_s = 0.0

    def run(self, storage: Path, words: list[str], delay_s: float | None) -> tuple[int, float]:
        """Run a command and send a signal `delay_s` seconds after it handles signals (None: never).

        Return its exit status and run time. Messages about failed checks are added to `faults`.
        """
        mark, ignored = secrets.token_hex(8), self.rng.random() < 0.5
        number = self.rng.choice([signal.SIGTERM, signal.SIGINT])
        os.environ[MARK] = mark
        began = time.monotonic()
        with tempfile.TemporaryFile("w+") as output:
            process = started(words, ignored, output)
            wait_for_handler(process)
            try:
                if process.wait(delay_s):
                    output.seek(0)
                    self.faults.append(f"{words[0]}, without a signal: {output.read()[-3000:]}")
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                began_end = time.monotonic()
                try:
                    process.wait(LIMIT_S)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGABRT)  # prints the stack, see `started`
                    process.wait()
                took = time.monotonic() - began_end
                output.seek(0)
                self._check(storage, words, process, output.read(), f"{number.name} ({ignored=}) at {delay_s:.1f} s")
                self.slowest_s = max(self.slowest_s, took)
                self.sent[words[0]] += 1
                print(f"{words[0]} {number.name} {ignored=} at {delay_s:.1f} s: ended after {took:.1f} s", flush=True)
        until = time.monotonic() + LEFT_S
        while (rest := processes_with(f"{MARK}={mark}")) and time.monotonic() < until:
            time.sleep(0.2)
        if rest:
            names = [
                Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200] for number in rest
            ]
            self.faults.append(f"{words[0]}, exit status {process.returncode}: these processes are left: {names}")
        return process.returncode, time.monotonic() - began

    def _check(self, storage: Path, words: list[str], process: subprocess.Popen, text: str, what: str) -> None:
        wrong = list(damaged(storage)) if storage.exists() else []
        if process.returncode not in (0, 130):  # 0: the signal came after the end of the work
            wrong.append(f"exit status {process.returncode}")
        if process.returncode == 130 and "interrupted" not in text and "complete already" not in text:
            wrong.append("no line says how to continue")
        if "Traceback" in text:
            wrong.append("a traceback")
        self.faults += [f"{words[0]} {what}: {message}:\n{text[-3000:]}" for message in wrong]

    def round(self, number: int, signals: int) -> None:
        """Make one study; interrupt its commands until `signals` signals were sent in all."""
        storage = self.folder / f"runs{number}"
        words = ["tune/run.py", "--space", "kd_prune", "--name", "x", "--storage", str(storage), "--num-samples", "2"]
        words += ["--resume", "auto", f"--dataset_dir={self.dataset}", *SETTINGS]
        study = str(storage / "x")
        for command, length_s in (
            (words, 60.0),
            (["analysis/report.py", study], 6.0),
            (["tune/evaluate.py", study], 15.0),
        ):
            interrupts = 0
            while True:
                delay_s = self.rng.uniform(0, length_s) if self.sent.total() < signals and interrupts < 5 else None
                status, _ = self.run(storage, command, delay_s)
                interrupts += 1
                if status == 0:
                    break
                if status != 130:
                    self.faults.append(f"{command[0]} ended with exit status {status}")
                    return
        if not (storage / "x" / "test.csv").exists():
            self.faults.append(f"{study} has no test.csv")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=40, help="number of signals (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench, rounds = Bench(Path(folder), random.Random(options.seed)), 0
        while bench.sent.total() < options.signals and not bench.faults:
            bench.round(rounds, options.signals)
            rounds += 1
    print(f"{bench.sent.total()} signals {dict(bench.sent)} in {rounds} studies; slowest end {bench.slowest_s:.1f} s")
    print("\n".join(bench.faults) or "no faults")
    return 1 if bench.faults else 0


if __name__ == "__main__":
    sys.exit(main())
