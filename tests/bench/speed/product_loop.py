"""The training loop of asc-tune, with a timer around each of its stages.

It works with the packages of any recent version of asc-tune that Python finds first, so that two versions can be
compared: it uses only names that they have in common.
"""

import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import clips as benchmark
import numpy as np
import torch

from ascmodels.students import build_student
from data import augment
from data.cache import open_cache
from data.features import LogMel
from trainables.config.compose import compose
from trainables.engine import loop
from trainables.engine.deployment import deploy, placed
from trainables.engine.device import set_up_process
from trainables.engine.losses import kd_loss
from trainables.engine.metrics import measure
from trainables.inputs.clips import Clips


class ProductLoop:
    """Trains and validates a student of asc-tune on the CPU, in the configuration of the DCASE 2024 baseline."""

    def __init__(self, student: str, train: benchmark.Files, validation: benchmark.Files, batch: int, kd: bool):
        set_up_process(1)
        config = compose([f"student={student}", "profile=full", f"train.batch_size={batch}", "train.device=cpu"])
        self.config, self.alpha = config, 0.5 if kd else 1.0
        torch.manual_seed(0)
        self.model = placed(build_student(config.student, benchmark.N_CLASSES), torch.device("cpu"))
        self.front_end = LogMel(config.frontend)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=config.train.weight_decay)
        self.train_clips = replace(self._clips(train), teacher=train.teacher if kd else None)
        self.validation_clips = self._clips(validation)
        self.rng = np.random.default_rng(0)
        x = torch.randn(batch, 1, config.frontend.n_mels, config.frontend.frames)
        self.ready = x.to(memory_format=torch.channels_last)

    def _clips(self, files: benchmark.Files) -> Clips:
        cache_dir = files.root / f"cache-{zlib.crc32(augment.__file__.encode())}"  # one for each version of asc-tune
        rate = self.config.frontend.sample_rate
        cache = open_cache(files.root, files.names, rate, cache_dir, progress=False, num_workers=1)
        return Clips(cache, cache.rows(files.names), files.labels, files.devices)

    def loss_of(self, logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
        return kd_loss(logits, labels, teacher, self.alpha, 4.0)

    def train_epoch(self) -> None:
        epoch = loop.Epoch(
            self.front_end, self.config.augment, self.config.train, self.loss_of, lambda step: 1e-3, self.rng
        )
        loop.train_epoch(self.model, self.optimizer, self.train_clips, epoch)

    def validate(self) -> None:
        logits = loop.predict(deploy(self.model, "fp16"), self.validation_clips, self.front_end)
        measure(logits.numpy(), self.validation_clips.labels, self.validation_clips.devices)

    def forward_backward(self) -> None:
        """Run the network forward and backward on as many ready batches as an epoch has clips."""
        self.model.train()
        labels = torch.arange(len(self.ready)) % benchmark.N_CLASSES
        for _ in range(len(self.train_clips.rows) // len(self.ready)):
            self.model.zero_grad(set_to_none=True)
            self.loss_of(self.model(self.ready), labels, None).backward()

    def stages(self) -> dict[str, float]:
        """Train and validate an epoch, and return the CPU seconds of each stage; `other` is the rest of the epoch."""
        seconds: dict[str, float] = defaultdict(float)
        for prefix, epoch in (("train", self.train_epoch), ("validate", self.validate)):
            with self._timers(prefix, seconds):
                started = time.process_time()
                epoch()
                total = time.process_time() - started
            known = sum(value for name, value in seconds.items() if name.startswith(prefix))
            seconds[f"{prefix}: other"] = total - known
        return dict(seconds)

    @contextmanager
    def _timers(self, prefix: str, seconds: dict[str, float]) -> Iterator[None]:
        """Add the CPU time of each stage to `seconds` in this block, by wrapping the functions that the loop calls."""

        def timed(stage: str, function: Callable) -> Callable:
            def call(*args: Any, **kwargs: Any) -> Any:
                started = time.process_time()
                try:
                    return function(*args, **kwargs)
                finally:
                    seconds[f"{prefix}: {stage}"] += time.process_time() - started

            return call

        cache, network = type(self.train_clips.cache), type(self.model)
        wrapped: list[tuple[str, Any, str]] = [
            ("gather", cache, "batch"),
            ("front-end", LogMel, "forward"),
            ("forward", network, "forward"),
            ("loss", ProductLoop, "loss_of"),
            ("backward", torch.Tensor, "backward"),
            ("optimiser", torch.optim.AdamW, "step"),
        ]
        for stage, name in (("roll", "augment_waveforms"), ("augmentation", "augment_features")):
            original = getattr(augment, name)
            users = [m for m in list(sys.modules.values()) if m and vars(m).get(name) is original]
            wrapped += [(stage, module, name) for module in users]
        originals = [(owner, name, getattr(owner, name)) for _, owner, name in wrapped]
        try:
            for stage, owner, name in wrapped:
                setattr(owner, name, timed(stage, getattr(owner, name)))
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)


def build(root: Path, student: str, n_train: int, n_validation: int, batch: int, kd: bool) -> ProductLoop:
    parts = benchmark.files(root, "train", n_train), benchmark.files(root, "validation", n_validation)
    return ProductLoop(student, *parts, batch, kd)
