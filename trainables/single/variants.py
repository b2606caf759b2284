"""Compare the deployed forms of one network (fp32, fp16, int8, ...): accuracy, predictions, bytes, latency.

`compare` measures each `Variant` (a form of the network: its name, the function that computes its logits, its size) and
returns one `Form`, the results, for each of them. The first variant is the reference, from which the differences and
ratios of the others are computed. All variants predict the same clips. Their timed runs alternate, so that other load
on the machine affects all variants alike. Latency is the time of the network alone, from the features of one clip to
its logits, on one thread.
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

BATCH = 32  # batch size in clips
WARM_UP = 20  # number of untimed runs before the timed ones


@dataclass(frozen=True)
class Variant:
    """One form of a network (for example fp16 or int8), to be measured by `compare`."""

    name: str
    run: Network  # function from features [B, 1, F, T] to logits [B, C]
    parameter_bytes: int  # size of the parameters
    path: Path | None = None  # the ONNX file of this form; None: the network runs in PyTorch


@dataclass(frozen=True)
class Form:
    """The results of `compare` for one form of a network.

    Some of them compare this form with the reference, the first variant that was passed to `compare`.
    """

    form: str  # name of the variant
    runtime: str  # onnxruntime or PyTorch
    file: str  # name of the ONNX file; empty: this form has no file
    parameter_bytes: int  # size of the parameters; for int8 with the int32 biases and the scales
    file_bytes: int  # 0: this form has no file
    val_macro_avg_acc: float | None  # None: there are no validation clips
    max_difference: float  # largest absolute difference from the logits of the reference, over all clips and classes
    agreement: float  # share of the clips for which this form predicts the same scene as the reference
    latency_ms: float  # wall-clock time for one clip, median over the runs
    latency_iqr_ms: float  # interquartile range of the wall-clock time
    cpu_ms: float  # median CPU time of the thread, which other processes do not affect
    cpu_ratio: float  # `cpu_ms` divided by `cpu_ms` of the reference


def compare(
    variants: Sequence[Variant], clips: Clips, front_end: LogMel, n_runs: int, validated: bool = True
) -> tuple[list[Form], dict[str, float]]:
    """Measure accuracy, size and latency of each variant; return (one `Form` for each, times of the front-end).

    `variants` are forms of one network, e.g. fp32 and int8, which predict `clips`. `front_end` computes the features.
    With `validated` False, accuracies are not measured, because the network was trained on `clips`.
    Each time is the median of `n_runs` timed runs on the first clip. The times of the front-end, from the waveform of
    this clip to its features, are a dict with the keys `latency_ms` (wall-clock time) and `cpu_ms` (CPU time of the
    thread). Raise ExportError if the logits of a variant are not finite.
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
                val_macro_avg_acc=measure(found, clips.labels, clips.devices).macro_avg_acc if validated else None,
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
    """Yield batches of the features `[B, 1, F, T]` of the clips in the rows `rows` of `clips.cache`, in this order."""
    for start in range(0, len(rows), BATCH):
        yield front_end(clips.cache.batch(rows[start : start + BATCH])).numpy()


def eager(network: nn.Module) -> Network:
    """Return a function that runs the PyTorch `network` in eager mode; its input and its result are NumPy arrays."""

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(x)).numpy()

    return run


def predict_all(networks: Mapping[str, Network], clips: Clips, front_end: LogMel) -> dict[str, np.ndarray]:
    """Return a dict from the name of each network to its logits `[N, C]` for the N clips of `clips`.

    The features of a clip are computed once, with `front_end`, and used for all networks.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in networks}
    for x in tqdm(features(clips, front_end, clips.rows), "measuring", -(-len(clips.rows) // BATCH), unit="batch"):
        for name, network in networks.items():
            parts[name].append(network(x))
    return {name: np.concatenate(p) for name, p in parts.items()}


def latencies(timed: Mapping[str, Callable[[], Any]], n: int) -> dict[str, np.ndarray]:
    """Time `n` calls of each function in `timed`, after a warm-up; return a dict from its name to its times in ms.

    The times are an array `[n, 2]`: the wall-clock time of each call, and the CPU time of the calling thread. Calls of
    the functions alternate.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
    for i in range(WARM_UP + n):
        for name, run in timed.items():
            clock, cpu = time.perf_counter(), time.thread_time()
            run()
            if i >= WARM_UP:
                times[name].append((1000 * (time.perf_counter() - clock), 1000 * (time.thread_time() - cpu)))
    return {name: np.array(t) for name, t in times.items()}


def as_table(forms: Sequence[Form], title: str) -> Table:
    """Return a table for the terminal with the results of `compare`: one row for each form of the network."""
    table = Table("", "bytes", "acc", "max diff", "same", "ms (IQR)", "CPU ms", "ratio", title=title)
    for f in forms:
        table.add_row(
            *(f.form, f"{f.parameter_bytes:,}"),
            "-" if f.val_macro_avg_acc is None else f"{f.val_macro_avg_acc:.1%}",
            *(f"{f.max_difference:.2g}", f"{f.agreement:.1%}"),
            *(f"{f.latency_ms:.2f} ({f.latency_iqr_ms:.2f})", f"{f.cpu_ms:.2f}", f"{f.cpu_ratio:.2f}"),
        )
    return table
