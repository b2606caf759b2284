"""Make a trained student ready to ship: fp16, int8, ONNX and `torch.export`, each checked and measured.

    python trainables/deploy.py --ckpt_id=<id>                                     a run of run_training.py
    python trainables/deploy.py --checkpoint=runs/<study>/experiments/<id>/step2   any network of a study or run
        --qat_epochs 5       and an int8 network that was fine-tuned for its rounding

Every form is measured on the same validation clips; int8 is calibrated on training clips. The files, `deploy.json` and
`deploy.csv` go to `deploy/<checkpoint>/` in the run's folder. Configuration and data are those of the run's info.json;
flags change them. Latencies are of the network alone (features in, logits out), one clip, one thread, forms in turn.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import fx, nn
from tqdm import tqdm

from ascmodels import export, quantize
from ascmodels.checkpoint import CheckpointError, load_student, replace_folder
from ascmodels.export import ExportError, Network, Runner
from ascmodels.nessi import get_deployed_size, size_bytes
from ascmodels.students import Student
from data.features import FrontEndConfig, LogMel
from data.impulse import impulses_for
from data.tau import SCENES, resolved
from trainables.config import TrialConfig, flags_to_overrides
from trainables.distill import kd_loss
from trainables.loop import Clips, Epoch, schedule, set_up_process, train_epoch, training_device
from trainables.metrics import measure
from trainables.records import write_rows
from trainables.runs import RunError, configure, find_checkpoint, guarded, now, parser, shown
from trainables.trial import TrialData, deploy, describe_use, load_clips, load_trial_data

BATCH = 32  # clips
WARM_UP = 20  # runs before those that count
QAT_STAGE = 1000  # its draws come from (seed, this, epoch): no stage of a trial has this number


@dataclass(frozen=True)
class Form:
    """One deployed form of the network and its figures."""

    form: str
    runtime: str  # what computes it
    file: str  # empty: not written
    parameter_bytes: int  # what its parameters take; int8 with int32 biases and the scales
    file_bytes: int
    val_macro_avg_acc: float
    max_difference: float  # of its logits to those of the fp32 network in PyTorch, over all validation clips
    agreement: float  # share of the clips for which both name the same scene
    latency_ms: float  # median of single clips
    latency_iqr_ms: float
    latency_ratio: float  # over the fp32 network's in PyTorch


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0, 2 on bad input, 130 interrupted."""
    p = parser(__doc__ or "")
    p.add_argument("--ckpt_id", help="id of a run, whose last checkpoint is deployed")
    p.add_argument("--checkpoint", help="a checkpoint's folder, e.g. runs/<study>/experiments/<id>/step2")
    p.add_argument("--out", type=Path, help="folder to write, replaced whole (default: deploy/<checkpoint> of the run)")
    p.add_argument("--qat_epochs", type=int, default=0, help="of quantisation-aware fine-tuning; 0 (default): none")
    p.add_argument("--qat_lr", type=float, default=1e-4, help="its peak learning rate (default 1e-4)")
    p.add_argument("--calibration_clips", type=int, default=256, help="training clips (default 256)")
    p.add_argument("--latency_runs", type=int, default=200, help="single clips timed for each form (default 200)")
    options, rest = p.parse_known_args(sys.argv[1:] if argv is None else argv)

    def work(console: Console) -> int:
        check_options(options)
        folder = find_checkpoint(options.storage, options.ckpt_id or options.checkpoint)
        student, extra = load_student(folder)
        config = replace(configuration(folder, rest, options.storage), frontend=used_with(folder, extra))
        out = (options.out or folder.parent / "deploy" / folder.name).expanduser().resolve()
        if out.exists() and not (out / "deploy.json").is_file():
            raise RunError(f"--out {out} exists and holds no earlier deployment: it would be replaced; name another")
        try:
            replace_folder(out, Deployment(folder, student, config, options, console).write)
        except ExportError as error:
            raise RunError(str(error)) from error
        tell(out, console)
        return 0

    return guarded(work)


