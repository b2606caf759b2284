"""Check and measure asc-tune on the GPU of this machine, in at most 5 minutes.

    make gpu                                                    # the same as the next line
    python tests/bench/gpu_check.py --out gpu-check             # on a machine with a GPU
    python tests/bench/gpu_check.py --only throughput,profile   # some of the sections

The sections, in this order:

    tests       the tests with the marker gpu
    throughput  clips per second of both students at profile=full: the training loop, prediction, and the limits of the
                hardware: a training step without the host's work, as a CUDA graph (with --compile also compiled)
    profile     the kernels that take most of the time of an epoch (profile.txt)
    share       1, 2 and 4 processes that train at the same time (tests/bench/gpu_share.py), for both profiles
    study       12 trials of tune/run.py on the embedded data set, from the first training step to the end

The figures are printed as one table and written to figures.md and figures.json in the folder `--out`. A section that
fails is reported, the others still run, and the exit status is 1. Sections that do not fit into `--minutes` are left
out. With `--device cpu`, the sections throughput and profile run on the CPU with small batches, to try this script.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from ascmodels.students import build_student
from data import tau
from data.augment import augment_features, augment_waveforms, draw_epoch
from data.features import LogMel
from tests.bench import gpu_share
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.engine.deployment import placed
from trainables.engine.device import autocast
from trainables.engine.losses import kd_loss
from trainables.engine.optimizer import new_optimizer, set_learning_rate
from trainables.step_time import random_training
from tune.study.events import DriverFinished, EpochReported, TrialEnded
from tune.study.journal import read_events

ROOT, STUDENTS, TRIALS = Path(__file__).parents[2], ("cp_mobile", "rep_mobile"), 12


@dataclass(frozen=True)
class Figure:
    """One measured figure: a row of the table."""

    section: str
    what: str
    student: str  # "": no student, or that of the space
    value: float
    unit: str


@dataclass(frozen=True)
class Settings:
    """What the sections share: their device, the seconds of one measurement, the end of the time, the folder."""

    device: torch.device
    seconds: float
    until: float  # on the clock of time.monotonic
    out: Path
    compiled: bool

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the results (default: gpu-check)")
    p.add_argument("--only", default=",".join(SECTIONS), help="sections to run (default: all)")
    p.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement (default: %(default)s)")
    p.add_argument("--minutes", type=float, default=5.0, help="time for all sections (default: %(default)s)")
    p.add_argument("--compile", action="store_true", help="measure torch.compile, too (about 2 minutes more)")
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="device (default: %(default)s)")
    options = p.parse_args(argv)
    if unknown := set(names := options.only.split(",")) - set(SECTIONS):
        p.error(f"--only {options.only}: unknown section {sorted(unknown)[0]}; expected some of {','.join(SECTIONS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check: PyTorch found no CUDA device; expected one: run this check on a machine with a GPU")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    settings = Settings(torch.device(options.device), options.seconds, until, options.out, options.compile)
    figures, failed = list[Figure](), dict[str, str]()
    for name in names:
        if settings.left < 10:
            failed[name] = f"left out: only {settings.left:.0f} s of --minutes {options.minutes:g} were left"
            continue
        print(f"{name} ...", flush=True)
        try:
            for figure in SECTIONS[name](settings):
                figures.append(figure)
                print("  " + row(figure), flush=True)
        except Exception as error:  # reported below, and in the exit status
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"
    device = torch.cuda.get_device_name() if settings.on_gpu else "CPU"
    record = {"device": device, "torch": torch.__version__, "time": f"{datetime.now():%Y-%m-%d %H:%M}"}
    record |= {"figures": [asdict(figure) for figure in figures], "failed": failed}
    (options.out / "figures.json").write_text(json.dumps(record, indent=1))
    (options.out / "figures.md").write_text(text := markdown(device, figures, failed))
    print(text)
    return 1 if failed else 0


def row(figure: Figure) -> str:
    value = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"
    return f"| {figure.section} | {figure.what} | {figure.student} | {value} | {figure.unit} |"


def markdown(device: str, figures: list[Figure], failed: dict[str, str]) -> str:
    """Return the table of all figures, and the sections that failed."""
    lines = [f"{device}, PyTorch {torch.__version__}", "", "| section | what | student | figure | unit |"]
    lines += ["| --- | --- | --- | --: | --- |", *map(row, figures)]
    lines += ["", *(f"- {name} failed: {reason}" for name, reason in failed.items())] if failed else []
    return "\n".join(lines) + "\n"


def run_tests(settings: Settings) -> Iterator[Figure]:
    began = time.monotonic()
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", "-p", "no:cacheprovider"]
    subprocess.run(words, cwd=ROOT, check=True, timeout=settings.left)
    yield Figure("tests", "marker gpu, all passed", "", time.monotonic() - began, "s")


def full(student: str, settings: Settings, amp: str) -> TrialConfig:
    """Return the configuration of profile=full for `student`; on a CPU, with batches of 16 clips."""
    words = [f"student={student}", "profile=full", f"train.amp={amp}", f"train.device={settings.device.type}"]
    return compose([*words, *([] if settings.on_gpu else ["train.batch_size=16"])])


def throughput(settings: Settings) -> Iterator[Figure]:
    for student in STUDENTS:
        for amp in ("off", "bf16"):
            config = full(student, settings, amp)
            n_steps = 8 if settings.on_gpu else 1
            with random_training(config, n_steps=n_steps) as training:
                rate = training.step() / timed(training.step, settings)
                yield Figure("throughput", f"train_epoch, amp={amp}", student, rate, "clips/s")
                if amp == "off":
                    rate = training.validate() / timed(training.validate, settings)
                    yield Figure("throughput", "deploy and predict", student, rate, "clips/s")
            if settings.on_gpu:
                peak = torch.cuda.max_memory_reserved() / 2**20
                yield Figure("throughput", f"memory of train_epoch, amp={amp}", student, peak, "MiB")
                torch.cuda.reset_peak_memory_stats()
            for whole in (False, True):
                for compiled in (False, True) if settings.compiled and amp == "bf16" else (False,):
                    what = "whole step, data on the device" if whole else "forward, backward, optimiser"
                    what += f", amp={amp}" + (", CUDA graph" if settings.on_gpu else "") + ", compiled" * compiled
                    step = captured(one_step(config, settings, whole, compiled), settings)
                    rate = config.train.batch_size / timed(step, settings)
                    yield Figure("throughput", what, student, rate, "clips/s")


def one_step(config: TrialConfig, settings: Settings, whole: bool, compiled: bool) -> Callable[[], object]:
    """Return a function that runs one training step on data that are on the device, without the host's work.

    With `whole`, the step begins with int16 clips and includes roll, front-end and augmentation; otherwise it begins
    with features. `compiled`: the network goes through torch.compile.
    """
    device, n, f = settings.device, config.train.batch_size, config.frontend
    rng = np.random.default_rng(0)
    samples = torch.from_numpy(rng.integers(-20_000, 20_000, (4 * n, f.sample_rate), dtype=np.int16)).to(device)
    picked = torch.from_numpy(rng.permutation(4 * n)[:n]).to(device)
    labels, teacher = picked % len(tau.SCENES), torch.randn(n, len(tau.SCENES), device=device)
    draws = draw_epoch(config.augment, f, [np.full(n, "a")], 0, rng, device)[0]
    front_end, features = LogMel(f).to(device), torch.randn(n, 1, f.n_mels, f.frames, device=device)
    model = placed(build_student(config.student, len(tau.SCENES)), device).train()
    network = torch.compile(model) if compiled else model
    optimizer = new_optimizer(model, config.train.weight_decay, recorded=settings.on_gpu)
    set_learning_rate(optimizer.param_groups[0], 1e-4)

    def step() -> None:
        x = features
        if whole:
            waveforms = augment_waveforms(samples[picked].float() / 32767, draws, f.sample_rate)
            x = augment_features(front_end(waveforms), draws, front_end.silence)
        optimizer.zero_grad(set_to_none=True)
        with autocast(config.train.amp, device):
            logits = network(x.to(memory_format=torch.channels_last))
        kd_loss(logits.float(), labels, teacher, config.distill.kd_alpha, config.distill.kd_temp).backward()
        optimizer.step()

    return step


def captured(step: Callable[[], object], settings: Settings) -> Callable[[], object]:
    """Return a function that replays `step` as a CUDA graph; on a CPU, return `step`."""
    if not settings.on_gpu:
        return step
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def timed(work: Callable[[], object], settings: Settings) -> float:
    """Return the seconds of one call of `work`: the mean over `settings.seconds`, after 3 calls (CPU: 1) as warm-up."""
    wait = torch.cuda.synchronize if settings.on_gpu else lambda: None
    for _ in range(3 if settings.on_gpu else 1):
        work()
    wait()
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - began < settings.seconds:
        for _ in range(5 if settings.on_gpu else 1):
            work()
            calls += 1
        wait()
    return (time.perf_counter() - began) / calls


def profile(settings: Settings) -> Iterator[Figure]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA][: 1 + settings.on_gpu]
    key = "self_device_time_total" if settings.on_gpu else "self_cpu_time_total"
    tables = []
    for student in STUDENTS:
        with random_training(full(student, settings, "bf16"), n_steps=4 if settings.on_gpu else 1) as training:
            training.step()
            with torch.profiler.profile(activities=activities) as result:
                training.step()
        table = result.key_averages()
        tables.append(f"{student}\n{table.table(sort_by=key, row_limit=25)}")
        top = sorted(table, key=lambda item: getattr(item, key), reverse=True)[:5]
        total = sum(getattr(item, key) for item in table)
        for item in top:
            yield Figure("profile", item.key[:60], student, 100 * getattr(item, key) / total, "% of the time")
    (settings.out / "profile.txt").write_text("\n\n".join(tables))


def share(settings: Settings) -> Iterator[Figure]:
    for name in ("full", "quick"):
        config = compose(["student=rep_mobile", f"profile={name}"])
        for n in (1, 2, 4):
            each, _ = gpu_share.measure(config.flat(), n, settings.seconds)
            what = f"{n} processes, profile={name}, batch {config.train.batch_size}"
            yield Figure("share", what, "rep_mobile", sum(each), "clips/s in total")


def study(settings: Settings) -> Iterator[Figure]:
    storage, dataset = settings.out / "runs", settings.out / "tau-synthetic"
    environment = os.environ | {"WANDB_MODE": "offline"}
    subprocess.run([sys.executable, "-m", "data.synthetic", str(dataset)], cwd=ROOT, check=True, timeout=settings.left)
    name = f"gpu-check-{datetime.now():%Y%m%d-%H%M%S}"
    words = [sys.executable, "tune/run.py", "--space=kd_prune", f"--name={name}", f"--num-samples={TRIALS}"]
    words += [f"--storage={storage}", f"--dataset_dir={dataset}"]
    with subprocess.Popen(words, cwd=ROOT, env=environment) as driver:
        try:
            driver.wait(max(10.0, settings.left - 20))
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGINT)
            driver.wait(20)
    events = list(read_events(storage / name))
    ended = sum(isinstance(event, TrialEnded) for event in events)
    yield Figure("study", f"trials that ended, of {TRIALS}", "", ended, "trials")
    epochs = [event for event in events if isinstance(event, EpochReported)]
    if epochs:
        first, last = (datetime.fromisoformat(event.time) for event in (epochs[0], events[-1]))
        length = (last - first).total_seconds() + (epochs[0].figures.get("seconds") or 0.0)
        yield Figure("study", "from the first training step to the last event", "", length, "s")
    if not isinstance(events[-1], DriverFinished):
        raise RuntimeError(f"the study ended with exit status {driver.returncode} before its last trial")


SECTIONS: dict[str, Callable[[Settings], Iterator[Figure]]] = {
    "tests": run_tests,
    "throughput": throughput,
    "profile": profile,
    "share": share,
    "study": study,
}


if __name__ == "__main__":
    sys.exit(main())
