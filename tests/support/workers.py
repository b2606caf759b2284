"""Functions that tests run in new processes (`conftest.fresh_processes`); they write their results to files."""

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ascmodels.checkpoint import load_student
from data import cache

if TYPE_CHECKING:
    from trainables.config.schema import TrialConfig
    from trainables.engine.loop import EpochResult


def build_cache(root: Path, names: list[str], folder: Path, waiting: Path, parties: int, result: Path) -> None:
    """Open the waveform cache of the clips `names` at the same moment as the other processes.

    Wait until `parties` processes have created a file in the folder `waiting`. Write the number of clips that this
    process decoded, and the key of the cache, to `result`.
    """
    torch.set_num_threads(1)
    decoded = []
    read = cache.read_clip
    cache.read_clip = lambda path: (decoded.append(path), read(path))[1]
    (waiting / str(os.getpid())).touch()
    while len(list(waiting.iterdir())) < parties:
        time.sleep(0.001)
    opened = cache.open_cache(root, names, 8000, folder, progress=False)
    result.write_text(f"{len(decoded)} {opened.key}")


def die_building_cache(root: Path, names: list[str], folder: Path) -> None:
    """Kill this process (SIGKILL) while it builds the waveform cache, after 40 clips."""
    torch.set_num_threads(1)
    read, count = cache.read_clip, iter(range(10**9))

    def read_or_die(path: Path):
        if next(count) == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path)

    cache.read_clip = read_or_die
    cache.open_cache(root, names, 8000, folder, progress=False)


def write_logits(checkpoint: Path, inputs: Path, result: Path) -> None:
    """Write the logits of the student in `checkpoint` for the inputs in the file `inputs` to the file `result`."""
    torch.set_num_threads(1)
    student, _ = load_student(checkpoint)
    with torch.no_grad():
        torch.save(student(torch.load(inputs, weights_only=True)), result)


def train_shared(config: "TrialConfig", folder: Path, name: str, dies: bool) -> None:
    """Train the dense phase of one of three trials that share it (a shared dense parent).

    `folder`/`name`.trained lists the epochs that this process started, and `folder`/`name`.json contains the validation
    losses. If `dies`, the process holds the lock of the shared phase, waits in its second epoch for the other two
    processes, and then kills itself (SIGKILL).
    """
    from trainables.engine.device import set_up_process
    from trainables.trial import stages  # a slow import that the other functions do not need
    from trainables.trial.data import load_trial_data
    from trainables.trial.dense_phase import run_shared
    from trainables.trial.trial import Trial

    set_up_process(1)
    train_epoch = stages.train_epoch
    data = load_trial_data(config)

    def wait_for(*files: str) -> None:
        while not all((folder / file).exists() for file in files):
            time.sleep(0.01)

    def train(*arguments) -> "EpochResult":
        with (folder / f"{name}.trained").open("a") as stream:
            stream.write(f"{arguments[3].where}\n")
        if dies and "epoch 2" in arguments[3].where:
            (folder / "holding").touch()
            wait_for("one.ready", "two.ready")
            time.sleep(0.3)  # until the others have found the lock held
            os.kill(os.getpid(), signal.SIGKILL)
        return train_epoch(*arguments)

    stages.train_epoch = train
    trial = Trial(config, data, folder / name)
    if not dies:
        wait_for("holding")
        (folder / f"{name}.ready").touch()
    losses = [record.val_loss for record in run_shared(trial, folder / "parents")]
    (folder / f"{name}.json").write_text(json.dumps(losses))
