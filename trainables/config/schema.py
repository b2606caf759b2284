"""One trial's configuration: the dataclasses of every part under one roof, and the ways to write it.

    compose(["student=rep_mobile", "train.lr=1e-3"])        Hydra overrides over `trainables/config/groups/`
    compose(flags_to_overrides(["--kd_alpha=0.6", "--subset", "5"]))     the DCASE baseline's flags
    TrialConfig.from_flat({"distill.kd_alpha": 0.6})         dotted names, as a search samples them

An unknown key is an error that names the nearest known ones.
"""

import copy
import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ascmodels.compress.plan import PruneConfig
from ascmodels.nessi import Limits
from ascmodels.students import StudentConfig
from ascmodels.teachers import TeacherModelConfig
from data.augment import AugmentConfig
from data.features import FrontEndConfig
from data.tau import DataConfig
from trainables.config.distill import DistillConfig
from trainables.config.train import TrainConfig

# what population based training changes while a trial runs: rates, which fit whatever weights there are
MUTABLE_KEYS = (
    *("train.lr", "distill.kd_alpha", "distill.kd_temp"),
    *("augment.mixstyle_p", "augment.mixstyle_alpha", "augment.mixup_alpha"),
)


class ConfigError(ValueError):
    """A configuration key or value that cannot be."""


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher that is fine-tuned when `distill.teacher_ckpts` names none."""

    model: TeacherModelConfig = field(default_factory=TeacherModelConfig)
    frontend: FrontEndConfig = field(
        default_factory=lambda: FrontEndConfig(16_000, 1024, 800, 320, 64, mean=-3.0, std=4.0)
    )
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(freq_mask=8, time_mask=4, mixstyle_p=0.2))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=25, batch_size=64, lr=1e-4))
    lr_decay: float = 1.0  # a layer's learning rate over that of the layer above it; 1: all the same

    def __post_init__(self):
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"teacher.lr_decay={self.lr_decay}: expected a factor in (0, 1]")


@dataclass(frozen=True)
class TrialConfig:
    """Everything that shapes one trial."""

    seed: int = 0
    replicate: int = 0  # which repetition of a configuration: draws all of its training anew, on the same clips
    data: DataConfig = field(default_factory=DataConfig)
    frontend: FrontEndConfig = field(default_factory=FrontEndConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: expected 0 to 2**32 - 1")
        if self.replicate < 0:
            raise ValueError(f"replicate={self.replicate}: expected 0 (the configuration's first training) or more")

    @property
    def training_seed(self) -> int:
        """Of every random draw in training; the hold-out, teachers and caches follow `seed` itself."""
        if not self.replicate:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.replicate]).generate_state(1)[0])

    def flat(self) -> dict[str, Any]:
        """Dotted name -> value, with tuples as lists: what travels through Ray and JSON."""
        return _flatten(self)

    @staticmethod
    def from_flat(values: Mapping[str, Any]) -> "TrialConfig":
        """Defaults overridden by dotted names; ConfigError for an unknown name or an unfit value."""
        known, default = key_types(), _default_flat()
        tree = copy.deepcopy(_template())  # made once: a search asks for thousands
        for key, value in values.items():
            if key not in known:
                raise ConfigError(_unknown(key, list(known)))
            if type(value) is type(default[key]) and value == default[key]:
                continue
            try:
                OmegaConf.update(tree, key, value, merge=False)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{key}={value!r}: {str(error).splitlines()[0]}") from error
        return _build(tree)


def key_types() -> dict[str, Any]:
    """Every dotted key of TrialConfig and its type."""

    def walk(cls: type, prefix: str) -> dict[str, Any]:
        hints = typing.get_type_hints(cls)
        keys: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            hint = hints[item.name]
            inner = dataclasses.is_dataclass(hint)
            keys |= walk(hint, f"{prefix}{item.name}.") if inner else {prefix + item.name: hint}  # type: ignore[arg-type]
        return keys

    return walk(TrialConfig, "")


def _schema() -> DictConfig:
    """TrialConfig as a tree to fill in: OmegaConf takes frozen dataclasses for read-only ones."""

    def unlock(node: DictConfig) -> None:
        OmegaConf.set_readonly(node, None)
        for key in node:
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                unlock(child)

    tree = OmegaConf.structured(TrialConfig)
    unlock(tree)
    return tree


@cache
def _template() -> DictConfig:
    return _schema()


@cache
def _default_flat() -> dict[str, Any]:
    return TrialConfig().flat()


def _build(tree: Any) -> TrialConfig:
    try:
        config = OmegaConf.to_object(tree)
    except (ValueError, AttributeError, OmegaConfBaseException) as error:  # AttributeError: a key forced in by ++
        raise ConfigError(str(error)) from error
    assert isinstance(config, TrialConfig)
    return config


def _flatten(part: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        if dataclasses.is_dataclass(value):
            values |= _flatten(value, f"{prefix}{item.name}.")
        else:
            values[prefix + item.name] = list(value) if isinstance(value, tuple) else value
    return values


def _unknown(name: str, known: list[str], kind: str = "configuration key ") -> str:
    near = difflib.get_close_matches(name, known, 3) or difflib.get_close_matches(
        name.rsplit(".", 1)[-1], [k.rsplit(".", 1)[-1] for k in known], 3
    )
    hint = f"did you mean {' or '.join(near)}?" if near else "`--help` lists them"
    return f"unknown {kind}{name}; {hint}"
