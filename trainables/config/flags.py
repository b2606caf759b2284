"""The flags of the DCASE baseline as Hydra overrides, and the argument parser that all commands share."""

import argparse
import re
import typing
from collections.abc import Sequence
from typing import Any

from trainables.config.help import configuration_help
from trainables.config.schema import ConfigError, key_types, unknown_name

# flags of the DCASE baseline whose keys have another name here
ALIASES = {
    "n_epochs": "train.epochs",
    "roll_sec": "augment.roll_s",
    "freqm": "augment.freq_mask",
    "timem": "augment.time_mask",
    "window_length": "frontend.win_length",
}

FIXED = {
    "n_classes": "10",
    "in_channels": "1",
    "orig_sample_rate": "44100",
}  # flags of the DCASE baseline with a single supported value

REPCONV = {"true": "student=rep_mobile", "false": "student=cp_mobile"}  # --repconv


def flags() -> dict[str, str]:
    """Return the dotted key of every flag.

    A flag is the last part of its key. If several keys have the same last part, the flag means the key in `train.`; if
    none of them is in `train.`, there is no such flag. Keys of the teacher have no flag.
    """
    owners: dict[str, list[str]] = {}
    for key in key_types():
        if not key.startswith("teacher."):  # --lr means train.lr; teacher.train.lr needs its full name
            owners.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    # --epochs means train.epochs, not prune.epochs
    unique = {name: min(keys, key=lambda k: not k.startswith("train.")) for name, keys in owners.items()}
    unique = {name: key for name, key in unique.items() if len(owners[name]) == 1 or key.startswith("train.")}
    return unique | ALIASES


def flags_to_overrides(argv: Sequence[str]) -> list[str]:
    """Return typed words, such as `--kd_alpha=0.6 --subset 5 profile=full`, as Hydra overrides.

    Raise ConfigError for an unknown flag, a flag without a value, or a value that is not supported.
    """
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
            raise ConfigError(unknown_name(name, [*known, *kinds, "repconv"], "flag --"))
        if not equals:
            if not words:
                raise ConfigError(f"--{name} needs a value: write --{name}=<value>")
            value = words.pop(0)
        if name == "repconv":
            if value.lower() not in REPCONV:
                raise ConfigError(f"--repconv {value}: expected True (Rep-Mobile) or False (CP-Mobile)")
            overrides.append(REPCONV[value.lower()])
        elif key is None:
            if value != FIXED[name]:
                raise ConfigError(f"--{name} {value}: only {FIXED[name]} is supported; drop the flag")
        else:
            overrides.append(f"{key}={_literal(value, kinds[key])}")
    return overrides


def keep_epochs(overrides: Sequence[str]) -> list[str]:
    """Return overrides that set `min_steps` to 0 for a network (student, teacher) whose epochs are in `overrides`."""
    parts = ("train", "teacher.train")
    return [f"{p}.min_steps=0" for p in parts if any(o.startswith(f"{p}.epochs=") for o in overrides)]


def command_parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser whose --help ends with all configuration keys.

    A command passes the words that its own options do not match (`parse_known_args`) to `flags_to_overrides`.
    """
    return _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        return f"{super().format_help()}\n{configuration_help(flags())}\n"


def _literal(value: str, hint: Any) -> str:
    """Return the value of a flag in Hydra's grammar; `hint` is the type of its key.

    Strings are quoted, because a path may hold any character. If the key has a list, `a,b` becomes `[a,b]`.
    """
    if typing.get_origin(hint) is tuple:
        items = [item.strip() for item in value.strip("[] ").split(",") if item.strip()]
        return f"[{','.join(_literal(item, typing.get_args(hint)[0]) for item in items)}]"
    if hint is str or (str in typing.get_args(hint) and value.lower() not in ("null", "none")):
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        # a backslash stands for itself, except before a quote
        quoted = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (f"\\{m[2]}" if m[2] else ""), value)
        return f"'{quoted}'"
    return value
