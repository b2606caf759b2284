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

from trainables.config.schema import ConfigError, TrialConfig, _build, _schema, _unknown, key_types

CONFIG_DIR = Path(__file__).parent / "groups"


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
