"""Checks of names, paths, URIs and values that come from outside: command lines, csv files, manifests, object stores.

    is_name("t0003")                      # True; False for "../x", "a/b", ".hidden" and "a\\nb"
    is_relative_path("audio/bus-1.wav")   # True; False for "audio/../x.wav" and "/x.wav"
    link_out_of(folder)                   # a symbolic link below `folder` that leads out of it, or None
    linked_out(Path("runs/x"))            # a message about such a link in a study or run, or None
    credentials_in("s3://u:p@bucket/x")   # a text that says where the URI contains credentials; None: nowhere
    interpolation_in(["${oc.env:KEY}"])   # "${oc.env:KEY}"; None if no text contains "${"
    Terminal().print(name)                # a console that prints control characters as text, such as \\x1b

Each caller raises the error of its own package.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

INTERPOLATION = "${"  # OmegaConf replaces ${oc.env:NAME} by the value of an environment variable
# query parameters of the URIs of pyarrow's file systems that contain no credentials
_PARAMETERS = {
    *("scheme", "region", "endpoint_override", "project_id", "retry_limit_seconds", "enable_tls"),
    *("allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "tls_ca_file_path"),
    *("check_directory_existence_before_creation", "force_virtual_addressing"),
}
_USER = re.compile(r":/+(?:[^/\s]*|\S*:\S*)@")  # ://user@ or ://user:password@; a password may contain "/"
_NAME_BYTES = 200  # file systems allow 255 bytes; names of temporary files and locks are longer than the name


def is_name(text: str) -> bool:
    """Return whether `text` is a safe name of a file or folder.

    It must have 1 to 200 bytes, be printable, not contain a slash or backslash, and not start with a dot or a space.
    """
    return (
        text.isprintable()
        and not text.startswith((".", " "))
        and not {"/", "\\"} & set(text)
        and 0 < len(text.encode(errors="replace")) <= _NAME_BYTES
    )


def is_relative_path(text: str) -> bool:
    """Return whether `text` is a path below the folder to which it is relative; each of its parts is a valid name."""
    return all(map(is_name, text.split("/")))


def link_out_of(folder: Path, skipped: str = "") -> Path | None:
    """Return a symbolic link below `folder` whose target is outside `folder`; None if there is none.

    The content of folders with the name `skipped` is not checked.
    """
    root = folder.resolve()
    places = [root] if root.is_dir() else []
    while places:
        with os.scandir(places.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    if not Path(os.path.realpath(entry)).is_relative_to(root):  # unlike `resolve`, accepts loops
                        return Path(entry)
                elif entry.is_dir() and entry.name != skipped:
                    places.append(Path(entry))
    return None


def linked_out(folder: Path) -> str | None:
    """Return an error message if a symbolic link leads out of the study or run in `folder`; None: there is none.

    Folders named wandb are not checked: W&B links to its logs in the home folder of the user, and nothing reads them.
    """
    link = link_out_of(folder, skipped="wandb")
    return link and (
        f"{link} is a symbolic link to {os.path.realpath(link)}, outside {folder}; expected files and folders only: "
        "remove the link, or copy its target to this place"
    )


def credentials_in(text: str) -> str | None:
    """Return where `text`, a URI or a command-line argument, has a credential or may have one; None: nowhere.

    The result is a description for messages, such as "a user name or a password before '@'", without the credential.
    """
    if _USER.search(text):
        return "a user name or a password before '@'"
    if "://" not in text or "?" not in text:
        return None
    for name, value in parse_qsl(urlsplit(text).query, keep_blank_values=True):
        if name not in _PARAMETERS:
            return f"the unknown parameter {name[:40]!r}"
        if "@" in value or "%" in value:  # %40 is an @ that was encoded twice
            return f"the parameter {name!r} with a user name or a password"
    return None


def interpolation_in(value: Any) -> str | None:
    """Return the first text in `value`, which may be a nested list or dict, that contains "${"; None: there is none."""
    if isinstance(value, str):
        return value if INTERPOLATION in value else None
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return next((found for found in map(interpolation_in, value) if found is not None), None)
    return None


def printable(text: str) -> str:
    """Return `text` with each control character replaced by an escape such as \\x1b; newlines, tabs, spaces are kept.

    In a terminal, the control characters in a name from a file could delete lines, change colours or hide text.
    """
    if text.isprintable():
        return text
    kept = {"\n", "\t"} | {c for c in text if unicodedata.category(c) == "Zs"}  # Zs: spaces, such as no-break space
    return "".join(c if c in kept or c.isprintable() else ascii(c)[1:-1] for c in text)


class Terminal(Console):
    """A console that escapes the control characters of every text that it prints, also in tables and `Text` objects.

    In a table, only cells of type str get the width that their escapes need.
    Emoji codes are printed as they are: rich would replace `:key:` in a path. Texts from outside may contain rich's
    markup, such as [red]: pass them through `rich.markup.escape`.
    """

    def __init__(self, **options: Any):
        super().__init__(emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)  # first, so that the escapes count for column widths

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def is_widths(value: Any) -> bool:
    """Return whether `value` has the form of the channel widths of a network (`ascmodels.students.Widths`) in JSON."""
    return (
        isinstance(value, dict)
        and set(value) == {"stem", "expand", "out"}
        and all(
            isinstance(part, list) and all(type(n) is int and 0 < n < 2**16 for n in part) for part in value.values()
        )
    )
