"""The flags of the DCASE baseline, translated into Hydra overrides; the parser that every command starts from."""

import argparse
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from trainables.config.schema import ConfigError, _unknown, key_types

# names of the DCASE baseline for keys that are called otherwise here
ALIASES = {
    "n_epochs": "train.epochs",
    "roll_sec": "augment.roll_s",
    "freqm": "augment.freq_mask",
    "timem": "augment.time_mask",
    "window_length": "frontend.win_length",
}

FIXED = {"n_classes": "10", "in_channels": "1", "orig_sample_rate": "44100"}  # its flags that can have one value here

REPCONV = {"true": "student=rep_mobile", "false": "student=cp_mobile"}  # --repconv


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


def type_name(hint: Any) -> str:
    """A key's type in words, for help texts."""
    if typing.get_origin(hint) is tuple:
        return "list of " + type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else type_name(a) for a in typing.get_args(hint))
    return hint.__name__
