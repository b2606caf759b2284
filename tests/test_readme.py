"""The README's commands exist, and every flag that it shows is one of theirs."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from search_spaces import load_space
from trainables.config.compose import CONFIG_DIR, compose
from tune.checks import check_not_searched
from tune.options import read_request

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", README, flags=re.S | re.M)


def commands() -> dict[str, list[list[str]]]:
    """Script -> the argument lists that the README shows; `...` and indented lines go on with the command above."""
    found: dict[str, list[list[str]]] = {}
    last: list[str] = []
    for line in "\n".join(BLOCKS).splitlines():
        command = re.match(r"python (\S+\.py)(.*)", line)
        if command:
            last = shlex.split(command[2], comments=True)
            found.setdefault(command[1], []).append(last)
        elif re.match(r"    +--", line):
            last += shlex.split(line, comments=True)
    return found


def test_the_readme_shows_every_command() -> None:
    mains = {
        str(path.relative_to(ROOT))
        for folder in ("tune", "trainables")
        for path in (ROOT / folder).glob("*.py")
        if path.read_text().endswith("    sys.exit(main())\n")
    }
    assert mains == set(commands())


@pytest.mark.parametrize("script", sorted(commands()))
@pytest.mark.slow
def test_every_flag_shown_is_in_the_commands_help(script, capsys) -> None:
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for arguments in commands()[script]:
        for word in arguments:
            if word.startswith("--"):
                assert re.search(rf"{re.escape(word.split('=')[0])}\b", told), f"{script} {word}"


@pytest.mark.parametrize("arguments", commands()["tune/run.py"], ids=" ".join)
def test_every_search_shown_is_one_that_the_command_takes(arguments: list[str], tmp_path: Path) -> None:
    """Its options and flags are parsed, and none is a value that the space searches."""
    request = read_request([*arguments, "--storage", str(tmp_path)])
    if request.options.space:
        check_not_searched(load_space(request.options.space), request.overrides)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["student", "teacher", "profile", "prune"])
def test_every_shipped_configuration_is_named_and_loads(group) -> None:
    for path in (CONFIG_DIR / group).glob("*.yaml"):
        assert re.search(rf"\b{path.stem}\b", README), f"{group}={path.stem} is not in the README"
        compose([f"{group}={path.stem}"])


def test_paths_that_the_readme_names_exist() -> None:
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / name).exists(), name
