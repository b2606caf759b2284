"""A study that is running while its live page is served."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analysis.front import pareto_points
from tests.support.driven_study import Driver, measured
from tests.support.example_study import write_study
from tune.commands.live import Server
from tune.commands.status import current_study
from tune.study.journal import read_state
from tune.study.reader import open_place


def running_study(folder: Path, trials: int = 12) -> Path:
    """Write a study with `trials` measured trials, and t0000 in training; return its folder."""
    write_study(folder, status="running", trials=None, num_samples=18)
    (folder / "points.csv").unlink()
    driver = Driver(folder)
    driver.create("t0000")
    driver.epoch("t0000", 3)
    measure_more(driver, 1, trials)
    driver.close()
    return folder


def measure_more(driver: Driver, first: int, last: int) -> None:
    """Record trials `first` to `last`, each with a dense and a pruned network, which extend the front."""
    for i in range(first, last + 1):
        name = f"t{i:04d}"
        driver.create(name)
        driver.epoch(name, 8)
        driver.point(name, measured(0, 0.5 + 0.01 * i, 4_000_000 + 100_000 * i))
        driver.epoch(name, 10, stage=1, epoch=2)
        driver.point(name, measured(1, 0.4 + 0.01 * i, 2_000_000 + 100_000 * (i % 5)))
        driver.end(name)


def best_points(folder: Path) -> list[list[Any]]:
    """Return [trial, step] of the points of the front, sorted by MACs."""
    best = pareto_points(current_study(folder, read_state(folder)))
    return best[["trial_id", "step"]].to_numpy().tolist()


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Yield the port of a server of the study in `folder`; it stops at the end of the block."""
    server = Server(open_place(str(folder)), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
