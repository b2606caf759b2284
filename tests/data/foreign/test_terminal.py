"""Texts from outside on the terminal: control characters, spaces and emoji codes (`Terminal`, `printable`)."""

import io
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from data.untrusted import Terminal, printable

EVIL = "a\x1b[2J\u202eb"
SHOWN = r"a\x1b[2J\u202eb"


def printed(*objects: Any) -> str:
    stream = io.StringIO()
    Terminal(file=stream, force_terminal=True, color_system=None, width=100).print(*objects, highlight=False)
    return stream.getvalue()


def test_control_characters_in_every_kind_of_object_are_escaped() -> None:
    table = Table(EVIL, title=Text(EVIL), caption=Text(EVIL))
    table.add_row(EVIL)
    text = printed(table, Text(EVIL), EVIL)
    assert text.count(SHOWN) == 6
    assert not {"\x1b", "\u202e"} & set(text)


@pytest.mark.parametrize("space", ["\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}", "\t"])
def test_spaces_are_kept(space: str) -> None:
    assert printable(f"lr{space}0.1") == f"lr{space}0.1"


@pytest.mark.parametrize("character", ["\x00", "\x7f", "\x85", "\x9b", "\r", "\u2028", "\u200b", "\ufeff", "\ue000"])
def test_other_invisible_characters_are_shown(character: str) -> None:
    assert printable(f"x{character}") == f"x{ascii(character)[1:-1]}"


def test_emoji_codes_in_a_path_are_kept() -> None:
    assert "/data/:key:/x" in printed("/data/:key:/x")
