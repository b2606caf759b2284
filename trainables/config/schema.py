"""The configuration of one trial, `TrialConfig`, which contains a dataclass for each topic.

It can be built in three ways:

    compose(["student=rep_mobile", "train.lr=1e-3"])                     Hydra overrides (compose.py)
    compose(flags_to_overrides(["--kd_alpha=0.6", "--subset", "5"]))     flags of the DCASE baseline (flags.py)
    TrialConfig.from_flat({"distill.kd_alpha": 0.6})                     dotted keys, as a search samples them

An unknown key raises ConfigError, whose message names the most similar known keys.
"""

import copy
import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ascmodels.config.limits import Limits
from ascmodels.config.prune import PruneConfig
from ascmodels.config.student import StudentConfig
from ascmodels.config.teacher import TeacherModelConfig
from data.config.augment import AugmentConfig
from data.config.dataset import DataConfig
from data.config.frontend import FrontEndConfig
from data.untrusted import credentials_in, interpolation_in
from trainables.config.distill import DistillConfig
from trainables.config.train import TrainConfig

# keys that population based training may change while a trial runs, because they do not affect the network's shape
MUTABLE_KEYS = (
    *("train.lr", "distill.kd_alpha", "distill.kd_temp"),
    *("augment.mixstyle_p", "augment.mixstyle_alpha", "augment.mixup_alpha"),
)


LARGEST = 2**53  # the largest of the integers that are floats, too
MAX_PATCHES = 16_384  # of a clip in a transformer, whose attention has this number squared of values


class ConfigError(ValueError):
    """Raised for an unknown configuration key, for an invalid value, and if this process cannot train a configuration.

    A process cannot train it if the machine lacks the configured device, or if its code is not that of the driver.
    """


@dataclass(frozen=True)
class TeacherConfig:
    """Network and training of the teacher that is fine-tuned if `distill.teacher_ckpts` is empty."""

    model: TeacherModelConfig = field(default_factory=TeacherModelConfig)
    frontend: FrontEndConfig = field(
        default_factory=lambda: FrontEndConfig(16_000, 1024, 800, 320, 64, mean=-3.0, std=4.0)
    )
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(freq_mask=8, time_mask=4, mixstyle_p=0.2))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=25, batch_size=64, lr=1e-4))
    lr_decay: float = 1.0  # each layer's learning rate / that of the layer above (above 0, at most 1; 1: all equal)

    def __post_init__(self):
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"teacher.lr_decay={self.lr_decay}: expected a factor in (0, 1]; correct it")
        for name in ("soup", "curriculum"):
            if value := getattr(self.train, name):
                raise ValueError(f"teacher.train.{name}={value}: expected 0, because only students have it; remove it")
        n_patches = self.frontend.n_mels * self.frontend.frames // self.model.stride**2
        if self.model.family != "cnn" and n_patches > MAX_PATCHES:
            raise ValueError(
                f"teacher.model.stride={self.model.stride}, teacher.frontend.n_mels={self.frontend.n_mels}, "
                f"teacher.frontend.hop_length={self.frontend.hop_length}: about {n_patches:,} patches for each clip; "
                f"expected at most {MAX_PATCHES:,}: raise the stride or the hop length, or lower the number of mel bins"
            )


