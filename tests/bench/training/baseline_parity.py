"""Compare recipe=dcase2024 with the baseline's training, and networks of all clips with networks of a search.

    TAU24_PATH=... python -m tests.bench.training.baseline_parity --out study --seeds 0 1 2 3 4 --batch_size=32
    python -m analysis.paired study/raw.csv --pairs refitted:recreation,refitted:search

The network is CP-Mobile. The arms:

    recreation  the baseline's training, written again from its description in plain PyTorch
                (tests/bench/speed/baseline_loop.py), on all clips of the training split
    refitted    recipe=dcase2024 on all clips of the training split (data.validation_share=0), as a refit trains
    search      recipe=dcase2024 on the clips that are left after a fifth is held out, as a search trains

`recreation` shares with our code the initial weights' distribution, the csv files of the data set and the number of
epochs; decoding, resampling, augmentation, network, optimiser and schedule are its own. The networks of all arms are
those of the last epoch. The test split is measured once for each network, after its training. The file raw.csv has one
row for each arm and seed; a benchmark that was killed continues when it is repeated.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from transformers import get_cosine_schedule_with_warmup

from ascmodels.students.base import initialise
from data import tau
from tests.bench.speed.baseline_loop import BaselineLoop, WavFiles
from tests.bench.training.rows import Row, add, trained_and_tested
from trainables.config.schema import TrialConfig
from trainables.engine.device import set_up_process
from trainables.single.command import configure, guarded, prepare
from trainables.trial.trial import Trial

ARMS = {"recreation": 0.0, "refitted": 0.0, "search": 0.2}  # -> data.validation_share


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for raw.csv and the networks")
    p.add_argument("--storage", type=Path, default=Path("runs"), help="folder for caches (default: runs)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="random seeds (default: 0 1 2 3 4)")
    p.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="arms to train (default: all)")
    p.add_argument("--epochs", type=int, default=16, help="epochs of each training (default: 16)")
    options, words = p.parse_known_args(argv)

    def work(console: Console) -> int:
        out: Path = options.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for arm in options.arms:
                fixed = ["recipe=dcase2024", "student=cp_mobile", "--subset=100", f"--n_epochs={options.epochs}"]
                share = f"--validation_share={ARMS[arm]}"
                config = configure([*fixed, *words, share, f"seed={seed}"], options.storage)
                set_up_process(config.train.threads)

                def train(arm=arm, config=config) -> Row:
                    if arm == "recreation":
                        return recreation(config)
                    config, data = prepare(config, console)
                    return trained_and_tested(Trial(config, data, out / f"{arm}-{config.seed}"), f"{arm} {config.seed}")

                add(out / "raw.csv", arm, seed, train)
        return 0

    return guarded(work)


def recreation(config: TrialConfig) -> Row:
    """Train the baseline's network with the baseline's loop on all training clips; return its test accuracy."""
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    root, c = tau.dataset_root(config.data.dataset_dir), config.train
    splits = Path(config.data.cache_dir) / "split_setup"
    parts = [tau.read_split(root, name, config.data.split_dir, splits) for name in ("split100", "test")]
    files = [
        WavFiles(root, list(t.filename), list(t.label), list(t.device), roll=name == "train")
        for name, t in zip(("train", "test"), parts, strict=True)
    ]
    loop = BaselineLoop("cp_mobile", files[0], files[1], c.batch_size, 0, None)
    loop.model.apply(initialise)
    n_steps = c.epochs * len(loop.train_loader)
    # 2,000 steps in the original, of about 41,000 with TAU's 25 % split; half of a short training, as in our recipe
    loop.schedule = get_cosine_schedule_with_warmup(loop.optimizer, min(2000, n_steps // 2), n_steps)
    for epoch in range(c.epochs):
        print(f"recreation, seed {config.seed}, epoch {epoch + 1}: loss {loop.train_epoch():.3f}", flush=True)
    results = loop.validate()
    accuracies = [value for key, value in results.items() if key.startswith("correct of class")]
    return {"val_macro_avg_acc": None, "test_macro_avg_acc": float(np.mean(accuracies)), "epochs": c.epochs}


if __name__ == "__main__":
    sys.exit(main())
