"""Teachers: fine-tune one on the training part, keep its best epoch on validation, cache its logits by filename.

folder = fine_tuned_teacher(config)                       # content-addressed: trained once
logits = teacher_logits(config, folder, filenames)        # [N, C], computed once
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ascmodels.teachers import Teacher, build_teacher, load_teacher, save_teacher
from data import tau
from data.features import FrontEndConfig, LogMel
from data.files import locked
from trainables.config import TrialConfig
from trainables.distill import folder_hash, load_logits, save_logits
from trainables.loop import Clips, learning_rate, pick_device, predict, set_up_process, train_epoch
from trainables.metrics import measure
from trainables.trial import load_clips

FORMAT = 1


def fine_tuned_teacher(config: TrialConfig, progress: bool = False) -> Path:
    """Folder of the teacher that `config.teacher` describes, trained first where it is not there yet."""
    cache_dir = Path(config.data.cache_dir)
    clips = load_clips(config, config.teacher.frontend.sample_rate, progress)
    described = {k: v for k, v in config.flat().items() if k.startswith(("teacher.", "seed", "data.validation"))}
    described |= {"waveforms": clips.train.cache.key, "train": clips.train.rows.tolist(), "format": FORMAT}
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / f"teacher-{key}"
    with locked(cache_dir / f"teacher-{key}.lock"):
        if not folder.is_dir():
            _fine_tune(config, clips.train, clips.validation, folder, progress)
    return folder


def _fine_tune(config: TrialConfig, train: Clips, validation: Clips, folder: Path, progress: bool) -> None:
    c = config.teacher
    set_up_process(c.train.threads)
    device = pick_device(c.train.device)
    front_end = LogMel(c.frontend).to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout draws from it
        torch.manual_seed(config.seed)
        teacher = build_teacher(c.model, len(tau.SCENES), c.frontend.n_mels, c.frontend.frames).to(device)
        optimizer = torch.optim.AdamW(teacher.parameters(), lr=1.0, weight_decay=c.train.weight_decay)
        steps = -(-len(train.rows) // c.train.batch_size)
        best, best_state = -1.0, {}
        with tqdm(range(c.train.epochs), desc="teacher", unit="epoch", disable=not progress) as bar:
            for epoch in bar:
                loss = train_epoch(
                    teacher,
                    optimizer,
                    train,
                    front_end,
                    c.augment,
                    lambda logits, labels, _: F.cross_entropy(logits, labels),
                    lambda i, first=epoch * steps: learning_rate(
                        first + i, c.train.epochs * steps, c.train.lr, c.train.warmup
                    ),
                    c.train.batch_size,
                    np.random.default_rng([config.seed, epoch]),
                )
                logits = predict(teacher, validation, front_end).numpy()
                accuracy = measure(logits, validation.labels, validation.devices).macro_avg_acc
                if accuracy > best:
                    best = accuracy
                    best_state = {k: v.detach().cpu().clone() for k, v in teacher.state_dict().items()}
                bar.set_postfix(loss=f"{loss:.3f}", val_macro_avg_acc=f"{accuracy:.3f}")
    teacher.load_state_dict(best_state)
    extra = {
        "classes": list(tau.SCENES),
        "frontend": asdict(c.frontend),
        "val_macro_avg_acc": best,
        "validation": validation_hash(validation),
    }
    save_teacher(folder, teacher.cpu(), extra)


def teacher_logits(config: TrialConfig, folder: Path, filenames: Sequence[str], progress: bool = False) -> torch.Tensor:
    """Logits `[len(filenames), C]` of the teacher in `folder`; key: checkpoint, waveforms, front-end.

    CheckpointError for a teacher of other classes, or when a file has no logits.
    """
    cache_dir = Path(config.data.cache_dir)
    teacher, extra = load_teacher(folder, tau.SCENES)
    front_end = FrontEndConfig(**extra["frontend"])
    clips = load_clips(config, front_end.sample_rate, progress).train
    text = f"{FORMAT} {folder_hash(folder)} {clips.cache.key} {extra['frontend']} {clips.rows.tolist()}"
    path = cache_dir / f"logits-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            logits = _predict_all(teacher, replace(config.teacher, frontend=front_end), clips)
            save_logits(path, [clips.cache.filenames[row] for row in clips.rows], logits)
    return load_logits(path, filenames)


def _predict_all(teacher: Teacher, config, clips: Clips) -> torch.Tensor:
    device = pick_device(config.train.device)
    return predict(teacher.to(device), clips, LogMel(config.frontend).to(device))


def validation_hash(validation: Clips) -> str:
    """Of the clips held out: a teacher that was fine-tuned on another division may have learnt from them."""
    names = sorted(validation.cache.filenames[row] for row in validation.rows)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def teacher_summary(folder: Path) -> dict[str, object]:
    """Name and validation accuracy of a teacher, for manifests and reports."""
    extra = json.loads((folder / "teacher.json").read_text())
    return {"name": folder.name, "val_macro_avg_acc": extra["val_macro_avg_acc"], "validation": extra["validation"]}
