"""The only access to the test split, and predictions for the unlabelled evaluation set.

`tune/evaluate.py` uses this module for the networks of a study's front, `run_training.py` for the network of its run.
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
from data.features import FrontEndConfig, LogMel
from data.files import replace_text
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.device import pick_device
from trainables.engine.loop import predict
from trainables.engine.metrics import Metrics, measure
from trainables.inputs.clips import Clips, clips_of


class Deployed:
    """A deployed network that is loaded from a checkpoint `folder`, with the front-end with which it was trained.

    Raise CheckpointError if the folder is damaged, if the network has other classes than the task, or if its size
    (MACs, parameters) is not `expected`. Raise ConfigError if `device` is not available.
    """

    def __init__(self, folder: Path, device: str, expected: tuple[int, int] | None = None):
        student, extra = load_student(folder)
        if tuple(extra["classes"]) != tau.SCENES:
            raise CheckpointError(
                f"{folder} has the classes {extra['classes']}; expected {tau.SCENES}: evaluate a network of this task"
            )
        self.front_end_config = FrontEndConfig(**extra["frontend"])
        self.size = get_torch_size(student, (1, 1, self.front_end_config.n_mels, self.front_end_config.frames))
        if expected is not None and self.size != expected:
            raise CheckpointError(
                f"{folder} holds a network of {self.size[0]:,} MACs and {self.size[1]:,} parameters; expected the one "
                f"that was measured there, of {expected[0]:,} MACs and {expected[1]:,} parameters: restore the folder"
            )
        try:
            where = pick_device(device)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.student: Student = student.to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.front_end = LogMel(self.front_end_config).to(where)

    def logits(self, clips: Clips) -> torch.Tensor:
        """Return the logits `[N, C]` of the network for `clips`, on the CPU."""
        return predict(self.student, clips, self.front_end)

    def measure(self, clips: Clips) -> Metrics:
        """Return the metrics of the network on `clips`."""
        return measure(self.logits(clips).numpy(), clips.labels, clips.devices)


def open_test_clips(config: TrialConfig, sample_rate: int, progress: bool = False) -> Clips:
    """Return the clips of the test split at `sample_rate` Hz."""
    d = config.data
    root, cache_dir = tau.dataset_root(d.dataset_dir), Path(d.cache_dir)
    table = tau.read_split(root, "test", d.split_dir, cache_dir / "split_setup")
    cache = open_cache(root, list(table.filename), sample_rate, cache_dir, d.skip_broken, progress, d.num_workers)
    return clips_of(table, cache, "test")


def predict_evaluation_set(deployed: Deployed, config: TrialConfig, path: Path, progress: bool = False) -> int:
    """Write the predictions for the evaluation set to `path` and return the number of clips.

    The file has the challenge's format: tab-separated, filename without its folder, scene_label, one
    probability per scene. Raise DatasetError if there is no evaluation set.
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
