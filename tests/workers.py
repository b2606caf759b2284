"""What the tests run in fresh processes (`conftest.fresh_processes`); results go to files."""

import os
import signal
import time
from pathlib import Path

import torch

from ascmodels.checkpoint import load_student
from data import cache


def build_cache(root: Path, names: list[str], folder: Path, waiting: Path, parties: int, result: Path) -> None:
    """Open the cache together with the others that wait; write how many clips this process decoded, and the key."""
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
    """SIGKILL in the middle of a build."""
    torch.set_num_threads(1)
    read, count = cache.read_clip, iter(range(10**9))

    def read_or_die(path: Path):
        if next(count) == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path)

    cache.read_clip = read_or_die
    cache.open_cache(root, names, 8000, folder, progress=False)


def write_logits(checkpoint: Path, inputs: Path, result: Path) -> None:
    """Logits of a saved student for the saved inputs."""
    torch.set_num_threads(1)
    student, _ = load_student(checkpoint)
    with torch.no_grad():
        torch.save(student(torch.load(inputs, weights_only=True)), result)
