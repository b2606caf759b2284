"""Measurement on the test split, and predictions for the unlabelled evaluation set.

No other module reads the test split. tune/evaluate.py uses this module to measure the networks of a study's front, and
trainables/run_training.py uses it to measure the network of a single run.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ascmodels.checkpoint import CheckpointError, load_student
from ascmodels.nessi import get_torch_size
from ascmodels.students import Student
from data import tau
from data.cache import open_cache
from data.config.frontend import FrontEndConfig
from data.features import LogMel
from data.files import replace_text
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.device import pick_device
from trainables.engine.loop import predict
from trainables.engine.metrics import Metrics, measure
from trainables.inputs.clips import Clips, clips_of


class Deployed:
    """A deployed network, loaded from the checkpoint `folder`, and the log-mel front-end that it was trained with.

    `device` is cpu, cuda or auto; `expected` is the (MACs, parameters) that the network must have (None: not checked).
    The constructor raises CheckpointError if the checkpoint is damaged, if its classes are not the ten scenes of TAU,
    or if its size is not `expected`. It raises ConfigError if `device` is not available.
    """

    def __init__(self, folder: Path, device: str, expected: tuple[int, int] | None = None):
        student, extra = load_student(folder)
        if tuple(extra["classes"]) != tau.SCENES:
            raise CheckpointError(
                f"{folder} has the classes {extra['classes']}; expected {tau.SCENES}: use another checkpoint"
            )
        self.front_end_config = FrontEndConfig(**extra["frontend"])
        self.size = get_torch_size(student, (1, 1, self.front_end_config.n_mels, self.front_end_config.frames))
        if expected is not None and self.size != expected:
            raise CheckpointError(
                f"{folder} holds a network of {self.size[0]:,} MACs and {self.size[1]:,} parameters; expected "
                f"{expected[0]:,} MACs and {expected[1]:,} parameters, as recorded at the end of its training: restore "
                "the folder from a copy"
            )
        try:
            where = pick_device(device)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.student: Student = student.to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.front_end = LogMel(self.front_end_config).to(where)

    def logits(self, clips: Clips) -> torch.Tensor:
        """Return the network's logits `[N, C]` for `clips` as a CPU tensor."""
        return predict(self.student, clips, self.front_end)

    def measure(self, clips: Clips) -> Metrics:
        """Return the classification metrics of the network on `clips`."""
        return measure(self.logits(clips).numpy(), clips.labels, clips.devices)


def open_test_clips(config: TrialConfig, sample_rate: int, progress: bool = False) -> Clips:
    """Return the clips of the test split, resampled to `sample_rate` Hz; `progress` shows progress bars.

    Raise DatasetError if files are missing, or if a scene has no clip.
    """
    d = config.data
    root, cache_dir = tau.dataset_root(d.dataset_dir), Path(d.cache_dir)
    table = tau.read_split(root, "test", d.split_dir, cache_dir / "split_setup")
    cache = open_cache(root, list(table.filename), sample_rate, cache_dir, d.skip_broken, progress, d.num_workers)
    return clips_of(table, cache, "test")


def predict_evaluation_set(deployed: Deployed, config: TrialConfig, path: Path, progress: bool = False) -> int:
    """Predict the unlabelled evaluation set with the network `deployed`, and return the number of its clips.

    The predictions are written to the file `path` in the format of the DCASE challenge: tab-separated columns for the
    filename (without its folder), the predicted scene_label, and the probability of each scene. Raise DatasetError if
    there is no evaluation set.
    """
    d = config.data
    root, names = tau.read_evaluation(tau.dataset_root(d.dataset_dir))
    rate = deployed.front_end_config.sample_rate
    cache = open_cache(root, names, rate, Path(d.cache_dir), False, progress, d.num_workers)
    unknown = np.zeros(len(names), dtype=np.int64)
    clips = Clips(cache, cache.rows(names), unknown, unknown.astype(str))
    probabilities = deployed.logits(clips).softmax(dim=1).numpy()
    table: dict[str, Any] = {
        "filename": [name.removeprefix("audio/") for name in names],
        "scene_label": [tau.SCENES[i] for i in probabilities.argmax(axis=1)],
    }
    table |= {scene: probabilities[:, i] for i, scene in enumerate(tau.SCENES)}
    replace_text(path, pd.DataFrame(table).to_csv(sep="\t", index=False))
    return len(names)
