"""Build a `TrialConfig` from Hydra overrides over the YAML files in `groups/`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from trainables.config.schema import ConfigError, TrialConfig, build_config, key_types, schema_tree, unknown_name

CONFIG_DIR = Path(__file__).parent / "groups"


def compose(overrides: Sequence[str]) -> TrialConfig:
    """Return the configuration of `groups/config.yaml` with Hydra `overrides`; ConfigError for an invalid one."""
    ConfigStore.instance().store(name="trial", node=schema_tree())
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            tree = hydra_compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        key = next((o.split("=")[0].lstrip("+~") for o in overrides if o.split("=")[0] in str(error)), "")
        hint = unknown_name(key, list(key_types())) if "." in key and key not in key_types() else ""
        cause = f": {error.__cause__}" if error.__cause__ else ""
        message = " ".join(str(error).partition("\nConfig search path")[0].split())  # Hydra writes several lines
        raise ConfigError(hint or f"{message}{cause}") from error
    return build_config(tree)


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the value of each key or group in Hydra `overrides`, as Hydra parses it (0.250 becomes 0.25).

    If a key occurs several times, its last value is returned. Raise ConfigError for invalid syntax.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return {override.key_or_group: override.value() for override in parsed}
