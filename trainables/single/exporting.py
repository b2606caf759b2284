"""Export a student in all deployed forms and measure each: the work of the command deploy.py."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from torch import fx, nn
from tqdm import tqdm

from ascmodels import export
from ascmodels.checkpoint import CheckpointError, load_student
from ascmodels.compress import quantize
from ascmodels.config.limits import size_bytes
from ascmodels.export import ExportError, Runner
from ascmodels.nessi import get_deployed_size
from ascmodels.students import Student
from data.config.frontend import FrontEndConfig
from data.features import LogMel
from data.files import replace_folder
from data.impulse import impulses_for
from data.tau import SCENES, resolved
from trainables.config.compose import groups, override_values
from trainables.config.distill import DistillConfig
from trainables.config.flags import flags_to_overrides
from trainables.config.schema import TrialConfig
from trainables.engine.deployment import deploy, describe_use
from trainables.engine.device import pick_device, set_up_process
from trainables.engine.loop import Epoch, train_epoch
from trainables.engine.losses import kd_loss
from trainables.engine.optimizer import new_optimizer
from trainables.engine.schedule import schedule
from trainables.outputs.records import now, write_rows
from trainables.single.command import configure, guarded
from trainables.single.run_folder import RunError, checked_checkpoint, find_checkpoint, shown
from trainables.single.variants import BATCH, Form, Variant, as_table, compare, eager, features
from trainables.trial.data import load_trial_data

QAT_STAGE = 1000  # the seed of the random draws is (seed, QAT_STAGE, epoch); no stage of a trial has this number
COMPARED = 1000  # training clips on which the forms are compared if there are no validation clips


def command(options: argparse.Namespace, rest: list[str]) -> int:
    """Export and measure the student that `options` name, and return the exit status.

    `options` are the options of the command, `rest` its other arguments (flags of configuration keys and Hydra
    overrides).
    """

    def work(console: Console) -> int:
        check_options(options)
        named = options.checkpoint
        folder = checked_checkpoint(named) if named else find_checkpoint(options.storage, options.ckpt_id)
        student, extra = load_student(folder)
        config = replace(configuration(folder, extra, rest, options.storage), frontend=used_with(folder, extra))
        out = (options.out or folder.parent / "deploy" / folder.name).expanduser().resolve()
        if out.exists() and not (out / "deploy.json").is_file():
            raise RunError(
                f"the output folder {out} exists and has no deploy.json; expected a folder that does not exist, or one "
                "that deploy.py wrote: choose another folder with --out"
            )
        try:
            replace_folder(out, Deployment(folder, student, config, options, console.print).write)
        except ExportError as error:
            raise RunError(f"{folder} cannot be exported: {error}") from error
        print_summary(out, console)
        return 0

    return guarded(work)


def check_options(options: argparse.Namespace) -> None:
    """Raise RunError if a value in `options`, the options of this command, is invalid."""
    if bool(options.ckpt_id) == bool(options.checkpoint):
        found = "both --ckpt_id and --checkpoint are" if options.ckpt_id else "neither --ckpt_id nor --checkpoint is"
        raise RunError(
            f"{found} given; expected one of these options: give --ckpt_id=<id> for the run in "
            f"{options.storage}/experiments/<id>, or --checkpoint=<folder> for one network"
        )
    for name, least in (("qat_epochs", 0), ("calibration_clips", quantize.LEAST_CLIPS), ("latency_runs", 10)):
        if getattr(options, name) < least:
            raise RunError(f"--{name} {getattr(options, name)}: expected at least {least}; give a larger number")
    if not 0 < options.qat_lr < 1:
        raise RunError(f"--qat_lr {options.qat_lr}: expected a learning rate above 0 and below 1: correct it")


def used_with(folder: Path, extra: Mapping[str, Any]) -> FrontEndConfig:
    """Return the front-end in the metadata `extra` of checkpoint `folder`; CheckpointError for invalid metadata."""
    try:
        front_end, classes = FrontEndConfig(**extra["frontend"]), tuple(extra["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}/student.json has no valid keys frontend and classes ({error!r}): give a network of a run or "
            "study, e.g. runs/experiments/<id>/last.ckpt or runs/<study>/experiments/t0003/step0"
        ) from error
    if classes != SCENES:
        raise CheckpointError(f"{folder} has classes {classes}; expected {SCENES}: use a checkpoint with these classes")
    return front_end


def configuration(folder: Path, extra: Mapping[str, Any], words: Sequence[str], storage: Path) -> TrialConfig:
    """Return the configuration of the training of checkpoint `folder`, changed by the flags `words`.

    It is read from the run's info.json, else from the metadata `extra` of the checkpoint. If neither has it, the result
    is the default configuration without distillation, changed by `words`, with its caches in the folder `storage`.
    """
    info = folder.parent / "info.json"
    try:
        before = json.loads(info.read_text())["config"] if info.is_file() else extra.get("config")
        before = None if before is None else dict(before)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{info} is damaged: {error!r}; expected JSON with the key config: restore the file") from error
    if before is None:
        return configure(words, storage, ["distill.kd_alpha=1"])
    typed = override_values(flags_to_overrides(words))
    for name in set(typed) & set(groups()):
        raise RunError(f"{name}={typed[name]} is a group of keys; expected single keys: set each, as in train.lr=0.1")
    config = TrialConfig.from_flat(before | typed)
    return replace(config, data=resolved(config.data))


class Deployment:
    """The export of one trained student in all forms (fp32, fp16 and int8); `log` prints a line of progress."""

    def __init__(self, checkpoint: Path, student: Student, config: TrialConfig, options: argparse.Namespace, log):
        self.checkpoint, self.config, self.options, self.log = checkpoint, config, options, log
        set_up_process(1)
        self.training_form = student
        self.student = deploy(student, "fp32")
        self.front_end = LogMel(config.frontend)
        self.size = get_deployed_size(student, config.frontend.n_mels, config.frontend.frames)
        self.metadata = describe_use(config)
        if options.qat_epochs and config.distill.taught and not config.distill.teacher_ckpts:
            raise RunError(
                f"--qat_epochs {options.qat_epochs}: distill.kd_alpha={config.distill.kd_alpha} needs a teacher, and "
                "distill.teacher_ckpts is empty: name teachers with --teacher_ckpts, or use none with --kd_alpha=1"
            )
        try:
            self.device = pick_device(config.train.device if options.qat_epochs else "cpu")
        except ValueError as error:
            raise RunError(f"--qat_epochs {options.qat_epochs} cannot be run: {error}") from error
        distill = config.distill if options.qat_epochs else DistillConfig(kd_alpha=1.0)  # only QAT needs teachers
        self.data = load_trial_data(replace(config, distill=distill), progress=True)
        rng = np.random.default_rng([config.seed, QAT_STAGE])
        rows = rng.permutation(self.data.train.rows)[: options.calibration_clips]
        self.calibration = list(features(self.data.train, self.front_end, rows))

    def write(self, folder: Path) -> None:
        """Export the student (.pt2; ONNX in fp32, fp16, int8); measure each form; write deploy.json and deploy.csv."""
        x, params = self.calibration[0], self.size[1]
        network = eager(self.student)
        expected = network(x)
        export.largest_difference("the network", expected, expected)  # raises if not finite
        variants = [
            Variant("fp32", network, size_bytes(params, "fp32")),
            Variant("fp16", eager(deploy(self.training_form, "fp16")), size_bytes(params, "fp16")),
        ]
        self.log("exporting to torch.export and ONNX")
        program = export.export_program(self.student, x.shape[1:])
        again = export.save_program(program, folder / "student.pt2")
        checks = {"student.pt2": export.check_equal("student.pt2", again(x), expected)}
        checks["student_waveform.pt2"] = self.export_with_front_end(folder / "student_waveform.pt2")
        path, half = folder / "student_fp32.onnx", folder / "student_fp16.onnx"
        export.save_onnx(program, path, self.metadata | {"form": "fp32"})
        runner = Runner(path)
        checks[path.name] = export.check_equal(path.name, runner(x), expected)
        export.check_equal(f"{path.name}, batch 1,", runner(x[:1]), expected[:1])
        variants.append(Variant("fp32 ONNX", runner, export.parameter_bytes(path), path))
        n_bytes = export.store_half(path, half, self.metadata | {"form": "fp16"})
        variants.append(Variant("fp16 ONNX", Runner(half), n_bytes, half))

        self.log(f"int8: calibrating on {sum(map(len, self.calibration))} training clips")
        payloads = {}
        tuned = folder / "fine_tuned.onnx"
        for form, source in (("int8 PTQ", path), *([("int8 QAT", tuned)] if self.options.qat_epochs else [])):
            if source == tuned:
                network = fine_tune(self)
                export.save_onnx(export.export_program(network, x.shape[1:]), tuned, self.metadata)
            target = folder / f"student_{form.lower().replace(' ', '_')}.onnx"
            payload = quantize.quantize_onnx(source, target, self.calibration, self.metadata | {"form": form})
            payloads[form] = asdict(payload) | {"total": payload.total, "layers": quantize.check_integer(target)}
            variants.append(Variant(form, Runner(target), payload.total, target))
        tuned.unlink(missing_ok=True)
        self.measure(folder, variants, {"export_difference": checks, "int8": payloads})

    def export_with_front_end(self, path: Path) -> float:
        """Export front-end and network as one program, from waveforms `[B, S]` to logits `[B, C]`, to the file `path`.

        Return the largest absolute difference of its logits from those of front-end and network in eager mode.
        """
        clips = self.data.train
        model = nn.Sequential(self.front_end, self.student)
        waveforms = clips.cache.batch(clips.rows[:BATCH]).numpy()
        program = export.export_program(model, waveforms.shape[1:])
        expected = eager(model)(waveforms)
        return export.check_equal(path.name, export.save_program(program, path)(waveforms), expected)

    def measure(self, folder: Path, variants: list[Variant], details: dict[str, Any]) -> None:
        """Measure each form in `variants` (e.g. fp16 ONNX). Write deploy.csv, and deploy.json with `details` added."""
        clips, o, n_validation = self.data.validation, self.options, len(self.data.validation.rows)
        if not n_validation:
            train, rng = self.data.train, np.random.default_rng([self.config.seed, QAT_STAGE, 1])
            picked = rng.permutation(len(train.rows))[:COMPARED]
            clips = replace(train, rows=train.rows[picked], labels=train.labels[picked], devices=train.devices[picked])
        forms, front_end = compare(variants, clips, self.front_end, o.latency_runs, validated=n_validation > 0)
        info = {
            "checkpoint": str(self.checkpoint),
            "created": now(),
            "MACs": self.size[0],
            "Params": self.size[1],
            **self.metadata,
            "input": [1, 1, self.config.frontend.n_mels, self.config.frontend.frames],
            "opset": export.OPSET,
            "calibration_clips": sum(map(len, self.calibration)),
            "validation_clips": n_validation,
            "compared_clips": len(clips.rows),
            "qat": {"epochs": o.qat_epochs, "lr": o.qat_lr},
            **details,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "front_end": front_end,
            "forms": [asdict(form) for form in forms],
        }
        (folder / "deploy.json").write_text(json.dumps(info, indent=1))
        write_rows(folder / "deploy.csv", info["forms"])


def fine_tune(deployment: Deployment) -> fx.GraphModule:
    """Train the student of `deployment` with weights and activations rounded as in int8, and return it on the CPU.

    The returned network has float weights that int8 can represent, and does not round activations. Loss, augmentation
    and teachers are those of the configuration, but without feature distillation.
    """
    config, data, options, device = deployment.config, deployment.data, deployment.options, deployment.device
    # without mixed precision, because the ranges of activations are tracked in float32
    train = replace(config.train, warmup_steps=None, schedule="cosine", amp="off")
    network = quantize.fake_quantized(deployment.training_form).to(device)
    quantize.observe(network, deployment.calibration)
    optimizer = new_optimizer(network, train.weight_decay)
    n_steps = train.epoch_steps(len(data.train.rows))
    rate = schedule(train, options.qat_epochs * n_steps, options.qat_lr)
    d = config.distill
    for number in tqdm(range(options.qat_epochs), desc="fine-tuning for int8", unit="epoch"):
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
            teachers=data.online.batch_teacher(config.augment, device, train.amp) if data.online else None,
            where=f"fine-tuning for int8, epoch {number + 1}",
        )
        train_epoch(network, optimizer, data.train, epoch)
    return quantize.plain(network).cpu()


def print_summary(folder: Path, console: Console) -> None:
    """Print the measured forms in deploy.json (e.g. fp16 ONNX) as a table, and the folder of the result files."""
    info = json.loads((folder / "deploy.json").read_text())
    clips = f"{info['validation_clips']} validation clips"
    if not info["validation_clips"]:
        clips = f"compared on {info['compared_clips']} training clips (there are no validation clips)"
    title = f"{info['MACs']:,} MACs, {info['Params']:,} parameters, {clips}"
    console.print(as_table([Form(**form) for form in info["forms"]], title))
    console.print(
        "bytes: size of the parameters; max diff: largest difference of a logit from fp32; same: share of clips with\n"
        f"fp32's prediction; ms: one clip, one thread, without front-end ({info['front_end']['latency_ms']:.2f} ms);\n"
        f"ratio: CPU time divided by fp32's\neverything is in {escape(shown(folder))}",
        highlight=False,
        soft_wrap=True,
    )
