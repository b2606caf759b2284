"""One trial, without Ray: train the dense student, then prune and retrain step by step, measuring each network.

    trial = Trial(config, load_trial_data(config), folder)      # the deployed networks are written to `folder`
    for record in run_trial(trial): ...                         # trains one epoch, and yields its results

`run_trial` (stages.py) continues from the current stage and epoch of `trial`. To restore a saved trial, create a
`Trial` with the same arguments, call its method `load`, and call `run_trial`.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ascmodels import checkpoint
from ascmodels.checkpoint import CheckpointError
from ascmodels.compress.plan import plan_sizes
from ascmodels.config.prune import PruneConfig, PruningError
from ascmodels.students import Student, Widths, build_student
from data import tau
from data.features import LogMel
from data.files import mend_folder
from data.impulse import impulses_for
from trainables.config.differences import differences
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.averages import Soup, WeightAverage
from trainables.engine.deployment import describe_use, placed
from trainables.engine.device import precision, set_up_process, training_device
from trainables.engine.graphs import StepGraphs, graphs_for
from trainables.engine.loop import BatchTeacher
from trainables.engine.optimizer import load_state, new_optimizer
from trainables.engine.schedule import schedule
from trainables.inputs.fingerprint import clips_hash
from trainables.outputs.records import Point, point_dict
from trainables.outputs.restored import restored_point
from trainables.trial.data import TrialData
from trainables.trial.start import Start, Weights


class Trial:
    """The state of one trial: position (stage, epoch), network, optimiser, and the points measured so far.

    `run_trial` trains the trial. `data` is the result of `load_trial_data`. The deployed network of each point is
    written to `folder`. `start` describes the origin of the first network; None: a new network with initial weights.
    With `validate_pruned`, each pruned network is also validated before it is retrained (`Point.val_acc_pruned`).

    The constructor raises an error if the configuration cannot be trained. Examples: the MACs of a layer cannot be
    counted, a pruning ratio would empty a layer, or the device does not exist.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: TrialData,
        folder: Path,
        start: Start | None = None,
        validate_pruned: bool = False,
    ):
        self.config, self.data, self.folder = config, data, folder
        self.clips_hash = clips_hash(data)
        self.start, self.validate_pruned = start or Start(), validate_pruned
        if config.distill.taught and data.train.teacher is None and data.online is None:
            raise ValueError(
                f"distill.kd_alpha={config.distill.kd_alpha} or distill.feature_weight={config.distill.feature_weight} "
                "needs a teacher, but `data` has none; expected the result of `load_trial_data`: pass it, or set "
                "kd_alpha=1 and feature_weight=0 to train without a teacher"
            )
        self.sizes = self._plan_sizes()
        set_up_process(config.train.threads)
        try:
            self.device = training_device(config.train)
            amp = precision(config.train.amp, self.device)
            self.config = config = replace(config, train=replace(config.train, amp=amp))
            if not self.start.from_base or config.prune.lr_mode == "rewind":  # raises if the warm-up is too long
                schedule(config.train, config.train.epochs * config.train.epoch_steps(len(data.train.rows)))
        except ValueError as error:
            raise ConfigError(f"the trial cannot be trained: {error}") from error
        self.front_end = LogMel(config.frontend).to(self.device)
        self.impulses = impulses_for(config.augment, config.frontend.sample_rate, self.device)
        self.teachers: BatchTeacher | None = None
        if data.online:
            with_features = config.distill.feature_weight > 0
            self.teachers = data.online.batch_teacher(config.augment, self.device, config.train.amp, with_features)
        self.reset()
        if base := self.start.base:
            checkpoint.check_same_architecture(base.config, config.student, "the base")
            self.place(base.rebuilt())

    @property
    def network(self) -> Student:
        """The network to validate, deploy and prune: with train.ema_decay, the average of the weights, else `model`."""
        return self.average.network if self.average else self.model  # type: ignore[return-value]

    @property
    def n_stages(self) -> int:
        if self.start.plan:
            return len(self.start.plan)
        return 2 if self.start.prunes_to_widths else 1 + self.config.prune.rounds

    @property
    def total_epochs(self) -> int:
        """The number of epochs of all stages together."""
        return self.stage_epochs(0) + self.stage_epochs(1) * (self.n_stages - 1)

    def stage_epochs(self, stage: int) -> int:
        """Return the number of epochs of `stage`; 0 for stage 0 of a trial that starts from a trained student."""
        if stage:
            return self.config.prune.epochs
        return 0 if self.start.from_base else self.config.train.epochs

    def reset(self) -> None:
        """Reset the trial to its state before the first epoch: initial weights, no points."""
        self.stage = self.epoch = self.epochs = 0
        self.points: list[Point] = []
        self.val_acc_pruned: float | None = None  # accuracy of this stage's network before retraining
        self.optimizer: torch.optim.AdamW | None = None
        self.graphs: StepGraphs | None = None  # the recorded steps of this stage, with train.cuda_graph
        self.average: WeightAverage | None = None  # average of this stage's weights, with train.ema_decay
        self.soup = Soup(self.config.train.soup)  # the best epochs of this stage
        self.weights = Weights.OWN
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.training_seed)
            model = build_student(self.config.student, len(tau.SCENES), self.start.first_widths)
        self.place(model)

    def end_stage(self, point: Point, deployed: Student) -> None:
        """Store the `point` of the current stage, save its `deployed` network, and advance to the next stage.

        When this function returns, the network is on disk, so that no reported point lacks its network. If a restored
        trial repeats a stage, the network replaces the earlier one, which is deleted only when the new one is complete.
        """
        extra = describe_use(self.config) | {"point": point_dict(point)}
        mend_folder(self.folder / point.checkpoint)  # no other process writes here
        checkpoint.save_student(self.folder / point.checkpoint, deployed, extra)
        self.points.append(point)
        self.model, self.average = self.network, None
        self.soup = Soup(self.config.train.soup)
        self.stage, self.epoch, self.optimizer, self.val_acc_pruned = point.step + 1, 0, None, None

    def save(self, folder: Path) -> None:
        """Save the complete state of the trial to `folder`, from which `load` restores it."""
        checkpoint.save_student(folder / "student", self.model, describe_use(self.config))
        state = {
            "config": json.dumps(self.config.flat()),
            "clips": self.clips_hash,
            "weights": self.weights.value,
            "position": [self.stage, self.epoch, self.epochs],
            "from_base": self.start.from_base,
            "widths": json.dumps(asdict(self.start.widths)) if self.start.widths else None,
            "sizes": [list(size) for size in self.sizes],
            "val_acc_pruned": self.val_acc_pruned,
            "points": json.dumps([point_dict(p) for p in self.points]),
            "optimizer": self.optimizer.state_dict() if self.optimizer and self.epoch else None,
            "averaged": self.average is not None,
            "soup": self.soup.state(),
        }
        if self.average:
            checkpoint.save_student(folder / "average", self.network, describe_use(self.config))
        torch.save(state, folder / "trial.pt")

    def load(self, folder: Path, adopt: Collection[str] = ()) -> None:
        """Restore the state that `save` wrote to `folder`.

        Raise CheckpointError for a damaged file, another architecture, other clips or another configuration. The paths
        of folders and the device may differ, because a study may be continued on another machine. The configuration
        keys in `adopt` may differ, too: the trial then adopts the state of another trial (population based training),
        and continues with its own values of these keys.
        """
        with checkpoint.reading(f"checkpoint {folder}", "the state of a trial as asc-tune writes it"):
            self._load(folder, adopt)

    def _load(self, folder: Path, adopt: Collection[str]) -> None:
        state = checkpoint.load_tensors(folder / "trial.pt")
        student, _ = checkpoint.load_student(folder / "student", expected=self.config.student)
        differing = differences(json.loads(state["config"]), self.config.flat())
        refused = "; ".join(f"{k}: {values}" for k, values in differing.items() if k not in adopt)
        if refused:
            raise CheckpointError(
                f"checkpoint {folder} was saved with another configuration: {refused}; set these keys to the "
                "checkpoint's values, or start a new run"
            )
        weights = _weights_of(state)
        if differing and weights is Weights.SHARED:
            raise CheckpointError(
                f"checkpoint {folder} has no weights: its trial read a shared dense phase. Expected weights, because "
                f"this trial does not use this phase (it differs in {', '.join(differing)}): use a checkpoint of a "
                "later stage, or set these keys to the checkpoint's values"
            )
        if state.get("clips", self.clips_hash) != self.clips_hash:
            raise CheckpointError(
                f"the trial in checkpoint {folder} was trained or validated on other clips (hash {state['clips']}, "
                f"expected {self.clips_hash}): restore the data set and its split, or start a new run"
            )
        self.place(student)
        self.stage, self.epoch, self.epochs = _position(state["position"], self.n_stages)
        self.weights = Weights.ADOPTED if differing else weights
        # `get`: states of older versions lack these keys
        widths = Widths(**json.loads(state["widths"])) if state.get("widths") else None
        self.start = Start(widths=widths, had_base=state.get("from_base", False), plan=self.start.plan)
        if weights is Weights.SHARED and not (self.stage == 0 and self.epoch == self.epochs < self.stage_epochs(0)):
            raise ValueError(f"position={state['position']} is not in the dense stage, whose weights are shared")
        self.val_acc_pruned = state.get("val_acc_pruned")
        saved = [(int(macs), int(params)) for macs, params in state.get("sizes", self.sizes)]
        if saved != self.sizes:
            self.sizes = saved
            self._plan_later_stages()
        self.points = [restored_point(p) for p in json.loads(state["points"])]
        self.optimizer = None
        if state["optimizer"] is not None:
            self.new_optimizer()
            assert self.optimizer is not None
            load_state(self.optimizer, state["optimizer"])
        self.average = None
        if state.get("averaged"):
            network, _ = checkpoint.load_student(folder / "average", expected=self.config.student)
            self.average = WeightAverage(placed(network, self.device), self.config.train.ema_decay)
        self.soup = Soup(self.config.train.soup)
        self.soup.restore(state.get("soup", []), self.model)

    def _plan_sizes(self) -> list[tuple[int, int]]:
        """Return (MACs, parameters) of the deployed network of each stage, as planned before the training.

        Raise PruningError if a prune step is impossible.
        """
        c, start = self.config, self.start
        first = start.base.widths if start.base else start.widths
        measure = partial(
            plan_sizes, c.student, n_mels=c.frontend.n_mels, frames=c.frontend.frames, precision=c.limits.precision
        )
        if start.plan or start.prunes_to_widths:
            return [measure(PruneConfig(), widths=w)[0] for w in start.plan or (first, start.widths)]
        return measure(c.prune, widths=first)

    def _plan_later_stages(self) -> None:
        """Update the planned sizes of the later stages in `sizes`, from the widths of the current network.

        A restored trial needs this if the version of asc-tune that saved it rounded numbers of channels differently.
        """
        prune = self.config.prune
        if not prune.exact or prune.goal is not None or self.start.prunes_to_widths or self.start.plan:
            return
        measured = self.stage if self.epoch or not self.stage else self.stage - 1  # stage of `self.model`
        later = PruneConfig(prune.step_ratios[measured:], round_to=prune.round_to)
        c = self.config
        mels, frames, widths = c.frontend.n_mels, c.frontend.frames, self.model.widths
        try:
            self.sizes[measured + 1 :] = plan_sizes(c.student, later, mels, frames, c.limits.precision, widths)[1:]
        except PruningError:  # the prune step will raise it when the trial reaches it
            return

    def place(self, model: Student) -> None:
        """Move `model` to the trial's device and make it the network to train."""
        self.model = placed(model, self.device)

    def new_optimizer(self) -> None:
        """Make a new optimiser for `model`, and forget the recorded steps of the former one."""
        self.graphs = graphs_for(self.config, self.device, self.data.train.resident is not None)
        self.optimizer = new_optimizer(self.model, self.config.train.weight_decay, recorded=self.graphs is not None)


def _position(saved: Sequence[int], n_stages: int) -> tuple[int, int, int]:
    """Return the saved position of a trial: (stage, finished epochs of this stage, finished epochs of all stages).

    After the last stage, `stage` is `n_stages`. ValueError if `saved` is no position of a trial with `n_stages` stages.
    """
    stage, epoch, epochs = (int(n) for n in saved)
    if not (0 <= stage <= n_stages and 0 <= epoch <= epochs):
        raise ValueError(
            f"position={saved}; expected 3 integers: stage (0 to {n_stages}), its finished epochs, those of all stages"
        )
    return stage, epoch, epochs


def _weights_of(state: Mapping[str, Any]) -> Weights:
    """Return which training gave the weights in the saved `state`: the trial's own, a shared dense phase, or another's.

    States of older versions of asc-tune have the flags `in_parent` and `adopted` instead of the key `weights`.
    """
    if "weights" in state:
        return Weights(state["weights"])
    if state.get("in_parent"):
        return Weights.SHARED
    return Weights.ADOPTED if state.get("adopted") else Weights.OWN