@dataclass(frozen=True)
class TrialConfig:
    """All settings of one trial: one attribute for each topic, and the seeds."""

    seed: int = 0  # random seed of the held-out locations, the initial weights and the training (0 to 2^32 - 1)
    replicate: int = 0  # replicate number: other initial weights and training draws, same held-out clips (0 or more)
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
            raise ValueError(f"seed={self.seed}: expected 0 to {2**32 - 1}")
        if self.replicate < 0:
            raise ValueError(f"replicate={self.replicate}: expected 0 (the first training of a configuration) or more")

    @property
    def training_seed(self) -> int:
        """Return the seed of the initial weights and of all random draws in training.

        For replicate 0, this is `seed`. For the other replicates, it is computed from `seed` and `replicate`. The
        held-out clips and the fine-tuned teacher depend on `seed` only, so all replicates share them.
        """
        if not self.replicate:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.replicate]).generate_state(1)[0])

    def flat(self) -> dict[str, Any]:
        """Return a dict from every dotted key (`train.lr`) to its value; tuples become lists, for Ray and JSON."""
        return _flatten(self)

    @staticmethod
    def from_flat(values: Mapping[str, Any]) -> "TrialConfig":
        """Return the default configuration, changed by `values`, a dict from dotted keys (`train.lr`) to new values.

        Raise ConfigError for an unknown key or an invalid value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"the stored configuration is {values!r:.60}; expected a dict of keys and values: restore the file "
                "that contains it (info.json of a run or trial, study.json of a study, student.json of a checkpoint)"
            )
        known, default = key_types(), _default_flat()
        tree = copy.deepcopy(default_tree())  # the template is built once: a search builds thousands of configurations
        for key, value in values.items():
            if key not in known:
                raise ConfigError(unknown_name(key, list(known)))
            if type(value) is type(default[key]) and value == default[key]:
                continue
            check_value(key, value)
            try:
                OmegaConf.update(tree, key, value, merge=False)
            except (OmegaConfBaseException, OverflowError) as error:
                cause = str(error).splitlines()[0]
                raise ConfigError(f"{key}={value!r:.60}: {cause:.200}; correct the value") from error
        return build_config(tree)


def key_types() -> dict[str, Any]:
    """Return a dict from every dotted configuration key (`train.lr`) to the type of its value."""
    return {key: hint for key, _, hint in key_fields(TrialConfig)}


def key_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, type, Any]]:
    """Yield (dotted key, dataclass with the key's field, type of the field) for every key of the dataclass `cls`.

    A field whose type is another dataclass has no key: the keys of that dataclass are yielded instead (`train.lr` for
    the field `train`). Every key starts with `prefix`, the path from the root config to `cls`, such as "teacher.".
    """
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        key, hint = prefix + item.name, hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from key_fields(hint, f"{key}.")  # type: ignore[arg-type]
        else:
            yield key, cls, hint


@cache
def default_tree() -> DictConfig:
    """Return the defaults of TrialConfig as an OmegaConf tree. All calls return the same tree: copy it to modify it.

    OmegaConf marks the nodes of frozen dataclasses as read-only; this function removes the marks, so a copy of the tree
    can be modified.
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


def check_value(key: str, value: Any) -> None:
    """Raise ConfigError if the `key` or `value` of a setting contains an interpolation, or `value` has credentials.

    OmegaConf would replace an interpolation such as ${oc.env:NAME} by the value of an environment variable. This value,
    like credentials, would be written to the files of a study, to Ray's logs and to the W&B run.
    """
    if found := interpolation_in((key, value)):
        raise ConfigError(
            f"{key}={value!r} contains {found!r}; expected a value without the interpolations of OmegaConf "
            "(${...}), because secrets must not get into the files of a study: write the value itself"
        )
    for text in value if isinstance(value, list | tuple) else (value,):
        if isinstance(text, str) and (problem := credentials_in(text)):
            raise ConfigError(
                f"{key}: the value contains {problem}; expected a value without credentials, because it is written to "
                "the files of a study: remove them"
            )


@cache
def _default_flat() -> dict[str, Any]:
    return TrialConfig().flat()


def build_config(tree: Any) -> TrialConfig:
    """Return the TrialConfig with the values of `tree`, an OmegaConf tree with the keys of `default_tree`.

    Raise ConfigError if a value is invalid, or if `tree` has other keys.
    """
    try:
        config = OmegaConf.to_object(tree)
    except AttributeError as error:
        raise ConfigError(f"an override adds an unknown key (++key=value): {error}; remove the override") from error
    except (ValueError, OverflowError, OmegaConfBaseException) as error:
        raise ConfigError(_of_teacher(tree) or str(error)) from error
    assert isinstance(config, TrialConfig)
    for key, value in config.flat().items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{key}={value}: expected a finite number; correct the value")
            if isinstance(number, int) and abs(number) > LARGEST:
                raise ConfigError(f"{key}={str(value)[:60]}: expected a number up to {LARGEST:,}; correct the value")
    return config


def _of_teacher(tree: Any) -> str:
    """Return the error message about an invalid part `teacher.<part>` of `tree`; empty if these parts are valid.

    The parts are `train`, `augment` and `frontend`. The student has parts of the same classes, and the messages of
    these classes name the student's keys, e.g. train.lr. This function changes them to e.g. teacher.train.lr.
    """
    for part in ("frontend", "augment", "train"):
        try:
            OmegaConf.to_object(tree.teacher[part])
        except (ValueError, OverflowError, OmegaConfBaseException) as error:
            return re.sub(rf"(?<![\w.]){part}\.(?=\w)", f"teacher.{part}.", str(error))
    return ""


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
    """Return an error message for the unknown `name`; it suggests up to three names in `known` that are similar.

    `kind` is the text between "unknown" and the name in the message, such as "flag --".
    """
    near = difflib.get_close_matches(name, known, 3)
    if not near:  # the last parts of the keys
        lasts: dict[str, list[str]] = {}
        for k in known:
            lasts.setdefault(k.rsplit(".", 1)[-1], []).append(k)
        near = [k for last in difflib.get_close_matches(name.rsplit(".", 1)[-1], lasts, 3) for k in lasts[last]][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`--help` lists all flags and configuration keys"
    return f"unknown {kind}{name}; {hint}"
