"""Build the configuration of a trial (`TrialConfig`) from Hydra overrides.

The folder `groups/` next to this file contains Hydra's root config, config.yaml, and the config groups.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from trainables.config.schema import (
    ConfigError,
    TrialConfig,
    build_config,
    check_value,
    default_tree,
    key_types,
    unknown_name,
)

# what Hydra raises for integers of thousands of digits and for deep nesting, besides its own errors
_UNREADABLE = (OverflowError, RecursionError, ValueError)
CONFIG_DIR = Path(__file__).parent / "groups"


def compose(overrides: Sequence[str]) -> TrialConfig:
    """Apply the Hydra `overrides` to the root config, groups/config.yaml, and return the configuration of the trial.

    Raise ConfigError for an override with invalid syntax, an unknown key or group, or an invalid value. Interpolations
    (`${...}`), and options of Hydra itself, are refused.
    """
    _register()
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            _check_override(override)
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            tree = hydra_compose("config", overrides=list(overrides))
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        key = next((o.split("=")[0].lstrip("+~") for o in overrides if o.split("=")[0] in str(error)), "")
        known = [*key_types(), *groups()]
        hint = unknown_name(key, known) if key and key not in known else ""
        cause = str(error.__cause__ or "").partition("\n")[0]
        cause = f": {cause}" if cause else ""
        message = " ".join(str(error).partition("\nConfig search path")[0].split())  # Hydra writes several lines
        raise ConfigError(hint or f"{message}{cause}; correct the override, or see --help") from error
    except _UNREADABLE as error:
        raise ConfigError(_unreadable(overrides, error)) from error
    return build_config(tree)


@cache
def _register() -> None:
    """Give Hydra the schema, and its own configuration without the groups of it (launcher, logging, ...).

    Hydra composes its own configuration in each call, too, but the result is not used: with these groups, a call takes
    twice as long.
    """
    store = ConfigStore.instance()
    store.store(name="trial", node=default_tree())
    store.store(group="hydra", name="config", node=HydraConf(defaults=[]), provider="hydra")


def groups() -> list[str]:
    """Return the names of the config groups: profile, prune, student and teacher."""
    return sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())


def settings_of(words: Sequence[str]) -> str:
    """Return the recipe or profile that a command line with the arguments `words` uses, as a text for the terminal."""
    chosen = {kind: word for word in words for kind in ("profile", "recipe") if word.startswith(f"{kind}=")}
    if "recipe" in chosen:
        return chosen["recipe"]
    if "profile" in chosen:
        return chosen["profile"]
    return "profile=quick (the training of the DCASE 2024 baseline is recipe=dcase2024)"


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse the Hydra `overrides` and return a dict from each key or config group in them to its value.

    For example, ["train.lr=0.250", "profile=full"] gives {"train.lr": 0.25, "profile": "full"}. If a key occurs several
    times, the dict has its last value. Raise ConfigError for an override with invalid syntax.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        message = " ".join(str(error).split())  # Hydra writes several lines
        raise ConfigError(f"{message}; expected key=value in Hydra's syntax: correct the override") from error
    except _UNREADABLE as error:
        raise ConfigError(_unreadable(overrides, error)) from error
    for override in parsed:
        _check_override(override)
    return {override.key_or_group: override.value() for override in parsed}


def _unreadable(overrides: Sequence[str], error: Exception) -> str:
    longest = max(overrides, key=len)
    return (
        f"{longest:.60} ({len(longest)} characters) cannot be read ({error!s:.90}); expected key=value with a short "
        "value: correct it"
    )


def _check_override(override: Override) -> None:
    """Raise ConfigError if `override` has an interpolation, or sets an option of Hydra, which could name other files.

    Hydra would replace interpolations in keys and groups while it composes, and show the result in its errors.
    """
    line = override.input_line or ""
    key, _, value = line.partition("=")
    if key.lstrip("+~").startswith("hydra"):
        raise ConfigError(f"{line}: options of Hydra itself are not supported; expected a configuration key: remove it")
    check_value(key, value)
    check_value(key, override.value())  # without escapes: \{ becomes {
