"""Read a YAML file that a user wrote: `content = read_yaml(path)`.

Only plain YAML is accepted: mappings, lists, texts, numbers, true, false and null. A file above `MAX_BYTES`, an alias
(`*name`; nested aliases can describe gigabytes in a few hundred bytes), a tag (`!name`), a key that a mapping holds
twice, and deep nesting are errors. Nothing of a file is built before it is checked.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

MAX_BYTES = 100_000  # the shipped files have less than 2,000


class YamlFileError(ValueError):
    """A YAML file cannot be read or is not plain YAML (see the top of this file); the message names the file."""


def read_yaml(path: Path) -> Any:
    """Return the content of the YAML file `path`.

    Raise YamlFileError if it cannot be read or is not plain YAML (see the top of this file).
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise YamlFileError(
            f"{path} cannot be read ({error}); expected a YAML file: correct the path or its permissions"
        ) from error
    if len(data) > MAX_BYTES:
        raise YamlFileError(f"{path} is longer than {MAX_BYTES:,} bytes; expected a short YAML file: shorten it")
    try:
        return yaml.load(data.decode(), _Loader)  # _Loader is a SafeLoader (bandit B506)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date such as 2024-99-99
        cause = " ".join(str(error).split())
        raise YamlFileError(f"{path} is not YAML that can be used ({cause}): correct the file") from error


def exists(path: Path) -> bool:
    """Return whether `path` is a file; False, without OSError, if its name is too long or its folder unreadable."""
    try:
        return path.is_file()
    except OSError:
        return False


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, tags, repeated keys and integers of more than 64 bits."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            found = f"the alias *{event.anchor}" if isinstance(event, yaml.AliasEvent) else f"the tag {event.tag}"
            raise ComposerError(None, None, f"found {found}; write the value itself", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                found = f"found the key {key.value!r} twice in one mapping; remove one of the lines"
                raise ConstructorError(None, None, found, key.start_mark)
            if name:
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        value = super().construct_yaml_int(node)
        if abs(value) >= 2**63:
            found = "found an integer of more than 64 bits; write a smaller number"
            raise ConstructorError(None, None, found, node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
