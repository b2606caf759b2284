"""The searcher: Ray's OptunaSearch, told what a configuration costs before anything is trained.

Every sampled configuration is built and measured (dense and after each prune step) first. One that fits the limits at
no stage never reaches an actor: it is told to Optuna as violating its constraint, and counted.
"""

import json
import pickle
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from ascmodels.checkpoint import replace_text
from ascmodels.nessi import Limits, size_bytes
from ascmodels.schedules import PruneConfig, schedule_sizes
from ascmodels.students import StudentConfig
from search_spaces import Space
from trainables.config import TrialConfig

OBJECTIVES = {"val_macro_avg_acc": "max", "macs": "min"}  # the one place that states the directions
MAX_REJECTIONS = 200  # in a row, before the space is declared without a feasible point
SEARCHER = "searcher.json"  # in the study's folder: what was rejected and why, and whether the space is used up
_CONSTRAINT = "limits"  # relative excess of the cheapest stage; Optuna takes <= 0 for feasible


def read_searcher(study_dir: Path) -> dict[str, Any]:
    """`rejected`: reason -> number of sampled configurations that never reached an actor; `examples`: one message for
    each reason; `exhausted`: whether MAX_REJECTIONS in a row ended the sampling."""
    path = study_dir / SEARCHER
    return json.loads(path.read_text()) if path.is_file() else {"rejected": {}, "examples": {}, "exhausted": False}


@lru_cache(maxsize=4096)
def stage_sizes(
    student: StudentConfig, prune: PruneConfig, n_mels: int, frames: int, precision: str = "fp16"
) -> tuple[tuple[int, int], ...]:
    """(MACs, params) of every stage, an estimate unless `prune.exact`; remembered, since samplers come back to the
    same architectures."""
    return tuple(schedule_sizes(student, prune, n_mels, frames, precision))


def violation(sizes: tuple[tuple[int, int], ...], limits: Limits) -> float:
    """The least relative excess over the limits of any stage; <= 0 when one stage fits."""
    return min(
        max(macs / limits.macs, size_bytes(params, limits.precision) / limits.bytes) - 1 for macs, params in sizes
    )


class FeasibleOptunaSearch(OptunaSearch):
    """Multi-objective TPE over a `Space`; `base` is the flat configuration that samples are laid over."""

    def __init__(self, space: Space, base: dict[str, Any], study_dir: str, seed: int):
        sampler = optuna.samplers.TPESampler(seed=seed)
        super().__init__(
            space=space.sample,  # kept by the base class as "define by run"; `suggest` below draws from it
            metric=list(OBJECTIVES),
            mode=list(OBJECTIVES.values()),
            sampler=sampler,
        )
        self._search_space, self._base, self._study_dir = space, base, study_dir
        self._seen: set[str] = set()
        self._accepted = 0
        self.rejected: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next feasible configuration, or FINISHED when MAX_REJECTIONS in a row were none."""
        before = self.rejected.total()
        for _ in range(MAX_REJECTIONS):
            asked = self._study.ask()
            values = self._search_space.sample(asked)
            reason, example = self._reject(asked, values)
            if not reason:
                self._ot_trials[trial_id] = asked
                self._accepted += 1
                if self.rejected.total() > before:
                    self._write(exhausted=False)
                name = f"t{self._accepted - 1:04d}"
                return self._base | values | {"trial": name, "study_dir": self._study_dir}
            self.rejected[reason] += 1
            self._examples.setdefault(reason, example)
            self._study.tell(asked, state=TrialState.PRUNED)
        self._write(exhausted=True)
        return Searcher.FINISHED

    def _write(self, exhausted: bool) -> None:
        told = {"rejected": self.rejected, "examples": self._examples, "exhausted": exhausted}
        replace_text(Path(self._study_dir) / SEARCHER, json.dumps(told, indent=1))

    def _reject(self, asked: optuna.Trial, values: dict[str, Any]) -> tuple[str, str]:
        """Why a configuration must not be trained, and in which words; empty when it may."""
        key = json.dumps(values, sort_keys=True)
        if key in self._seen:
            return "sampled before", key
        self._seen.add(key)
        try:
            config = TrialConfig.from_flat(self._base | values)
            shape = config.frontend.n_mels, config.frontend.frames
            sizes = stage_sizes(config.student, config.prune, *shape, config.limits.precision)
        except ValueError as error:  # of the configuration's own checks, or a prune step that cannot be taken
            asked.set_constraint(_CONSTRAINT, 1.0)
            return "cannot be built or pruned", f"{key}: {error}"
        excess = violation(sizes, config.limits)
        asked.set_constraint(_CONSTRAINT, excess)
        return ("over the limits at every stage", f"{key}: {sizes}") if excess > 0 else ("", "")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A finished trial's last point becomes its values; an early-stopped one is `pruned`, a failed one `fail`."""
        if trial_id in self._completed_trials or trial_id not in self._ot_trials:
            return
        if not error and result and result.get("finished"):
            super().on_trial_complete(trial_id, result, error)
            return
        failed = error or not result or "failure" in result
        self._study.tell(self._ot_trials[trial_id], state=TrialState.FAIL if failed else TrialState.PRUNED)
        self._completed_trials.add(trial_id)

    @property
    def _study(self) -> optuna.Study:
        assert self._ot_study is not None  # made by the base class, since metric and mode are given
        return self._ot_study

    def save(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "wb") as handle:  # noqa: PTH123 - Ray passes a string and swaps the file in
            pickle.dump(self.__dict__, handle)

    def restore(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "rb") as handle:  # noqa: PTH123
            self.__dict__.update(pickle.load(handle))
