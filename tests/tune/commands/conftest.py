"""Fixtures of the tests of commands: the command line, and what it prints when it refuses."""

from pathlib import Path

import pytest
import ray

from tests.support.driven_study import Commands
from tune.run import main

SMALL = ("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "teacher.train.epochs=1")


@pytest.fixture
def typed(tmp_path: Path, tiny_tau: Path) -> Commands:
    return Commands(tmp_path / "runs", tiny_tau)


@pytest.fixture
def run(tiny_tau: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that calls tune/run.py with `words` and returns the printed text.

    It fails unless the command is refused and no study is written.
    """

    def type_command(*words: str, dataset: Path | None = None) -> str:
        storage = tmp_path / "runs"
        data_words = [f"--dataset_dir={dataset or tiny_tau}", f"--cache_dir={tmp_path / 'cache'}", *SMALL]
        storage_words = [] if "--storage" in words else ["--storage", str(storage)]
        assert main([*words, *storage_words, *data_words]) == 2
        assert not list(storage.glob("*/*")), "something was written"
        return " ".join(capsys.readouterr().out.split())

    return type_command


@pytest.fixture
def refused_early(run, tmp_path: Path):
    """Like `run`, for commands that must be refused before any work: no folder, no lock, no decoded clip, no Ray."""

    def type_command(*words: str) -> str:
        printed = run(*words)
        assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()
        assert printed.count("error:") == 1 and not ray.is_initialized()
        return printed

    return type_command
