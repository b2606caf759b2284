"""Read a pruning plan: a YAML file of `prune` keys, or one that is shipped under a name."""

from pathlib import Path
from typing import Any

import yaml

from trainables.config.compose import CONFIG_DIR
from trainables.config.schema import ConfigError, key_types

SHIPPED = CONFIG_DIR / "prune"


def read_schedule(name: str) -> dict[str, Any]:
    """Return the values of a plan's file by dotted key; the file may omit the prefix `prune.`."""
    path = next((p for p in (Path(name), SHIPPED / f"{name}.yaml") if p.is_file()), None)
    if path is None:
        there = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
        raise ConfigError(f"--config {name}: no such file and no such plan; expected a YAML file or one of {there}")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct the file") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds a {type(content).__name__}; expected keys of `prune`, such as ratios: [0.3, 0.3]"
        )
    flat: dict[str, Any] = {}

    def walk(part: dict[Any, Any], prefix: str) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    walk(content, "")
    known = key_types()
    flat = {k if k in known or f"prune.{k}" not in known else f"prune.{k}": v for k, v in flat.items()}
    for key in flat:
        if key not in known:
            bare = ", ".join(k.removeprefix("prune.") for k in known if k.startswith("prune."))
            raise ConfigError(f"{path}: unknown key {key}; expected {bare}, or a dotted key such as train.lr")
    return flat
