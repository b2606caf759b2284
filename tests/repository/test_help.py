"""--help: every option and every configuration key is explained, at 80 columns; `asc-tune` knows its commands."""

import configparser
import importlib
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from trainables.config.compose import compose
from trainables.config.flags import flags
from trainables.config.help import WIDTH, configuration_help, field_comments
from trainables.config.schema import TrialConfig, key_types
from trainables.config.train import TrainConfig
from tune import cli


def help_of(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["asc-tune", *words])
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_prints_its_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    text = help_of([name, "--help"], monkeypatch, capsys)
    assert text.startswith(f"usage: asc-tune {name} ")
    long = [line for line in text.splitlines() if len(line) > WIDTH]
    assert not long, long
    for option in [line.split()[0] for line in text.splitlines() if line.startswith("  --")]:
        assert option.rstrip(",").isascii()


def test_the_list_of_commands(capsys) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.COMMANDS)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert cli.main([]) == 2
    assert cli.main(["serch"]) == 2
    assert "serch" in capsys.readouterr().err


def test_the_command_is_installed() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    module, _, function = parser["options.entry_points"]["console_scripts"].partition("=")[2].strip().partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main


def test_the_exit_status_is_the_commands_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["asc-tune"])
    assert cli.main(["report", str(tmp_path / "absent")]) == 2
    assert str(tmp_path / "absent") in "".join(capsys.readouterr())


def test_commands_are_shown_as_this_one_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["asc-tune run", "--space", "kd"])
    assert cli.typed_command("evaluate") == "asc-tune evaluate"
    monkeypatch.setattr(sys, "argv", ["tune/run.py"])
    assert cli.typed_command("evaluate").endswith(" tune/evaluate.py")


def test_every_configuration_key_is_explained() -> None:
    defaults = compose([]).flat()
    text = configuration_help(flags(), defaults)
    heads = [line.split(", ")[-1].strip() for line in text.splitlines() if line.startswith("  ") and "=" in line]
    keys = [head.partition("=")[0] for head in heads]
    assert "train.epochs=16" in heads and "student.branches=[3x3,3x1,1x3,1x1,identity]" in heads  # as without a flag
    shared = [f"teacher.{part}." for part in ("frontend", "augment", "train")]
    wanted = [key for key in key_types() if not key.startswith(tuple(shared))]
    assert sorted(set(wanted) - set(keys)) == []
    unexplained = [
        key for key in wanted if not (comment := comment_of(key)) or len(comment) < 10 or len(comment.split()) < 2
    ]
    assert not unexplained, unexplained


def comment_of(key: str) -> str:
    owner = TrialConfig
    *parts, name = key.split(".")
    for part in parts:
        owner = type(getattr(owner(), part))
    return field_comments(owner)[name]


def test_a_comment_is_that_of_its_own_line() -> None:
    assert field_comments(TrainConfig)["lr"].startswith("peak learning rate")
    assert list(field_comments(TrainConfig)) == list(TrainConfig.__dataclass_fields__)
