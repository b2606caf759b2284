"""Measure the CPU time of training and validation: asc-tune against the DCASE 2024 baseline's loop, and by stage.

    python tests/bench/throughput.py                                       # everything; about an hour
    python tests/bench/throughput.py --student cp_mobile --batch 256 --kd on --workers 0 --rounds 3
    python tests/bench/throughput.py --against /tmp/older --workers none   # two versions of asc-tune, without baseline

The loops:

    asc-tune            training and validation of this checkout, from its waveform cache
    asc-tune (other)    the same of the checkout in the folder --against
    baseline, N workers the baseline's loop, written again in tests/bench/speed/baseline_loop.py, with N DataLoader
                        workers

Each loop runs in its own process, with one thread. In each round, the loops train and validate one after another, so
that other load on the machine affects all of them alike. Times are CPU times (with those of DataLoader workers): the
median over the rounds, in ms per clip. An epoch is the training on 80 % and the validation on 20 % of the clips, which
is how asc-tune divides a data set. `floor` is the network's forward and backward pass alone. Ratios between loops are
medians of the ratios in each round.

The tables are printed as Markdown. With all times, they are also written to the JSON file --out.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.speed import clips

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "speed" / "worker.py"
STUDENTS = ("cp_mobile", "rep_mobile")
OURS, OTHER = "asc-tune", "asc-tune (other)"
TRAINED, VALIDATED = 0.8, 0.2  # shares of the clips of an epoch


@dataclass(frozen=True)
class Case:
    """What is measured together: a student, a batch size in clips, with or without knowledge distillation."""

    student: str
    batch: int
    kd: bool
    least: int  # least number of clips in each part: small batches are measured over several steps

    @property
    def n_train(self) -> int:
        return self.batch * -(-self.least // self.batch)

    @property
    def n_validation(self) -> int:
        return max(self.least, self.n_train // 4)


class Worker:
    """A process that runs one training loop (tests/bench/speed/worker.py)."""

    def __init__(self, checkout: Path, options: dict[str, Any]):
        path = os.pathsep.join([str(checkout), str(WORKER.parent)])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(options)],
            env=environment,
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.peak_bytes = 0

    def run(self, action: str) -> Any:
        """Return the CPU seconds of `action`: train, validate or floor; for stages, the CPU seconds of each stage."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(action + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(
                f"throughput: the process of a training loop ended with exit status {self._process.wait()}; expected "
                "its times: correct the error above, or give a checkout of a recent version to --against"
            )
        found = json.loads(answer)
        self.peak_bytes = found["peak_bytes"]
        return found["result"]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    results = []
    with tempfile.TemporaryDirectory(prefix="asc-tune-") as folder:
        cases = [
            Case(s, b, kd == "on", options.clips) for s in options.student for b in options.batch for kd in options.kd
        ]
        for part, n in (("train", max(c.n_train for c in cases)), ("validation", max(c.n_validation for c in cases))):
            clips.write(clips.files(Path(folder), part, n))
        for case in cases:
            results.append(measured(case, options, Path(folder)))
            print(f"{title(case)}: {options.rounds} rounds done", file=sys.stderr)
    text = "\n\n".join([loops_table(results), stages_table(results)])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    options.out.write_text(json.dumps({"machine": machine, "cases": results, "markdown": text}, indent=1))
    print(text)
    print(f"\nwritten to {options.out}", file=sys.stderr)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    def listed(kind: type, choices: tuple = ()) -> Any:
        def convert(text: str) -> list:
            try:
                values = [kind(value) for value in text.split(",")]
            except ValueError:
                raise argparse.ArgumentTypeError(f"{text!r}: expected numbers, separated by commas") from None
            if choices and set(values) - set(choices):
                raise argparse.ArgumentTypeError(f"{text!r}: expected {', '.join(choices)}, separated by commas")
            if kind is int and min(values) < 0:
                raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of 0 or more")
            return values

        return convert

    def workers(text: str) -> list[int]:
        return [] if text == "none" else listed(int)(text)

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=7, help="number of measured rounds (default: %(default)s)")
    p.add_argument("--batch", type=listed(int), default=[32, 64, 256], help="batch sizes in clips (default: 32,64,256)")
    p.add_argument(
        "--student", type=listed(str, STUDENTS), default=list(STUDENTS), help="default: cp_mobile,rep_mobile"
    )
    p.add_argument(
        "--kd",
        type=listed(str, ("on", "off")),
        default=["on", "off"],
        help="with and without the distillation of cached teacher logits (default: on,off)",
    )
    p.add_argument(
        "--workers",
        type=workers,
        default=[0, 2],
        help="numbers of the baseline's DataLoader workers; none: leave the baseline out (default: 0,2)",
    )
    p.add_argument(
        "--clips", type=int, default=128, help="least number of clips that a loop trains on (default: %(default)s)"
    )
    p.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout of asc-tune to compare with")
    p.add_argument("--out", type=Path, default=Path("runs/throughput.json"), help="file (default: %(default)s)")
    options = p.parse_args(argv)
    for name in ("rounds", "clips"):
        if getattr(options, name) < 1:
            p.error(f"--{name} {getattr(options, name)}: expected 1 or more")
    if min(options.batch) < 2:
        p.error(f"--batch {min(options.batch)}: expected 2 or more, because of batch normalisation")
    if options.against and not (options.against / "trainables").is_dir():
        p.error(f"--against {options.against}: expected the folder of a checkout of asc-tune")
    return options