def check_options(options: argparse.Namespace) -> None:
    if bool(options.ckpt_id) == bool(options.checkpoint):
        raise RunError("say which network: --ckpt_id=<id of a run> or --checkpoint=<folder>, one of them")
    for name, least in (("qat_epochs", 0), ("calibration_clips", quantize.LEAST_CLIPS), ("latency_runs", 10)):
        if getattr(options, name) < least:
            raise RunError(f"--{name} {getattr(options, name)}: expected {least} at least")
    if not 0 < options.qat_lr < 1:
        raise RunError(f"--qat_lr {options.qat_lr}: expected a learning rate above 0 and below 1")


def used_with(folder: Path, extra: Mapping[str, Any]) -> FrontEndConfig:
    """The checkpoint's front-end; CheckpointError where there is none, or for other classes than the task's."""
    try:
        front_end, classes = FrontEndConfig(**extra["frontend"]), tuple(extra["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} does not say with which classes and front-end it is used: {error}") from error
    if classes != SCENES:
        raise CheckpointError(f"{folder} knows the classes {classes}; expected {SCENES}")
    return front_end


def configuration(folder: Path, words: Sequence[str], storage: Path) -> TrialConfig:
    """That of the run which `folder` belongs to, changed by what was typed; without an info.json, what was typed."""
    info = folder.parent / "info.json"
    if not info.is_file():
        return configure(words, storage)
    try:
        before = json.loads(info.read_text())["config"]
    except (KeyError, json.JSONDecodeError) as error:
        raise RunError(f"{info} is damaged: {error!r}") from error
    typed = (override.partition("=") for override in flags_to_overrides(words))
    config = TrialConfig.from_flat(before | {key: yaml.safe_load(value) for key, _, value in typed})
    return replace(config, data=resolved(config.data))


class Deployment:
    """One student on its way: `write` fills a folder with its forms and their figures."""

    def __init__(
        self,
        checkpoint: Path,
        student: Student,
        config: TrialConfig,
        options: argparse.Namespace,
        console: Console,
    ):
        self.checkpoint, self.config, self.options, self.console = checkpoint, config, options, console
        set_up_process(1)
        self.training_form = student
        self.student = deploy(student, "fp32")
        self.front_end = LogMel(config.frontend)
        self.size = get_deployed_size(student, config.frontend.n_mels, config.frontend.frames)
        self.metadata = describe_use(config)
        self.data = (
            load_trial_data(config, progress=True)  # with the teachers' logits, where the run had teachers
            if options.qat_epochs
            else load_clips(config, config.frontend.sample_rate, progress=True)
        )
        rng = np.random.default_rng([config.seed, QAT_STAGE])
        rows = rng.permutation(self.data.train.rows)[: options.calibration_clips]
        self.calibration = list(features(self.data.train, self.front_end, rows))

    def write(self, folder: Path) -> None:
        """Write every form, load it again, check and measure it; then deploy.json and deploy.csv."""
        say = self.console.print
        params = self.size[1]
        x = self.calibration[0]
        networks: dict[str, tuple[Network, str, str, int]] = {}  # form -> it, runtime, file, bytes of parameters
        networks["fp32"] = (eager(self.student), "PyTorch", "", size_bytes(params, "fp32"))
        expected = networks["fp32"][0](x)
        export.largest_difference("the network", expected, expected)  # finite, before anything is made of it
        rounded = deploy(self.training_form, "fp16")
        networks["fp16"] = (eager(rounded), "PyTorch", "", size_bytes(params, "fp16"))

        say("exporting to torch.export and ONNX", highlight=False)
        program = export.export_program(self.student, x.shape[1:])
        checks = {
            "student.pt2": export.check_equal(
                "student.pt2", export.save_program(program, folder / "student.pt2")(x), expected
            )
        }
        checks["student_waveform.pt2"] = self.whole_program(folder / "student_waveform.pt2")
        path = folder / "student_fp32.onnx"
        export.save_onnx(program, path, self.metadata | {"form": "fp32"})
        runner = Runner(path)
        checks[path.name] = max(
            export.check_equal(path.name, runner(part), expected[: len(part)]) for part in (x, x[:1])
        )
        networks["fp32 ONNX"] = (runner, "onnxruntime", path.name, export.parameter_bytes(path))
        half = folder / "student_fp16.onnx"
        taken = export.store_half(path, half, self.metadata | {"form": "fp16"})
        networks["fp16 ONNX"] = (Runner(half), "onnxruntime", half.name, taken)

        say(f"int8: calibrating on {sum(map(len, self.calibration))} training clips", highlight=False)
        payloads = {}
        for form, source in (("int8 PTQ", path), ("int8 QAT", self.fine_tuned(folder))):
            if source is None:
                continue
            target = folder / f"student_{form.lower().replace(' ', '_')}.onnx"
            payload = quantize.quantize_onnx(source, target, self.calibration, self.metadata | {"form": form})
            payloads[form] = asdict(payload) | {"total": payload.total, "layers": quantize.check_integer(target)}
            networks[form] = (Runner(target), "onnxruntime", target.name, payload.total)
        self.measure(folder, networks, checks, payloads)

    def whole_program(self, path: Path) -> float:
        """Waveforms `[B, S]` in, logits out: front-end and network as one program. Its difference to both in turn."""
        clips = self.data.train
        whole = nn.Sequential(self.front_end, self.student)
        waveforms = clips.cache.batch(clips.rows[:BATCH]).numpy()
        program = export.export_program(whole, waveforms.shape[1:])
        expected = eager(whole)(waveforms)
        return export.check_equal(path.name, export.save_program(program, path)(waveforms), expected)

    def fine_tuned(self, folder: Path) -> Path | None:
        """A float ONNX file of the network fine-tuned with fake quantisation, which its int8 form is made of."""
        if not self.options.qat_epochs:
            return None
        tuned = fine_tune(
            self.training_form, self.data, self.config, self.calibration, self.options.qat_epochs, self.options.qat_lr
        )
        path = folder / "fine_tuned.onnx"
        program = export.export_program(tuned, self.calibration[0].shape[1:])
        export.save_onnx(program, path, self.metadata)
        return path

    def measure(self, folder: Path, networks: dict, checks: dict[str, float], payloads: dict[str, Any]) -> None:
        (folder / "fine_tuned.onnx").unlink(missing_ok=True)
        runs = {name: network for name, (network, *_) in networks.items()}
        validation = self.data.validation
        logits = predict_all(runs, validation, self.front_end)
        waveform = validation.cache.batch(validation.rows[:1])
        clip = self.front_end(waveform).numpy()
        timed: dict[str, Callable[[], Any]] = {name: lambda run=run: run(clip) for name, run in runs.items()}
        timed["front-end"] = lambda: self.front_end(waveform)
        times = latencies(timed, self.options.latency_runs)
        reference = logits["fp32"]
        forms = []
        for name, (_, runtime, file, taken) in networks.items():
            difference = export.largest_difference(name, logits[name], reference)
            low, median, high = np.percentile(times[name], [25, 50, 75])
            forms.append(
                Form(
                    form=name,
                    runtime=runtime,
                    file=file,
                    parameter_bytes=taken,
                    file_bytes=(folder / file).stat().st_size if file else 0,
                    val_macro_avg_acc=measure(logits[name], validation.labels, validation.devices).macro_avg_acc,
                    max_difference=difference,
                    agreement=float((logits[name].argmax(1) == reference.argmax(1)).mean()),
                    latency_ms=float(median),
                    latency_iqr_ms=float(high - low),
                    latency_ratio=float(median / np.median(times["fp32"])),
                )
            )
        info = {
            "checkpoint": str(self.checkpoint),
            "created": now(),
            "MACs": self.size[0],
            "Params": self.size[1],
            **self.metadata,
            "opset": export.OPSET,
            "input": [1, 1, self.config.frontend.n_mels, self.config.frontend.frames],
            "calibration_clips": sum(map(len, self.calibration)),
            "validation_clips": len(validation.rows),
            "qat_epochs": self.options.qat_epochs,
            "qat_lr": self.options.qat_lr,
            "export_difference": checks,  # largest, to PyTorch
            "int8": payloads,
            "front_end_latency_ms": float(np.median(times["front-end"])),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "forms": [asdict(form) for form in forms],
        }
        (folder / "deploy.json").write_text(json.dumps(info, indent=1))
        write_rows(folder / "deploy.csv", info["forms"])


def fine_tune(
    student: Student, data: TrialData, config: TrialConfig, calibration: list[np.ndarray], epochs: int, lr: float
) -> fx.GraphModule:
    """Quantisation-aware fine-tuning with the run's own loss, augmentation and teachers; the result without the
    roundings, on the CPU."""
    train = replace(config.train, warmup_steps=None, schedule="cosine")
    device = training_device(train)
    network = quantize.fake_quantized(student).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    quantize.observe(network, calibration)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=train.weight_decay)
    n_steps = train.epoch_steps(len(data.train.rows))
    rate = schedule(train, epochs * n_steps, lr)
    d = config.distill
    for number in tqdm(range(epochs), desc="fine-tuning for int8", unit="epoch"):
        epoch = Epoch(
            LogMel(config.frontend).to(device),
            config.augment,
            train,
            lambda logits, labels, teacher: kd_loss(
                logits, labels, teacher, d.kd_alpha, d.kd_temp, train.label_smoothing
            ),
            lambda step, done=number * n_steps: rate(done + step),
            np.random.default_rng([config.seed, QAT_STAGE, number]),
            impulses=impulses_for(config.augment, config.frontend.sample_rate, device),
            teachers=data.online.listener(config.augment, device, train.amp) if data.online else None,
            where=f"fine-tuning for int8, epoch {number + 1}",
        )
        train_epoch(network, optimizer, data.train, epoch)
    return quantize.plain(network).cpu()


