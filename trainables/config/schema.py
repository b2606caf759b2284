"""One trial's configuration: the dataclasses of every part under one roof, and the ways to write it.

    compose(["student=rep_mobile", "train.lr=1e-3"])        Hydra overrides over `trainables/config/groups/`
    compose(flags_to_overrides(["--kd_alpha=0.6", "--subset", "5"]))     the DCASE baseline's flags
    TrialConfig.from_flat({"distill.kd_alpha": 0.6})         dotted names, as a search samples them

An unknown key is an error that names the nearest known ones.
"""

import argparse
import copy
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ascmodels.compress.plan import PruneConfig
from ascmodels.nessi import Limits
from ascmodels.students import StudentConfig
from ascmodels.teachers import TeacherModelConfig
from data.augment import AugmentConfig
from data.features import FrontEndConfig
from data.tau import DataConfig
from trainables.config.train import TrainConfig
from trainables.engine.losses import DistillConfig

CONFIG_DIR = Path(__file__).parent / "groups"
# names of the DCASE baseline for keys that are called otherwise here
ALIASES = {
    "n_epochs": "train.epochs",
    "roll_sec": "augment.roll_s",
    "freqm": "augment.freq_mask",
    "timem": "augment.time_mask",
    "window_length": "frontend.win_length",
}
FIXED = {"n_classes": "10", "in_channels": "1", "orig_sample_rate": "44100"}  # its flags that can have one value here
# what population based training changes while a trial runs: rates, which fit whatever weights there are
MUTABLE_KEYS = (
    *("train.lr", "distill.kd_alpha", "distill.kd_temp"),
    *("augment.mixstyle_p", "augment.mixstyle_alpha", "augment.mixup_alpha"),
)
REPCONV = {"true": "student=rep_mobile", "false": "student=cp_mobile"}  # --repconv


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


def compose(overrides: Sequence[str]) -> TrialConfig:
    """The configuration that `trainables/config/groups/config.yaml` and Hydra `overrides` describe."""
    ConfigStore.instance().store(name="trial", node=_schema())
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            tree = hydra_compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        key = next((o.split("=")[0].lstrip("+~") for o in overrides if o.split("=")[0] in str(error)), "")
        hint = _unknown(key, list(key_types())) if "." in key and key not in key_types() else ""
        cause = f": {error.__cause__}" if error.__cause__ else ""
        told = " ".join(str(error).partition("\nConfig search path")[0].split())  # Hydra's own is of many lines
        raise ConfigError(hint or f"{told}{cause}") from error
    return _build(tree)


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Key, or group, -> value of Hydra overrides, as Hydra reads them: 0.250 is 0.25. The last of one key counts."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return {override.key_or_group: override.value() for override in parsed}


def flags() -> dict[str, str]:
    """DCASE-style flag -> dotted key, for every key whose last name is the student's alone or unique."""
    owners: dict[str, list[str]] = {}
    for key in key_types():
        if not key.startswith("teacher."):  # teacher.train.lr is spelled out; --lr is the student's
            owners.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    # of train.epochs and prune.epochs, --epochs means dense training
    unique = {name: min(keys, key=lambda k: not k.startswith("train.")) for name, keys in owners.items()}
    unique = {name: key for name, key in unique.items() if len(owners[name]) == 1 or key.startswith("train.")}
    return unique | ALIASES


def flags_to_overrides(argv: Sequence[str]) -> list[str]:
    """`--kd_alpha=0.6 --subset 5 profile=full` as Hydra overrides; ConfigError for an unknown flag."""
    known, kinds = flags(), key_types()
    overrides, words = [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if "=" not in word:
                raise ConfigError(f"unexpected argument {word!r}: expected --flag=value or a Hydra override key=value")
            overrides.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        key = known.get(name) or (name if name in kinds else None)
        if key is None and name not in (*FIXED, "repconv"):
            raise ConfigError(_unknown(name, [*known, *kinds, "repconv"], "flag --"))
        if not equals:
            if not words:
                raise ConfigError(f"--{name} needs a value")
            value = words.pop(0)
        if name == "repconv":
            if value.lower() not in REPCONV:
                raise ConfigError(f"--repconv {value}: expected True (Rep-Mobile) or False (CP-Mobile)")
            overrides.append(REPCONV[value.lower()])
        elif key is None:
            if value != FIXED[name]:
                raise ConfigError(f"--{name} {value}: only {FIXED[name]} is supported")
        else:
            overrides.append(f"{key}={_literal(value, kinds[key])}")
    return overrides


def keep_epochs(overrides: Sequence[str]) -> list[str]:
    """Defaults under which a number of epochs that `overrides` name is kept, whatever `min_steps` asks for."""
    parts = ("train", "teacher.train")
    return [f"{p}.min_steps=0" for p in parts if any(o.startswith(f"{p}.epochs=") for o in overrides)]


def command_parser(description: str) -> argparse.ArgumentParser:
    """A command's parser, whose --help ends with every configuration flag, its type and its key; what the command does
    not know itself is left for `flags_to_overrides`."""
    kinds = key_types()
    listed = "\n".join(f"  --{name} <{type_name(kinds[key])}>  {key}" for name, key in flags().items())
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="configuration flags (also key=value, and groups: student=..., profile=quick|full; --repconv True is "
        f"student=rep_mobile):\n{listed}",
        allow_abbrev=False,
    )


def _literal(value: str, hint: Any) -> str:
    """A flag's text in Hydra's grammar: strings quoted (paths hold anything), `a,b` a list where one is expected."""
    if typing.get_origin(hint) is tuple:
        items = [item.strip() for item in value.strip("[] ").split(",") if item.strip()]
        return f"[{','.join(_literal(item, typing.get_args(hint)[0]) for item in items)}]"
    if hint is str or (str in typing.get_args(hint) and value.lower() not in ("null", "none")):
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        # a backslash is itself, except before a quote
        quoted = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (f"\\{m[2]}" if m[2] else ""), value)
        return f"'{quoted}'"
    return value


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


def type_name(hint: Any) -> str:
    """A key's type in words, for help texts."""
    if typing.get_origin(hint) is tuple:
        return "list of " + type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else type_name(a) for a in typing.get_args(hint))
    return hint.__name__
