"""The text of --help about configuration keys: each key with its flag, its default and the comment of its field.

print(configuration_help(flags()))
"""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Mapping
from functools import cache
from typing import Any

from trainables.config.schema import TrialConfig, key_fields

WIDTH = 80  # columns
INTRO = """\
Configuration
  A key is set by a flag with the name that the DCASE baseline gives it
  (--kd_alpha=0.6 or --kd_alpha 0.6), by its full name (--distill.kd_alpha=0.6),
  or by a Hydra override (distill.kd_alpha=0.6): all three mean the same. Lists
  are written as --prune.ratios=0.3,0.3 or 'prune.ratios=[0.3,0.3]'.
  Groups set several keys at once: student=cp_mobile, teacher=ast,
  prune=three_steps, profile=quick or profile=full; their files are in
  trainables/config/groups/. --repconv True means student=rep_mobile, False
  student=cp_mobile. A search space overrides the keys that it searches.
  Defaults are shown as they are typed; `null` means none."""
TITLES = {
    "": "seeds of all parts",
    "data": "data set",
    "frontend": "front-end (log-mel spectrogram)",
    "augment": "augmentation of training clips",
    "student": "student network",
    "teacher": "teacher that is fine-tuned if distill.teacher_ckpts names none",
    "distill": "knowledge distillation",
    "train": "training of the dense network",
    "prune": "structured pruning and retraining",
    "limits": "limits of a deployed network",
}
# parts of the teacher with the same keys as the parts of the student
_LIKE_STUDENT = [["teacher", part] for part in ("frontend", "augment", "train")]


def configuration_help(flags: Mapping[str, str]) -> str:
    """Return the help text of all keys, grouped by topic; `flags` maps each flag to its key (`flags()`)."""
    names: dict[str, list[str]] = {}
    for name, key in flags.items():
        names.setdefault(key, []).append(f"--{name}")
    default, sections = TrialConfig().flat(), [INTRO]
    comments = {key: field_comments(owner)[key.rpartition(".")[2]] for key, owner, _ in key_fields(TrialConfig)}
    for part, title in TITLES.items():
        lines = [f"{part or 'general'}: {title}"]
        for key, comment in comments.items():
            *parts, _ = key.split(".")
            if parts[:1] != ([part] if part else []) or parts in _LIKE_STUDENT:
                continue
            head = ", ".join([*names.get(key, []), f"{key}={_value(default[key])}"])
            lines += _wrapped(head, "  "), _wrapped(comment, "      ")
        if part == "teacher":
            for _, name in _LIKE_STUDENT:
                lines += _wrapped(f"teacher.{name}.*", "  "), _wrapped(f"the keys of {name}, for the teacher", "      ")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _value(value: Any) -> str:
    """Return a default as it is typed in a Hydra override."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@cache
def field_comments(cls: type) -> dict[str, str]:
    """Return the comment at the end of each field's line, by name of the field; "" for a field without one."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    fields = [n for n in body.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return {n.target.id: comments.get(n.end_lineno or n.lineno, "") for n in fields}  # type: ignore[union-attr]
