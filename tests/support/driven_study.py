"""Studies without training for tests: the checks of tune/run.py before Ray starts, and the files a driver writes.

folder = Commands(storage, dataset).start("x", ended=2, opened=1)     # a study whose driver was killed
driver = Driver(folder)                                               # a new driver of this study
driver.train("t0003")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from analysis.manifest import StudyManifest
from search_spaces import Space, load_space
from trainables.outputs.records import Point, point_dict
from tune.options import new_study, read_request
from tune.reporting.tables import StudyTables, replay
from tune.resume import find_study, resumed
from tune.study.events import (
    DriverStarted,
    EpochReported,
    PointMeasured,
    SampleRejected,
    TrialCreated,
    TrialEnded,
    TrialRestored,
)
from tune.study.journal import Reading, read_state
from tune.study.log import StudyLog
from tune.study.manifest import write_manifest
from tune.study.retry import Retry
from tune.study.writer import Journal

SMALL = ("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4")


def measured(step: int, accuracy: float, macs: int, **more: Any) -> dict[str, Any]:
    """Return an invented point in the form in which a Trainable reports a measured network; `more` replaces fields."""
    params = macs // 400
    sizes = {"bytes_fp32": 4 * params, "bytes_fp16": 2 * params, "bytes_int8": params, "sparsity": 0.1 * step}
    shares = {"class_acc": {"bus": accuracy}, "device_acc": {"a": accuracy}, "group_acc": {"real": accuracy}}
    figures = {"epochs": 8 + 2 * step, "val_loss": 1.0, "widths": {"stem": [8]}, "checkpoint": f"step{step}"}
    fixed = {"step": step, "val_macro_avg_acc": accuracy, "macs": macs, "params": params, "feasible": True}
    fields: dict[str, Any] = fixed | sizes | shares | figures | more
    return point_dict(Point(**fields))


class Driver:
    """Driver of a study that trains nothing: each method records an event in the journal and in the tables.

    Configurations are drawn at random. A new driver of a study replays its journal first, as tune/run.py does.
    """

    def __init__(self, folder: Path, space: Space | None = None, config: Mapping[str, Any] | None = None):
        self.log = StudyLog(lambda events: self.journal.append(events))
        self.state = self.log.state
        self.tables = StudyTables(folder, self.state, config or {}, Retry(lambda message: None))
        self.log.attach(self.tables)
        reading = Reading(folder)
        replay(reading, self.log, self.tables)
        self.journal = Journal(folder, reading.after)
        self.log.add(DriverStarted(command="python tune/run.py"))
        self.space = space or load_space("kd_prune")
        self._study = optuna.create_study(sampler=optuna.samplers.RandomSampler(len(self.state.trials)))

    @property
    def path(self) -> Path:
        """Path of the journal segment that this driver writes."""
        return self.journal.folder / f"{self.journal.generation:06d}-0001.jsonl"

    def create(self, name: str, **more: Any) -> None:
        drawn = self._study.ask()
        values = self.space.sample(drawn)
        fields: dict[str, Any] = {"config_id": name, "replicate": 0, "excess": -0.5, "key": name}
        fields |= {"params": drawn.params, "values": values}
        self.log.add(TrialCreated(trial=name, **(fields | more)))

    def reject(self, reason: str, example: str) -> None:
        drawn = self._study.ask()
        self.space.sample(drawn)
        self.log.add(SampleRejected(params=drawn.params, reason=reason, example=example, excess=0.4))

    def restore(self, name: str, epochs: int) -> None:
        self.log.add(TrialRestored(trial=name, epochs=epochs))

    def epoch(self, name: str, epochs: int, stage: int = 0, epoch: int | None = None) -> None:
        figures: dict[str, float | None] = {"val_macro_avg_acc": 0.4 + epochs / 100, "macs": 1e6}
        epoch = epochs if epoch is None else epoch
        self.log.add(EpochReported(trial=name, stage=stage, epoch=epoch, epochs=epochs, figures=figures))

    def point(self, name: str, point: dict[str, Any]) -> None:
        self.log.add(PointMeasured(trial=name, point=point))

    def end(self, name: str, outcome: Any = "completed", reason: str | None = None) -> None:
        self.log.add(TrialEnded(trial=name, outcome=outcome, reason=reason))

    def train(self, name: str, accuracy: float = 0.5, macs: int = 2_000_000) -> None:
        """Record a complete trial: one dense epoch and the measured dense network, without prune steps."""
        self.create(name)
        self.epoch(name, 1)
        self.point(name, measured(0, accuracy, macs))
        self.end(name)

    def close(self) -> None:
        self.tables.flush(last=True)
        self.journal.close()


class Commands:
    """The part of tune/run.py that reads the command line and checks it, for studies in `storage` on one data set."""

    def __init__(self, storage: Path, dataset: Path):
        self.storage, self.arguments = storage, (f"--dataset_dir={dataset}", *SMALL)

    def __call__(self, *words: str, storage: Path | None = None) -> tuple[StudyManifest, bool]:
        """Return the manifest that `tune/run.py WORDS` would start or resume, and whether it would train any trial."""
        request = read_request(["--storage", str(storage or self.storage), *words])
        options = request.options
        continues = options.resume or options.extend or options.confirm
        name = find_study(request.storage, request.remote, options, print) if continues else None
        if name is None:
            return new_study(request), True
        folder = request.storage / name
        return resumed(folder, request.uri(name), read_state(folder), options, request.overrides)

    def start(self, name: str, *words: str, ended: int = 1, opened: int = 1, space: str = "kd") -> Path:
        """Create a study like that of a killed driver, with `ended` complete and `opened` running trials.

        Return its folder.
        """
        manifest, _ = self("--space", space, "--name", name, *words, *self.arguments)
        folder = Path(manifest.resolved.folder)
        write_manifest(folder, manifest.changed(status="running"))
        driver = Driver(folder, load_space(space), manifest.resolved.config)
        for i in range(ended):
            driver.train(f"t{i:04d}", 0.5 + i / 100, 2_000_000 + 1000 * i)
        for i in range(ended, ended + opened):
            driver.create(f"t{i:04d}")
        driver.close()
        return folder