def features(clips: Clips, front_end: LogMel, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Features `[B, 1, F, T]` of the clips in `rows` of the cache, batch by batch."""
    for start in range(0, len(rows), BATCH):
        yield front_end(clips.cache.batch(rows[start : start + BATCH])).numpy()


def eager(network: nn.Module) -> Network:
    """A PyTorch network on NumPy arrays."""

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(x)).numpy()

    return run


def predict_all(networks: Mapping[str, Network], clips: Clips, front_end: LogMel) -> dict[str, np.ndarray]:
    """Logits `[N, C]` of every network, with one pass over the clips."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in networks}
    for x in tqdm(features(clips, front_end, clips.rows), "measuring", -(-len(clips.rows) // BATCH), unit="batch"):
        for name, network in networks.items():
            parts[name].append(network(x))
    return {name: np.concatenate(p) for name, p in parts.items()}


def latencies(timed: Mapping[str, Callable[[], Any]], n: int) -> dict[str, np.ndarray]:
    """Milliseconds of `n` runs of each, taken in turn so that a busy moment falls on all."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for i in range(WARM_UP + n):
        for name, run in timed.items():
            started = time.perf_counter()
            run()
            if i >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: np.array(t) for name, t in times.items()}


def tell(folder: Path, console: Console) -> None:
    """The figures as a table, and where everything is."""
    info = json.loads((folder / "deploy.json").read_text())
    table = Table(
        *("", "bytes", "file", "val acc", "max diff", "same", "ms (IQR)", "ratio"),
        title=f"{info['MACs']:,} MACs, {info['Params']:,} parameters, {info['validation_clips']} validation clips",
    )
    for f in (Form(**form) for form in info["forms"]):
        table.add_row(
            *(f.form, f"{f.parameter_bytes:,}", f"{f.file_bytes:,}" if f.file else "-"),
            *(f"{f.val_macro_avg_acc:.1%}", f"{f.max_difference:.2g}", f"{f.agreement:.1%}"),
            *(f"{f.latency_ms:.2f} ({f.latency_iqr_ms:.2f})", f"{f.latency_ratio:.2f}"),
        )
    console.print(table)
    console.print(
        "max diff, same: logits and named scenes against fp32 in PyTorch; ms: one clip, one thread, the network alone\n"
        f"the front-end takes {info['front_end_latency_ms']:.2f} ms a clip; bytes are what the parameters take\n"
        f"everything is in {escape(shown(folder))}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
