"""Measure the time of a training step on this machine, with the real training loop and clips of noise.

    measure(config).step_s                      median time of a training step with `config` in seconds
    with random_training(config) as training:
        training.step()                         one training step: front-end, augmentation, forward, backward, optimiser

No data set is needed. `tune/run.py --dry-run` and tests/bench/gpu_share.py use this module. Teacher logits are random
numbers; the time that teachers of online distillation need is not measured.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ascmodels.students import build_student
from data import tau
from data.cache import WaveformCache
from data.features import LogMel
from data.impulse import impulses_for
from trainables.config.schema import TrialConfig
from trainables.engine.deployment import deploy, placed
from trainables.engine.device import set_up_process, training_device
from trainables.engine.graphs import graphs_for
from trainables.engine.loop import Epoch, predict, train_epoch
from trainables.engine.losses import kd_loss
from trainables.engine.optimizer import new_optimizer
from trainables.inputs.clips import Clips
from trainables.inputs.device_clips import ResidentWaveforms, upload

CPU_BATCH = 64  # largest batch that is timed on a CPU, in clips; the time of a larger batch is extrapolated
VALIDATED = 64  # least number of clips that `validate` predicts


@dataclass(frozen=True)
class StepTime:
    """The result of `measure`: median times in seconds of one training step, and of the validation of one clip."""

    step_s: float  # time of one optimiser step
    validation_s: float  # time to predict one clip with the deployed form
    measured: int  # number of timed steps
    batch_size: int  # of the timed steps; if the configuration has a larger one, step_s is extrapolated to it


class RandomTraining:
    """Training of a new student on clips of noise: each call of `step` trains `n_steps` optimiser steps."""

    def __init__(self, config: TrialConfig, cache: WaveformCache, batch_size: int, n_steps: int):
        set_up_process(config.train.threads)
        self.device = training_device(config.train)
        self.config = replace(config, train=replace(config.train, batch_size=batch_size))
        n = batch_size * config.train.accumulate * n_steps
        resident = upload(cache, self.device)
        self.train, self.validation = (_clips(cache, size, resident) for size in (n, max(n, VALIDATED)))
        self._front_end = LogMel(config.frontend).to(self.device)
        self._impulses = impulses_for(config.augment, config.frontend.sample_rate, self.device)
        self._model = placed(build_student(config.student, len(tau.SCENES)), self.device)
        self._graphs = graphs_for(self.config, self.device, self.train.resident is not None)
        self._optimizer = new_optimizer(self._model, config.train.weight_decay, self._graphs is not None)
        self._rng = np.random.default_rng(0)

    def step(self) -> int:
        """Train an epoch of `n_steps` optimiser steps (`train.accumulate` batches each); return its number of clips."""
        c = self.config
        epoch = Epoch(
            self._front_end,
            c.augment,
            c.train,
            lambda logits, labels, teacher: kd_loss(logits, labels, teacher, c.distill.kd_alpha, c.distill.kd_temp),
            lambda step: 1e-4,
            self._rng,
            impulses=self._impulses,
            graphs=self._graphs,
        )
        train_epoch(self._model, self._optimizer, self.train, epoch)
        return len(self.train.rows)

    def validate(self) -> int:
        """Predict the clips of noise with the deployed form of the student, and return their number.

        A trial does the same with its validation clips after each epoch.
        """
        predict(deploy(self._model, self.config.limits.precision), self.validation, self._front_end)
        return len(self.validation.rows)


@contextmanager
def random_training(config: TrialConfig, batch_size: int | None = None, n_steps: int = 1) -> Iterator[RandomTraining]:
    """Yield a `RandomTraining`: a new student, to be trained on clips of noise in a `with` block.

    The clips are deleted at the end of the block. `batch_size` is the number of clips of a batch; None:
    train.batch_size of `config`. `n_steps` is the number of optimiser steps that one call of `step` trains.
    """
    batch_size = batch_size or config.train.batch_size
    with tempfile.TemporaryDirectory(prefix="asc-tune-") as folder:
        n = max(batch_size * config.train.accumulate * n_steps, VALIDATED)
        yield RandomTraining(config, _noise(Path(folder), n, config.frontend.sample_rate), batch_size, n_steps)


def measure(config: TrialConfig, budget_s: float = 5.0, most: int = 9) -> StepTime:
    """Measure the time of a training step and of the validation of one clip for `config`.

    After a warm-up, training steps are timed until `most` of them are timed, or until one ends more than `budget_s`
    seconds after the start of the warm-up; at least one is timed. The validation is timed in the same way, with a
    quarter of `budget_s`.
    """
    cpu = training_device(config.train).type == "cpu"
    batch_size = min(config.train.batch_size, CPU_BATCH) if cpu else config.train.batch_size
    with random_training(config, batch_size) as training:
        steps = _timed(training.step, budget_s, most)
        validations, n_validated = _timed(training.validate, budget_s / 4, most), len(training.validation.rows)
    scale = config.train.batch_size / batch_size
    return StepTime(
        statistics.median(steps) * scale, statistics.median(validations) / n_validated, len(steps), batch_size
    )


def _timed(work, budget_s: float, most: int) -> list[float]:
    """Call `work` repeatedly, and return the seconds of each timed call: at least one, at most `most` calls.

    The first two calls are the warm-up. Then calls are timed until `most` are timed, or until one ends more than
    `budget_s` seconds after the start of the warm-up. If the warm-up itself takes longer, only the time of its second
    call is returned.
    `work` must wait for the GPU, for example by copying a result to the CPU.
    """
    until, times = time.perf_counter() + budget_s, []
    for call in range(2 + most):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
        if times[-1] + started > until and call:  # out of time; if only two calls were made, the first is the warm-up
            break
    return times[2:] or times[1:]


def _clips(cache: WaveformCache, n: int, resident: ResidentWaveforms | None) -> Clips:
    """Return the first `n` clips of `cache` with arbitrary labels and devices, and random teacher logits."""
    scenes = len(tau.SCENES)
    teacher = torch.randn(n, scenes, generator=torch.Generator().manual_seed(0))
    return Clips(cache, np.arange(n), np.arange(n) % scenes, np.full(n, "a"), teacher, resident=resident)


def _noise(folder: Path, n: int, sample_rate: int) -> WaveformCache:
    """Write a waveform cache of `n` clips of noise, 1 s each, to `folder`, and return it."""
    samples = np.random.default_rng(0).integers(-20_000, 20_000, (n, sample_rate), dtype=np.int16)
    np.save(folder / "waveforms.npy", samples)
    np.save(folder / "scales.npy", np.full(n, 1 / 32767, np.float32))
    names = [f"{i}.wav" for i in range(n)]
    manifest = {"sample_rate": sample_rate, "filenames": names, "skipped": {}, "key": "noise"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return WaveformCache(folder, content="noise")
