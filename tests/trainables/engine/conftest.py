"""Fixtures of the tests of training options."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from ascmodels.teachers import TeacherModelConfig, build_teacher, save_teacher
from data.cache import open_cache
from data.config.frontend import FrontEndConfig
from data.tau import SCENES, read_split
from tests.support.trainables.epochs import with_
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.engine.device import set_up_process
from trainables.inputs.clips import Clips


@pytest.fixture(scope="module")
def config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """Two dense epochs, one prune step of two epochs, a student at 16 kHz; no augmentation, no distillation."""
    set_up_process(1)
    folder = tmp_path_factory.mktemp("options")
    off = [f"augment.{name}=0" for name in ("roll_s", "freq_mask", "mixstyle_p")]
    return compose(
        [
            f"data.dataset_dir='{tiny_tau}'",
            f"data.cache_dir='{folder}'",
            *("frontend.sample_rate=16000", "frontend.n_fft=512", "frontend.win_length=512", "frontend.n_mels=16"),
            *("frontend.hop_length=400", "student.base_channels=8", "train.epochs=2", "train.batch_size=16"),
            *("student.n_blocks=[1,1]", "student.strides=[b1:2x2]"),
            *("prune.epochs=2", "prune.ratios=[0.3]", "train.device=cpu", "teacher.train.device=cpu"),
            *off,
        ]
    )


@pytest.fixture(scope="module")
def clips(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """The tiny training split (50 clips) with random teacher logits."""
    table = read_split(tiny_tau, "split100")
    cache = open_cache(tiny_tau, list(table.filename), 8000, tmp_path_factory.mktemp("cache"), progress=False)
    teacher = 3 * torch.randn(len(table), 10, generator=torch.Generator().manual_seed(0))
    return Clips(cache, cache.rows(list(table.filename)), table.label.to_numpy(), table.device.to_numpy(str), teacher)


def untrained_teacher(folder: Path, seed: int, rate: int = 32_000) -> str:
    front_end = FrontEndConfig(rate, 1024, 800, 500, 16, mean=-3.0, std=4.0)
    torch.manual_seed(seed)
    shape = TeacherModelConfig(hidden_size=16, layers=1, heads=2)
    teacher = build_teacher(shape, len(SCENES), front_end.n_mels, front_end.frames)
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(4)  # logits that differ between clips
    extra = {"classes": list(SCENES), "frontend": asdict(front_end), "validation": "", "val_macro_avg_acc": 0.1}
    save_teacher(folder / f"teacher{seed}", teacher, extra)
    return str(folder / f"teacher{seed}")


@pytest.fixture(scope="module")
def with_teachers(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """`config` with online distillation from two teachers of unequal weight, one of them at another sample rate."""
    folder = tmp_path_factory.mktemp("teachers")
    names = [untrained_teacher(folder, 0, 16_000), untrained_teacher(folder, 1)]
    return with_(
        config, f"distill.teacher_ckpts={json.dumps(names)}", "distill.teacher_weights=[1,3]", 'distill.mode="online"'
    )
