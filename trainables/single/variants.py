"""Compare the deployed forms of one network: accuracy, agreement, bytes and single-clip latency.

    forms, front_end_ms = compare([Variant("fp32", eager(network), 242_608), ...], validation, front_end, n_runs=200)

The first variant is the reference. All variants predict the same clips. They are timed in turn, so that other load on
the machine affects all of them. Latency is that of the network alone (features in, logits out): one clip, one thread.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn
from tqdm import tqdm

from ascmodels.export import Network, largest_difference
from data.features import LogMel
from trainables.engine.metrics import measure
from trainables.inputs.clips import Clips

BATCH = 32  # clips
WARM_UP = 20  # runs that are not counted, before the timed ones


@dataclass(frozen=True)
class Variant:
    """A network in one form, to be measured."""

    name: str
    run: Network
    parameter_bytes: int
    path: Path | None = None  # an ONNX file; None: the network runs in PyTorch


@dataclass(frozen=True)
class Form:
    """One deployed form of the network and its figures; differences and ratios are relative to the first form."""

    form: str
    runtime: str  # onnxruntime or PyTorch
    file: str  # empty: this form has no file
    parameter_bytes: int  # size of the parameters; for int8 with the int32 biases and the scales
    file_bytes: int
    val_macro_avg_acc: float
    max_difference: float  # largest absolute difference of a logit from the first form's, over all clips
    agreement: float  # share of the clips for which this form predicts the same scene as the first form
    latency_ms: float  # wall-clock time, median over single clips
    latency_iqr_ms: float  # interquartile range of the wall-clock time
    cpu_ms: float  # median CPU time of the thread, which other processes do not affect
    cpu_ratio: float  # `cpu_ms` relative to the first form


def compare(
    variants: Sequence[Variant], clips: Clips, front_end: LogMel, n_runs: int
) -> tuple[list[Form], dict[str, float]]:
    """Return the figures of every variant on `clips`, and the latency of the front-end (`latency_ms`, `cpu_ms`).

    Raise ExportError if the logits of a variant are not finite.
    """
    logits = predict_all({v.name: v.run for v in variants}, clips, front_end)
    waveform = clips.cache.batch(clips.rows[:1])
    clip = front_end(waveform).numpy()
    timed: dict[str, Callable[[], Any]] = {v.name: lambda run=v.run: run(clip) for v in variants}
    times = latencies(timed | {"": lambda: front_end(waveform)}, n_runs)
    reference, reference_ms = logits[variants[0].name], np.median(times[variants[0].name][:, 1])
    forms = []
    for v in variants:
        found = logits[v.name]
        low, median, high = np.percentile(times[v.name][:, 0], [25, 50, 75])
        cpu_ms = np.median(times[v.name][:, 1])
        forms.append(
            Form(
                form=v.name,
                runtime="onnxruntime" if v.path else "PyTorch",
                file=v.path.name if v.path else "",
                parameter_bytes=v.parameter_bytes,
                file_bytes=v.path.stat().st_size if v.path else 0,
                val_macro_avg_acc=measure(found, clips.labels, clips.devices).macro_avg_acc,
                max_difference=largest_difference(v.name, found, reference),
                agreement=float((found.argmax(1) == reference.argmax(1)).mean()),
                latency_ms=float(median),
                latency_iqr_ms=float(high - low),
                cpu_ms=float(cpu_ms),
                cpu_ratio=float(cpu_ms / reference_ms),
            )
        )
    front = np.median(times[""], axis=0)
    return forms, {"latency_ms": float(front[0]), "cpu_ms": float(front[1])}


def features(clips: Clips, front_end: LogMel, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the features `[B, 1, F, T]` of the clips in `rows` of the cache, one batch at a time."""
    for start in range(0, len(rows), BATCH):
        yield front_end(clips.cache.batch(rows[start : start + BATCH])).numpy()


def eager(network: nn.Module) -> Network:
    """Return a function that runs a PyTorch network on NumPy arrays."""

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(x)).numpy()

    return run


def predict_all(networks: Mapping[str, Network], clips: Clips, front_end: LogMel) -> dict[str, np.ndarray]:
    """Return the logits `[N, C]` of every network; the features of each clip are computed once."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in networks}
    for x in tqdm(features(clips, front_end, clips.rows), "measuring", -(-len(clips.rows) // BATCH), unit="batch"):
        for name, network in networks.items():
            parts[name].append(network(x))
    return {name: np.concatenate(p) for name, p in parts.items()}


def latencies(timed: Mapping[str, Callable[[], Any]], n: int) -> dict[str, np.ndarray]:
    """Time `n` runs of each function; return milliseconds `[n, 2]`: wall-clock time, CPU time of the thread."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
    for i in range(WARM_UP + n):
        for name, run in timed.items():
            clock, cpu = time.perf_counter(), time.thread_time()
            run()
            if i >= WARM_UP:
                times[name].append((1000 * (time.perf_counter() - clock), 1000 * (time.thread_time() - cpu)))
    return {name: np.array(t) for name, t in times.items()}


def as_table(forms: Sequence[Form], title: str) -> Table:
    """Return the forms as a table for the terminal."""
    table = Table("", "bytes", "acc", "max diff", "same", "ms (IQR)", "CPU ms", "ratio", title=title)
    for f in forms:
        table.add_row(
            *(f.form, f"{f.parameter_bytes:,}"),
            *(f"{f.val_macro_avg_acc:.1%}", f"{f.max_difference:.2g}", f"{f.agreement:.1%}"),
            *(f"{f.latency_ms:.2f} ({f.latency_iqr_ms:.2f})", f"{f.cpu_ms:.2f}", f"{f.cpu_ratio:.2f}"),
        )
    return table
