"""The configuration of one trial, `TrialConfig`: a dataclass of one dataclass per topic. Three ways to make one:

    compose(["student=rep_mobile", "train.lr=1e-3"])                     Hydra overrides (compose.py)
    compose(flags_to_overrides(["--kd_alpha=0.6", "--subset", "5"]))     flags of the DCASE baseline (flags.py)
    TrialConfig.from_flat({"distill.kd_alpha": 0.6})                     dotted keys, as a search samples them

An unknown key raises ConfigError, which names the most similar known keys.
"""

import copy
import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
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

# keys that population based training may change while a trial runs: they do not affect the network's shape
MUTABLE_KEYS = (
    *("train.lr", "distill.kd_alpha", "distill.kd_temp"),
    *("augment.mixstyle_p", "augment.mixstyle_alpha", "augment.mixup_alpha"),
)


class ConfigError(ValueError):
    """An unknown configuration key, or an invalid value."""


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher that is fine-tuned if `distill.teacher_ckpts` names none."""

    model: TeacherModelConfig = field(default_factory=TeacherModelConfig)
    frontend: FrontEndConfig = field(
        default_factory=lambda: FrontEndConfig(16_000, 1024, 800, 320, 64, mean=-3.0, std=4.0)
    )
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(freq_mask=8, time_mask=4, mixstyle_p=0.2))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=25, batch_size=64, lr=1e-4))
    lr_decay: float = 1.0  # learning rate of a layer divided by that of the layer above it, in (0, 1]; 1: all equal

    def __post_init__(self):
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"teacher.lr_decay={self.lr_decay}: expected a factor in (0, 1]")


@dataclass(frozen=True)
class TrialConfig:
    """All settings of one trial."""

    seed: int = 0  # random seed of held-out locations, initial weights and all draws of training
    replicate: int = 0  # index of the replicate: new initial weights and training draws, same held-out clips
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
            raise ValueError(f"replicate={self.replicate}: expected 0 (the first training of a configuration) or more")

    @property
    def training_seed(self) -> int:
        """Return the seed of all random draws of training; the hold-out, teachers and caches use `seed` itself."""
        if not self.replicate:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.replicate]).generate_state(1)[0])

    def flat(self) -> dict[str, Any]:
        """Return the value of every dotted key; tuples become lists, as Ray and JSON need them."""
        return _flatten(self)

    @staticmethod
    def from_flat(values: Mapping[str, Any]) -> "TrialConfig":
        """Return the defaults with the `values` of dotted keys; ConfigError for an unknown key or an invalid value."""
        known, default = key_types(), _default_flat()
        tree = copy.deepcopy(_template())  # the template is built once: a search builds thousands of configurations
        for key, value in values.items():
            if key not in known:
                raise ConfigError(unknown_name(key, list(known)))
            if type(value) is type(default[key]) and value == default[key]:
                continue
            try:
                OmegaConf.update(tree, key, value, merge=False)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{key}={value!r}: {str(error).splitlines()[0]}") from error
        return build_config(tree)


def key_types() -> dict[str, Any]:
    """Return the type of every key of TrialConfig, by dotted key."""
    return {key: hint for key, _, hint in key_fields(TrialConfig)}


def key_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, type, Any]]:
    """Yield each dotted key of a configuration dataclass, the dataclass that has its field, and the field's type."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        key, hint = prefix + item.name, hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from key_fields(hint, f"{key}.")  # type: ignore[arg-type]
        else:
            yield key, cls, hint


def schema_tree() -> DictConfig:
    """Return the defaults of TrialConfig as an OmegaConf tree that can be changed.

    By itself, OmegaConf makes frozen dataclasses read-only.
    """

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
    return schema_tree()


@cache
def _default_flat() -> dict[str, Any]:
    return TrialConfig().flat()


def build_config(tree: Any) -> TrialConfig:
    """Return the configuration in an OmegaConf tree; ConfigError for an invalid value."""
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


def unknown_name(name: str, known: list[str], kind: str = "configuration key ") -> str:
    """Return the error message for an unknown `name` of some `kind`, with the most similar `known` names."""
    near = difflib.get_close_matches(name, known, 3) or difflib.get_close_matches(
        name.rsplit(".", 1)[-1], [k.rsplit(".", 1)[-1] for k in known], 3
    )
    hint = f"did you mean {' or '.join(near)}?" if near else "`--help` lists them"
    return f"unknown {kind}{name}; {hint}"
