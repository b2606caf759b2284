"""Names, paths, URIs and values that come from outside."""

import io
from pathlib import Path

import pytest
from rich.markup import escape
from rich.table import Table

from data.untrusted import (
    Terminal,
    credentials_in,
    interpolation_in,
    is_name,
    is_relative_path,
    link_out_of,
    printable,
)

BAD = ("", ".", "..", "../x", "/x", "a/b", "a\\b", ".hidden", " x", "a\nb", "a\x00b", "\x1b[2J", "\u202ex", "x" * 201)


@pytest.mark.parametrize("name", ["t0003", "t0003r1", "kd_prune-20260105-093000", "A.b-c_d", "aä", "no end", "x" * 200])
def test_names(name: str) -> None:
    assert is_name(name) and is_relative_path(name) and is_relative_path(f"audio/{name}")


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)
    assert not is_relative_path(f"audio/{name}/x.wav") or name == "a/b"


@pytest.mark.parametrize("path", ["/x", "x/", "a//b", "../x", "a/../b", "a/./b", "~/x/.."])
def test_what_is_no_path_below_a_folder(path: str) -> None:
    assert not is_relative_path(path)


def test_links(tmp_path: Path) -> None:
    study, outside = tmp_path / "study", tmp_path / "outside"
    (study / "experiments" / "t0000").mkdir(parents=True)
    (study / "wandb" / "run").mkdir(parents=True)
    outside.mkdir()
    (outside / "study-2").mkdir()
    assert link_out_of(tmp_path / "missing") is None
    (study / "inside").symlink_to(study / "experiments")
    (study / "loop").symlink_to(study / "loop")
    (study / "wandb" / "latest").symlink_to("/elsewhere")
    assert link_out_of(study, skipped="wandb") is None
    assert link_out_of(study) == study / "wandb" / "latest"
    (tmp_path / "again").symlink_to(study)  # the folder itself may be a link
    assert link_out_of(tmp_path / "again", skipped="wandb") is None
    link = study / "experiments" / "t0000" / "step0"
    for target in ("../../../outside", outside, "/etc/passwd", "../../../study-2", tmp_path):
        link.symlink_to(target)
        assert link_out_of(study, skipped="wandb") == link
        link.unlink()
    (study / "wandb").rename(study / "other")
    (study / "wandb").symlink_to(outside)
    (study / "other" / "latest").unlink()
    assert link_out_of(study, skipped="wandb") == study / "wandb"


@pytest.mark.parametrize(
    "text",
    [
        "s3://KEY:se/cret@bucket/x",
        "s3://KEY@bucket/x",
        "s3://:secret@bucket",
        "s3://bucket/x?endpoint_override=http://me:secret@host:9000",
        "s3://bucket/x?endpoint_override=http%3A%2F%2Fme%3Asecret%40host",
        "s3://bucket/x?endpoint_override=me%2540host",
        "s3://bucket/x?region=us-east-1&access_key=KEY&secret_key=secret",
        "s3://bucket/x?session_token=secret",
        "--storage=s3://KEY:secret@bucket/x",
        "http://me:secret@host:6379",
        "abfs://secret@account/x",
    ],
)
def test_credentials_are_found_and_not_shown(text: str) -> None:
    found = credentials_in(text)
    assert found is not None and not any(word in found for word in ("secret'", "se/cret", "KEY", "me:"))


@pytest.mark.parametrize(
    "text",
    [
        *("runs", "a@b", "/home/me@work/runs", "s3://bucket/path/x", "s3://bucket/me@work", "train.lr=0.1", "k=?a@b"),
        *("s3://b/x?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:9000", "gs://b/x", "127.0.0.1:6379"),
    ],
)
def test_what_has_no_credentials(text: str) -> None:
    assert credentials_in(text) is None


def test_interpolations() -> None:
    assert interpolation_in({"a": ["b", {"c": ("d", "x${oc.env:HOME}")}]}) == "x${oc.env:HOME}"
    assert interpolation_in({"${k}": 1}) == "${k}"
    assert interpolation_in({"a": [1, None, "$HOME", "{x}", True]}) is None


def test_control_characters_reach_the_terminal_as_text():
    evil = "a\x1b[2J\x07\u202e\nb"
    stream = io.StringIO()
    console = Terminal(file=stream, force_terminal=True, width=100)
    table = Table(evil, title=evil)
    table.add_row(evil)
    console.print(f"[red]error:[/red] {escape(evil)}", highlight=False)
    console.print(table)
    text = stream.getvalue()
    assert not {"\x07", "\u202e"} & set(text)
    assert "\x1b[2J" not in text
    assert text.count(r"a\x1b[2J\x07\u202e") == 4
    assert "\x1b[31merror:\x1b[0m a" in text  # our own colours
    assert printable("Zürich 東京\t☺\n") == "Zürich 東京\t☺\n"
