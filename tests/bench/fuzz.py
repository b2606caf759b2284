"""Read thousands of damaged inputs, and report each traceback, hang, large allocation and file outside the storage.

    python tests/bench/fuzz.py --inputs 2000 --seed 0        # 3 to 10 minutes
    python tests/bench/fuzz.py --only space --first 17 --inputs 1 --show    # one input again, with its traceback

The inputs are flags, search spaces, plan files, csv files, sound files, journals, manifests and checkpoints, made by
tests/support/fuzz/targets.py, and the folders of a store, leases, waveform caches, states of trials, shared dense
phases, cached logits, seals and forms of YAML, made by study_targets.py in the same folder. Input number i follows from
the seed and i alone. A worker process reads the inputs one after another, with a limit on its memory; a new one
replaces it if it hangs or dies. A change of a file outside the temporary folder is prevented and reported. The exit
status is 1 if a fault was found.
"""

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

MEMORY_BYTES = 1_500_000_000  # beyond what the worker has before the first input
PATIENCE_S = 20.0  # for one input


@dataclass(frozen=True)
class Fault:
    """An input that was not answered by one of the project's own errors."""

    target: str
    number: int
    kind: str  # traceback, memory, hang, died, several lines, file outside
    detail: str


def faults(
    n_inputs: int, seed: int, first: int = 0, only: str | None = None, seconds: float = 600.0
) -> Iterator[Fault]:
    """Yield the faults among the inputs `first` to `first` + `n_inputs` - 1; stop after `seconds` seconds."""
    until = time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="asc-tune-fuzz-") as name:
        process = None
        for number in range(first, first + n_inputs):
            if time.monotonic() > until:
                print(f"stopped after {seconds:.0f} s, before input {number}", flush=True)
                break
            if process is None:
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, Path(name), seed, only), daemon=True)
                process.start()
                theirs.close()
                assert ours.poll(300) and ours.recv() == "ready", "the worker did not start"
            ours.send(number)
            try:
                found = ours.recv() if ours.poll(PATIENCE_S) else Fault("?", number, "hang", f"over {PATIENCE_S:g} s")
            except EOFError:
                process.join()
                found = Fault("?", number, "died", f"exit code {process.exitcode}")
            if isinstance(found, Fault):
                yield found
                if found.kind in ("hang", "died"):
                    process.kill()
                    process.join()
                    process = None
        if process:
            process.kill()
            process.join()


def work(pipe: Connection, place: Path, seed: int, only: str | None) -> None:
    """Read the inputs whose numbers arrive in `pipe`; send a Fault or None for each."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    temporary = place / "temporary"
    temporary.mkdir(exist_ok=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TMPDIR": str(temporary)}
    tempfile.tempdir = None  # read TMPDIR again
    import torch  # here, because only the worker needs what these import

    from tests.support.fuzz import study_targets
    from tests.support.fuzz import targets as fuzz_targets
    from tests.support.fuzz.guard import guard

    torch.set_num_threads(1)
    corpus = place / "corpus"
    if not corpus.is_dir():
        corpus.mkdir()
        fuzz_targets.build_corpus(corpus)
        study_targets.build_study_corpus(corpus)
    targets = [t for t in (*fuzz_targets.TARGETS, *study_targets.TARGETS) if only in (None, t.name)]
    for target in targets:  # what the readers import and cache does not count as memory of an input
        for number in range(2):
            _one(target, random.Random(number), corpus, place / "warm", Counter())
    limit = _memory_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    written = guard(place)
    pipe.send("ready")
    while True:
        number = pipe.recv()
        rng = random.Random(f"{seed} {number}")
        target = targets[number % len(targets)]
        kind, detail = _one(target, rng, corpus, place / "input", written)
        pipe.send(Fault(target.name, number, kind, detail) if kind else None)


def _one(target, rng: random.Random, corpus: Path, folder: Path, written: Counter[str]) -> tuple[str, str]:
    """Read one input of `target` in the new folder `folder`; return (kind of fault, detail), both "" if it is right."""
    outside = folder.with_name("outside")  # links of an input lead here; also native code must not write to it
    for place in (folder, outside):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    (outside / "file").write_text("content")
    written.clear()
    chain: list[BaseException] = []
    try:
        target.read(rng, corpus, folder)
    except Exception as error:
        cause: BaseException | None = error
        while cause and len(chain) < 20:
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
    if [(p.name, p.read_text()) for p in outside.iterdir()] != [("file", "content")]:
        written[str(outside)] += 1
    if written:
        return "file outside", ", ".join(written)
    if any(isinstance(e, MemoryError) or "allocate memory" in str(e) for e in chain):
        return "memory", "".join(traceback.format_exception(chain[0]))
    if chain and not isinstance(chain[0], target.errors):
        return "traceback", "".join(traceback.format_exception(chain[0]))
    if chain and "\n" in str(chain[0]).strip():
        return "several lines", str(chain[0])
    return "", ""


def _memory_bytes() -> int:
    """Return the size of the address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--inputs", type=int, default=2000, help="number of inputs (default: %(default)s)")
    p.add_argument("--first", type=int, default=0, help="number of the first input (default: 0)")
    p.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    p.add_argument("--only", help="kind of input, such as space (default: all kinds in turn)")
    p.add_argument("--minutes", type=float, default=10.0, help="stop after this time (default: %(default)s)")
    p.add_argument("--show", action="store_true", help="show the tracebacks, not only their last lines")
    options = p.parse_args(argv)
    counts, began = Counter[str](), time.monotonic()
    for fault in faults(options.inputs, options.seed, options.first, options.only, options.minutes * 60):
        counts[fault.kind] += 1
        detail = fault.detail if options.show else " | ".join(fault.detail.strip().splitlines()[-3:])[-400:]
        print(f"{fault.kind}: input {fault.number} ({fault.target}): {detail}", flush=True)
    found = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "no fault"
    print(f"{options.inputs} inputs, seed {options.seed}, {time.monotonic() - began:.0f} s: {found}")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main())