@contextmanager
def loops_of(case: Case, options: argparse.Namespace, root: Path) -> Iterator[dict[str, Worker]]:
    """Start one process for each loop of a case; stop them at the end of the block."""
    common = asdict(case) | {"root": str(root), "n_train": case.n_train, "n_validation": case.n_validation}
    asked = {OURS: (ROOT, {"loop": "product"})}
    if options.against:
        asked[OTHER] = (options.against.resolve(), {"loop": "product"})
    for n in options.workers:
        asked[f"baseline, {n} workers"] = (ROOT, {"loop": "baseline", "workers": n})
    with ExitStack() as stack:
        workers = {}
        for name, (checkout, more) in asked.items():
            workers[name] = Worker(checkout, {"workers": 0} | common | more)
            stack.callback(workers[name].close)
        yield workers


def measured(case: Case, options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Measure one case: the ms per clip of each loop and round, and of each stage. The first round is a warm-up."""
    times: dict[str, dict[str, list[float]]] = {}
    stages: dict[str, dict[str, list[float]]] = {}
    with loops_of(case, options, root) as workers:
        for measured_round in range(-1, options.rounds):
            for name, worker in workers.items():
                product = name in (OURS, OTHER)
                for action in ("train", "validate", *(("floor", "stages") if product else ())):
                    found = worker.run(action)
                    if measured_round < 0:
                        continue
                    if action != "stages":
                        found, into = {action: found}, times.setdefault(name, {})
                    else:
                        into = stages.setdefault(name, {})
                    for stage, seconds in found.items():
                        validates = stage.startswith("validate")
                        n = case.n_validation if validates else case.n_train
                        into.setdefault(stage, []).append(1000 * seconds / n)
        peaks = {name: worker.peak_bytes for name, worker in workers.items()}
    return {"case": asdict(case), "ms_per_clip": times, "stages_ms_per_clip": stages, "peak_bytes": peaks}


def title(case: Case) -> str:
    return f"{case.student}, batch {case.batch}, KD {'on' if case.kd else 'off'}"


def epochs(times: dict[str, list[float]]) -> list[float]:
    """Return the ms per clip of an epoch, for each round."""
    pairs = zip(times["train"], times["validate"], strict=True)
    return [TRAINED * train + VALIDATED * validate for train, validate in pairs]


def ratio(numbers: list[float], others: list[float]) -> str:
    """Return the median over the rounds of the quotient of two times."""
    return f"{median(a / b for a, b in zip(numbers, others, strict=True)):.2f}"


def loops_table(results: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the loops. Ratios above 1 say how many times faster asc-tune is."""
    columns = ("case", "loop", "train", "validate", "epoch", "floor", "floor / train", "peak MB")
    ratios = ("train / asc-tune", "epoch / asc-tune")
    rows = []
    for result in results:
        ours = result["ms_per_clip"][OURS]
        for name, times in result["ms_per_clip"].items():
            floor = f"{median(times['floor']):.2f}" if "floor" in times else ""
            rows.append(
                [
                    title(Case(**result["case"])),
                    name,
                    *(f"{median(values):.2f}" for values in (times["train"], times["validate"], epochs(times))),
                    floor,
                    ratio(times["floor"], ours["train"]) if floor else "",
                    f"{result['peak_bytes'][name] / 1e6:,.0f}",
                    ratio(times["train"], ours["train"]),
                    ratio(epochs(times), epochs(ours)),
                ]
            )
    return "ms per clip; floor / train: floor of this loop / training of asc-tune\n\n" + markdown(
        [*columns, *ratios], rows
    )


def stages_table(results: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the stages of asc-tune: ms per clip, and with --against the times of the other."""
    rows = []
    for result in results:
        ours, *others = result["stages_ms_per_clip"].values()
        for stage, values in ours.items():
            found = [f"{median(other[stage]):.3f}" if stage in other else "" for other in others]
            rows.append([title(Case(**result["case"])), stage, f"{median(values):.3f}", *found])
    names = next(iter(results))["stages_ms_per_clip"] if results else {}
    return "Stages, ms per clip\n\n" + markdown(["case", "stage", *names], rows)


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---", "---", *["--:"] * (len(columns) - 2)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
