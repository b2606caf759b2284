"""Search spaces: YAML files that map configuration keys to ranges, and their loader.

    space = load_space("kd_prune")            # or the path of your own YAML file
    values = space.sample(optuna_trial)       # {"distill.kd_alpha": 0.31, "prune.ratios": [0.2, 0.35], ...}

A range has one of these kinds:

    {uniform: [low, high]}            float, both ends included; with `step: 0.1` one of low, low + 0.1, ... high
    {loguniform: [low, high]}         float on a log scale, both ends included
    {int: [low, high], step: 8}       integer, both ends included (step is optional, default 1)
    {choice: [a, b, ...]}             one of the values, which may be lists
    {subset: [a, b, ...], min: 1}     list of at least `min` of the members (min is optional, default 0)
    {each: prune.steps, item: {...}}  list whose entries are sampled from the range `item`, each on its own; the length
                                      of the list is the value of prune.steps, a parameter under the key `auxiliary`
                                      of the file, which is sampled first
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from search_spaces.ranges import SpaceError, check_range
from search_spaces.yaml_file import YamlFileError, exists, read_yaml

__all__ = ["FOLDER", "Space", "SpaceError", "Suggests", "load_space", "space_from_dict"]

FOLDER = Path(__file__).parent
_TOP = ("description", "base", "parameters", "auxiliary")


class Suggests(Protocol):
    """Interface for `Space.sample`: the suggest methods of an Optuna trial."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Space:
    """A search space.

    `parameters` maps each searched configuration key to its range. `auxiliary` maps further parameters to ranges. These
    are sampled first, and only set the length of lists (e.g. the number of prune steps). `base` has Hydra overrides
    such as "student=rep_mobile"; they select the base configuration, which has the values of all other keys.
    """

    name: str
    description: str
    parameters: Mapping[str, Mapping[str, Any]]
    auxiliary: Mapping[str, Mapping[str, Any]]
    base: tuple[str, ...]

    def sample(self, trial: Suggests) -> dict[str, Any]:
        """Return a value for each key in `parameters`, sampled with the suggest methods of `trial`.

        In Optuna, the parameter of a key has the same name as the key. A list of the kind `each` has a parameter for
        its length (`prune.steps`), and one for each entry (`prune.ratios[0]`). A subset has a parameter for each
        member, which is True or False (`student.branches/3x3`).
        """
        steering = {key: _draw(key, spec, trial, {}) for key, spec in self.auxiliary.items()}
        return {key: _draw(key, spec, trial, steering) for key, spec in self.parameters.items()}

    def corners(self) -> list[dict[str, Any]]:
        """Return extreme samples of the space, to check that their networks can be built.

        The first sample has the lower ends of all ranges, the second the upper ends. The lower end of a `choice` is its
        first value, the upper end its last; for a `subset`, they are the first `min` members and all members. Then, for
        each value of a `choice` but the first, there is a sample with this value and the lower ends of all other
        ranges. If the `choice` is the `item` of a list, all entries of the list have this value, and there is at least
        one entry.
        """
        ends = [self.sample(_End(upper)) for upper in (False, True)]
        choices = [(key, v) for key, spec in self.parameters.items() for v in spec.get("choice", ())[1:]]
        for key, spec in self.parameters.items():
            length = min(max(1, len(ends[0][key])), len(ends[1][key])) if "each" in spec else 0
            choices += [(key, [v] * length) for v in spec.get("item", {}).get("choice", ())[1:] if length]
        return ends + [ends[0] | {key: value} for key, value in choices]

    def as_dict(self) -> dict[str, Any]:
        """Return the space as a dict of JSON values for the manifest of a study; `space_from_dict` converts it back."""
        return json.loads(
            json.dumps(
                {
                    "name": self.name,
                    "description": self.description,
                    "base": list(self.base),
                    "auxiliary": self.auxiliary,
                    "parameters": self.parameters,
                }
            )
        )


def load_space(name_or_path: str) -> Space:
    """Return the space in `search_spaces/<name_or_path>.yaml`, or in the YAML file at the path `name_or_path`.

    SpaceError is raised if there is no such file, the space is invalid, or a part of it has no effect.
    """
    shipped = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    path = shipped.get(name_or_path, Path(name_or_path))
    if not exists(path):
        raise SpaceError(
            f"unknown search space {name_or_path!r}: choose from {', '.join(shipped)}, or give the path of a YAML file"
        )
    try:
        content = read_yaml(path)
    except YamlFileError as error:
        raise SpaceError(str(error)) from error
    if not isinstance(content, dict) or "name" in content:
        raise SpaceError(
            f"{path} contains {content!r:.60}; expected a mapping with the keys {', '.join(_TOP)} (the name of the "
            "space is that of the file): correct the file"
        )
    space = space_from_dict({"name": path.stem, **content}, str(path))
    _refuse_idle(space, str(path))
    return space


