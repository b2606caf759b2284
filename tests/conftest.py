"""Fixtures shared by the tests: a tiny data set in TAU's layout, and fresh processes."""

import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("WANDB_MODE", "offline")

import torch

from tests.support.tau import make_tau

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a Ray cluster first: they take longest, and two processes share the files in this order."""
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in with_ray)


@pytest.fixture(scope="session")
def tiny_tau(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development set's folder; read only."""
    return make_tau(tmp_path_factory.mktemp("tau") / "TAU-urban-acoustic-scenes-2022-mobile-development")


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the clips whose files are looked at (stat), in order; the real call follows."""
    names, real = [], Path.stat

    def stat(self: Path, **options):
        if self.suffix == ".wav":
            names.append(self.name)
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    return names


@pytest.fixture(scope="session")
def fresh_processes() -> Callable[..., list[Any]]:
    """`run(function, *argument_tuples)`: one new process each, at once; their exit codes.

    New interpreters, not copies of this one: they know nothing that the test has in memory.
    """
    context = multiprocessing.get_context("forkserver")
    # only what others wrote is loaded ahead: it is slow, and holds none of our state
    context.set_forkserver_preload(["pandas", "soundfile", "safetensors.torch", "torchaudio", "torchinfo", "tqdm"])

    def run(function: Callable[..., Any], *argument_tuples: tuple[Any, ...]) -> list[Any]:
        processes = [context.Process(target=function, args=arguments) for arguments in argument_tuples]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

    return run


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 256 kB."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
