"""Help text of the configuration keys, for --help: each key with its flag, its default and an explanation.

The explanation of a key is the comment on the line that defines its field in the dataclass.
"""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trainables.config.schema import TrialConfig, key_fields

WIDTH = 80  # columns
INTRO = """\
Configuration
  A key is set by a flag with the name that the DCASE baseline gives it
  (--kd_alpha=0.6 or --kd_alpha 0.6), by its full name (--distill.kd_alpha=0.6),
  or by a Hydra override (distill.kd_alpha=0.6): all three mean the same. Lists
  are written as --prune.ratios=0.3,0.3 or 'prune.ratios=[0.3,0.3]'.
  Groups set several keys at once; their files are in trainables/config/groups/:
{groups}
  --repconv True means student=rep_mobile, False student=cp_mobile.
  --kd_lambda=0.02 sets kd_alpha for the loss of other code bases, lambda * CE +
  (1 - lambda) * T^2 * KL. With --kd_reduction=elements (default), their KL is
  averaged over clips and classes, with --kd_reduction=batch over clips.
  Defaults are those of profile=quick and student=rep_mobile, in the syntax of a
  Hydra override; `null` means "no value". The base of a search space has
  priority over them, and so has the trained network in `prune` and `deploy`.
  In a search, the space sets the keys that it searches."""
TITLES = {
    "": "random seeds",
    "data": "data set",
    "frontend": "front-end (log-mel spectrogram)",
    "augment": "augmentation of training clips",
    "student": "student network (the stages are those of the network; tf_sepnet uses only base_channels, activation)",
    "teacher": "teacher to fine-tune if distill.teacher_ckpts is empty",
    "distill": "knowledge distillation",
    "train": "training of the dense network",
    "prune": "structured pruning and retraining (ratios; or n_steps and one of total_ratio, target_macs, target_bytes)",
    "limits": "limits of a deployed network",
}
GROUPS = {
    "profile": "quick: minutes on a CPU; full: recipe of the DCASE baseline, for a GPU",
    "recipe": "training of others: dcase2024 (the baseline), kd (with the field's distillation)",
    "student": "architecture of the student",
    "teacher": "architecture and weights of the teacher; *_small: from scratch, for a CPU",
    "prune": "pruning plan; without this group, nothing is pruned",
}
# parts of the teacher's configuration that have the keys of the student's; the help text does not repeat these keys
_LIKE_STUDENT = [["teacher", part] for part in ("frontend", "augment", "train")]


def configuration_help(flags: Mapping[str, str], defaults: Mapping[str, Any]) -> str:
    """Return the help text of all configuration keys, grouped by topic.

    `flags` maps the name of each flag, without `--`, to the configuration key that it sets, and `defaults` each key to
    the value that it has if it is not set.
    """
    names: dict[str, list[str]] = {}
    for name, key in flags.items():
        names.setdefault(key, []).append(f"--{name}")
    sections = [INTRO.format(groups="\n".join(map(_group, GROUPS)))]
    comments = {key: field_comments(owner)[key.rpartition(".")[2]] for key, owner, _ in key_fields(TrialConfig)}
    for part, title in TITLES.items():
        lines = [_wrapped(f"{part or 'general'}: {title}", "")]
        for key, comment in comments.items():
            *parts, _ = key.split(".")
            if parts[:1] != ([part] if part else []) or parts in _LIKE_STUDENT:
                continue
            head = ", ".join([*names.get(key, []), f"{key}={_value(defaults[key])}"])
            lines += _wrapped(head, "  "), _wrapped(comment, "      ")
        if part == "teacher":
            for _, name in _LIKE_STUDENT:
                same = f"the same keys as {name}.*, with other defaults"
                lines += _wrapped(f"teacher.{name}.*", "  "), _wrapped(same, "      ")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _group(name: str) -> str:
    """Return the lines of the configuration group `name`: its possible values and what it sets."""
    values = sorted(file.stem for file in (Path(__file__).parent / "groups" / name).glob("*.yaml"))
    return _wrapped(f"{name}={', '.join(values)}", "    ") + "\n" + _wrapped(GROUPS[name], "        ")


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _value(value: Any) -> str:
    """Return `value`, the default of a configuration key, in the syntax of Hydra overrides (None becomes `null`)."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@cache
def field_comments(cls: type) -> dict[str, str]:
    """Return a dict from each field of the dataclass `cls` to the comment on its line ("" if there is none)."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    fields = [n for n in body.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return {n.target.id: comments.get(n.end_lineno or n.lineno, "") for n in fields}  # type: ignore[union-attr]
