"""Read a pruning plan: a YAML file with configuration keys that define how much each prune step removes.

The file is named by its path, or by its name in trainables/config/groups/prune/ (a shipped plan).
"""

from pathlib import Path
from typing import Any

from search_spaces.yaml_file import YamlFileError, exists, read_yaml
from trainables.config.compose import CONFIG_DIR
from trainables.config.schema import ConfigError, key_types

SHIPPED = CONFIG_DIR / "prune"


def read_plan(name: str) -> dict[str, Any]:
    """Read the pruning plan `name`; return a dict from each dotted configuration key (`prune.ratios`) to its value.

    `name` is the path of a YAML file, or the name of a shipped plan. Keys in the file may omit the prefix `prune.`.
    Raise ConfigError if there is no such plan, if the file is not valid YAML, or if a key is unknown.
    """
    path = next((p for p in (Path(name), SHIPPED / f"{name}.yaml") if exists(p)), None)
    if path is None:
        there = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
        raise ConfigError(
            f"--config {name}: there is no such file or shipped plan; expected the path of a YAML file, or one of "
            f"{there}: correct the path or the name"
        )
    try:
        content = read_yaml(path)
    except YamlFileError as error:
        raise ConfigError(f"{error}; expected a mapping of `prune` keys to values") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds a {type(content).__name__}; expected a mapping of `prune` keys to values: write, for "
            "example, ratios: [0.3, 0.3]"
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
            raise ConfigError(
                f"{path}: unknown key {key}; expected a key of `prune` ({bare}), or the full name of another "
                "configuration key, such as train.lr: correct the key in this file"
            )
    return flat
