"""Conversion of command-line flags to Hydra overrides. The flags have the names that the DCASE baseline gives them.

`command_parser` returns the argument parser of the commands that accept these flags.
"""

import argparse
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from trainables.config.compose import compose
from trainables.config.distill import REDUCTIONS, alpha_of
from trainables.config.help import configuration_help
from trainables.config.schema import ConfigError, key_types, unknown_name

# flags of the DCASE baseline that do not have the name of their configuration key
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

KD = ("kd_lambda", "kd_reduction")  # flags that set distill.kd_alpha in the convention of other code bases
REPCONV = {"true": "student=rep_mobile", "false": "student=cp_mobile"}  # --repconv


def flags() -> dict[str, str]:
    """Return a dict from the name of each flag to the configuration key that it sets.

    The name of a flag is the last part of its key (`kd_alpha` sets `distill.kd_alpha`), or a name of the DCASE baseline
    in `ALIASES` (`n_epochs` sets `train.epochs`). If several keys have the same last part, the flag sets the key in
    `train.`; if none of these keys is in `train.`, there is no such flag. The keys `teacher.*` have no flags.
    """
    owners: dict[str, list[str]] = {}
    for key in key_types():
        if not key.startswith("teacher."):  # --lr sets train.lr; teacher.train.lr has no short flag
            owners.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    # --epochs sets train.epochs, not prune.epochs
    unique = {name: min(keys, key=lambda k: not k.startswith("train.")) for name, keys in owners.items()}
    unique = {name: key for name, key in unique.items() if len(owners[name]) == 1 or key.startswith("train.")}
    return unique | ALIASES


def flags_to_overrides(argv: Sequence[str]) -> list[str]:
    """Convert command-line arguments, such as `--kd_alpha=0.6 --subset 5 profile=full`, to Hydra overrides.

    Arguments that are Hydra overrides already (`profile=full`) are kept. Raise ConfigError for an unknown flag, a flag
    without a value, or a value that asc-tune does not support (`--n_classes 5`).
    """
    known, kinds = flags(), key_types()
    overrides, words, distillation = [], list(argv), dict[str, str]()
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if "=" not in word:
                raise ConfigError(
                    f"unexpected argument {word!r}: expected --flag=value or a Hydra override key=value; correct it, "
                    "or see --help"
                )
            overrides.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        key = known.get(name) or (name if name in kinds else None)
        if key is None and name not in (*FIXED, *KD, "repconv"):
            raise ConfigError(unknown_name(name, [*known, *kinds, "repconv"], "flag --"))
        if not equals:
            if not words:
                raise ConfigError(f"--{name} needs a value: write --{name}=<value>")
            value = words.pop(0)
        if name == "repconv":
            if value.lower() not in REPCONV:
                raise ConfigError(f"--repconv {value}: expected True (Rep-Mobile) or False (CP-Mobile)")
            overrides.append(REPCONV[value.lower()])
        elif name in KD:
            distillation[name] = value
        elif key is None:
            if value != FIXED[name]:
                raise ConfigError(f"--{name} {value}: only {FIXED[name]} is supported; remove the flag")
        else:
            overrides.append(f"{key}={_literal(value, kinds[key])}")
    return [*overrides, *_distillation(overrides, distillation)] if distillation else overrides


def _distillation(overrides: Sequence[str], found: Mapping[str, str]) -> list[str]:
    """Return the override of distill.kd_alpha for the values `found` of the flags in `KD`.

    ConfigError if --kd_lambda is missing or no number from 0 to 1, if the reduction is unknown, or if `overrides` set
    distill.kd_alpha, too.
    """
    typed, reduction = found.get("kd_lambda"), found.get("kd_reduction", REDUCTIONS[0])
    try:
        weight = float(typed or "nan")
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= 1:
        shown = "is missing, but --kd_reduction is given" if typed is None else f"is {typed!r}"
        raise ConfigError(f"--kd_lambda {shown}; expected the weight of the labels, 0 to 1: correct it")
    if reduction not in REDUCTIONS:
        raise ConfigError(
            f"--kd_reduction {reduction}: expected elements (the KL is averaged over clips and classes) or batch (over "
            "clips): correct it"
        )
    if any(o.split("=")[0] == "distill.kd_alpha" for o in overrides):
        raise ConfigError(f"--kd_lambda {typed} and --kd_alpha both set distill.kd_alpha; expected one: remove a flag")
    return [f"distill.kd_alpha={alpha_of(weight, reduction):.6g}"]


def keep_epochs(overrides: Sequence[str]) -> list[str]:
    """Return overrides that turn off `min_steps` where the user has set the number of epochs in `overrides`.

    If `overrides` sets `train.epochs`, the result has `train.min_steps=0`; the same holds for the teacher
    (`teacher.train.`). Without these overrides, the least number of optimiser steps of `profile=quick` (`min_steps`)
    could raise the number of epochs that the user has set. Place the result before `overrides`, so that a `min_steps`
    of the user has priority.
    """
    parts = ("train", "teacher.train")
    return [f"{p}.min_steps=0" for p in parts if any(o.startswith(f"{p}.epochs=") for o in overrides)]


def command_parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser whose --help shows `description`, its arguments and all configuration keys.

    The parser does not parse configuration keys: call `parse_known_args` and pass the remaining arguments to
    `flags_to_overrides`.
    """
    return _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        return f"{super().format_help()}\n{configuration_help(flags(), compose([]).flat())}\n"


def _literal(value: str, hint: Any) -> str:
    """Convert the `value` that was typed for a flag to the syntax of Hydra overrides.

    `hint` is the type of the flag's configuration key. For a string, `value` is quoted, because a path may contain any
    character. For a tuple, the comma-separated `value` is put into brackets: `1,2` becomes `[1,2]`.
    """
    if typing.get_origin(hint) is tuple:
        items = [item.strip() for item in value.strip("[] ").split(",") if item.strip()]
        return f"[{','.join(_literal(item, typing.get_args(hint)[0]) for item in items)}]"
    if hint is str or (str in typing.get_args(hint) and value.lower() not in ("null", "none")):
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        # in a quoted string, Hydra reads a backslash as an escape only before a quote: only there it is doubled
        quoted = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (f"\\{m[2]}" if m[2] else ""), value)
        return f"'{quoted}'"
    return value