def _refuse_idle(space: Space, where: str) -> None:
    """Raise SpaceError if a part of `space` has no effect; `where`, the path of the file, is part of the message.

    Only files are checked in this way, so that a study of an earlier version, whose manifest has such a part, can be
    resumed.
    """
    lengths = {spec["each"] for spec in space.parameters.values() if "each" in spec}
    if unused := sorted(set(space.auxiliary) - lengths):
        raise SpaceError(
            f"{where}: auxiliary.{unused[0]}={space.auxiliary[unused[0]]} has no effect; expected the length of a list "
            f"in `parameters`: remove it, or add a range {{each: {unused[0]}, item: ...}}"
        )
    for key in lengths:
        if space.auxiliary[key]["int"][0] < 0:
            raise SpaceError(
                f"{where}: auxiliary.{key}={space.auxiliary[key]} allows a negative length of a list; expected 0 or "
                "more: raise the lower limit"
            )
    for key, spec in space.parameters.items():
        part = spec.get("item", spec)
        limits = next((part[kind] for kind in ("uniform", "loguniform", "int") if kind in part), None)
        if limits and limits[0] == limits[1]:
            raise SpaceError(
                f"{where}: {key}={dict(spec)} has two equal limits, so nothing is searched; expected low below high: "
                f"change a limit, or set the value in `base`, for example base: [{key}={limits[0]}]"
            )
    keys = [override.partition("=")[0].lstrip("+") for override in space.base]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise SpaceError(f"{where}: `base` sets {twice} twice; expected each key once: remove one of the overrides")


def space_from_dict(content: Mapping[str, Any], where: str = "space") -> Space:
    """Return the space that `content` describes: a dict with the keys of a YAML file, and the name as "name".

    If `content` is invalid, SpaceError is raised; its message starts with `where`, usually the path of the file.
    """
    unknown = sorted(map(str, set(content) - {*_TOP, "name"}))
    if unknown:
        near = difflib.get_close_matches(unknown[0], _TOP, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected the keys {', '.join(_TOP)}."
        raise SpaceError(f"{where}: unknown key {unknown[0]!r}; {hint} Correct the key")
    parameters, auxiliary = content.get("parameters") or {}, content.get("auxiliary") or {}
    if not isinstance(parameters, dict) or not isinstance(auxiliary, dict) or not parameters:
        raise SpaceError(
            f"{where}: `parameters` must map at least one configuration key to a range, and `auxiliary` (optional) "
            f"must map parameter names to ranges; got parameters={parameters!r} and auxiliary={auxiliary!r}"
        )
    base = content.get("base") or []
    if not isinstance(base, list) or not all(isinstance(override, str) for override in base):
        raise SpaceError(f"{where}: `base` must be a list of overrides such as [student=rep_mobile]; got {base!r}")
    for key, spec in (parameters | auxiliary).items():
        if not isinstance(key, str):
            raise SpaceError(
                f"{where}: {key!r} is not the name of a configuration key; expected a string such as train.lr"
            )
        check_range(spec, f"{where}: {key}", {} if key in auxiliary else auxiliary)
    for key, value in {**parameters, **auxiliary, "base": base}.items():
        if "${" in key or "${" in json.dumps(value):  # OmegaConf would replace ${oc.env:NAME} by a variable's value
            raise SpaceError(f"{where}: {key}={value!r} contains '${{'; expected no interpolations: write the value")
    return Space(
        name=content["name"],
        description=str(content.get("description", "")).strip(),
        parameters=parameters,
        auxiliary=auxiliary,
        base=tuple(base),
    )


def _draw(key: str, spec: Mapping[str, Any], trial: Suggests, steering: Mapping[str, int]) -> Any:
    """Return a value of the range `spec`, sampled with `trial` as Optuna's parameter `key`.

    `steering` maps each auxiliary parameter, such as prune.steps, to its sampled value: the length of the lists whose
    range names this parameter under `each`.
    """
    if "uniform" in spec:
        return trial.suggest_float(key, *map(float, spec["uniform"]), step=spec.get("step"))
    if "loguniform" in spec:
        return trial.suggest_float(key, *map(float, spec["loguniform"]), log=True)
    if "int" in spec:
        return trial.suggest_int(key, *spec["int"], step=spec.get("step", 1))
    if "choice" in spec:  # as JSON text, because Optuna's categories must not be lists
        return json.loads(trial.suggest_categorical(key, [json.dumps(v) for v in spec["choice"]]))
    if "subset" in spec:
        members = spec["subset"]
        chosen = [m for m in members if trial.suggest_categorical(f"{key}/{m}", [False, True])]
        missing = [m for m in members if m not in chosen][: max(0, spec.get("min", 0) - len(chosen))]
        return [m for m in members if m in chosen or m in missing]
    return [_draw(f"{key}[{i}]", spec["item"], trial, {}) for i in range(steering[spec["each"]])]


class _End:
    """Replacement for an Optuna trial that suggests the lower (or `upper`) end of every range."""

    def __init__(self, upper: bool):
        self.upper = upper

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return high if self.upper else low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return low + (high - low) // step * step if self.upper else low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[-1] if self.upper else choices[0]
