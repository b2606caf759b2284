"""The documentation: commands, flags, configurations, links and paths in all README files exist."""

import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from search_spaces import FOLDER, load_space
from tests.support.paths import ROOT
from trainables.config.compose import CONFIG_DIR, compose
from tune.cli import COMMANDS
from tune.options import read_request
from tune.planning.checks import check_not_searched, check_space

PACKAGES = ("analysis", "ascmodels", "data", "search_spaces", "trainables", "tune")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RESEARCH_PLAN.md", ".github/copilot-instructions.md")),
    *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("README.md"))),
]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
TEXTS = {path: path.read_text() for path in DOCUMENTS}
EVERYTHING = "\n".join(TEXTS.values())
MAX_LINES, MAX_COLUMNS = 150, 120
FENCE = re.compile(r"^```\w*\n(.*?)^```$", flags=re.S | re.M)
ENTRY = "    sys.exit(main())\n"  # last line of a file that is a command


@cache
def commands() -> dict[str, list[list[str]]]:
    """Return script -> the argument lists shown, of commands that start with `python` or `asc-tune`.

    A backslash, or a line that starts with an indented flag, continues the command above it.
    """
    found: dict[str, list[list[str]]] = {}
    last: list[str] = []
    blocks = "\n".join(block for text in TEXTS.values() for block in FENCE.findall(text))
    for line in blocks.replace("\\\n", " ").splitlines():
        command = re.match(r"(?:\w+=\S+ )*(?:python (-m )?|(asc-tune) )([\w./-]+)(.*)", line)
        if command:
            module, installed, name, rest = command.groups()
            if module or installed:
                name = (COMMANDS[name][0] if installed else name).replace(".", "/") + ".py"
            last = shlex.split(rest, comments=True)
            found.setdefault(name, []).append(last)
        elif re.match(r"    +--", line):
            last += shlex.split(line, comments=True)
    return {name: lists for name, lists in found.items() if name.startswith(PACKAGES) or (ROOT / name).exists()}


def paths_in(text: str) -> Iterator[str]:
    """Yield the repository paths in the backticks of `text`; code blocks, patterns and placeholders are left out."""
    for token in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        for word in token.split():
            name = word.partition("::")[0]
            rooted = "/" in name and name.partition("/")[0] in (*PACKAGES, "tests", ".github")
            if re.fullmatch(r"[\w./-]+", name) and (rooted or name.endswith(".py")):
                yield word


def test_every_command_is_shown() -> None:
    files = {
        str(path.relative_to(ROOT))
        for folder in PACKAGES
        for path in (ROOT / folder).glob("*.py")
        if path.read_text().endswith(ENTRY)
    }
    assert files - {"tune/cli.py"} <= set(commands())
    assert not [name for name in COMMANDS if f"asc-tune {name}" not in EVERYTHING]


def test_every_command_shown_exists() -> None:
    for name in commands():
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`asc-tune ([a-z][\w-]*)", EVERYTHING):
        assert name in COMMANDS, f"asc-tune {name}"


@pytest.mark.parametrize("script", sorted(name for name in commands() if name.startswith(PACKAGES)))
@pytest.mark.slow
def test_every_flag_shown_is_in_the_commands_help(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags_shown = {word.split("=")[0] for words in commands()[script] for word in words if word.startswith("--")}
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    monkeypatch.setattr("sys.argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert not [flag for flag in sorted(flags_shown) if not re.search(rf"{re.escape(flag)}\b", text)]


@pytest.mark.parametrize("arguments", commands()["tune/run.py"], ids=" ".join)
def test_every_search_shown_is_accepted(arguments: list[str], tmp_path: Path) -> None:
    """The options and flags of each search command are valid, and none sets a key that the space searches."""
    arguments = ["kd_prune" if word == "<name>" else word for word in arguments]
    request = read_request([*arguments, "--storage", str(tmp_path)])
    if request.options.space:
        check_not_searched(load_space(request.options.space), request.overrides)


@pytest.mark.slow
@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```$", EVERYTHING, flags=re.S | re.M))
def test_every_space_shown_can_be_searched(text: str, tmp_path: Path) -> None:
    (tmp_path / "my_space.yaml").write_text(text)
    space = load_space(str(tmp_path / "my_space.yaml"))
    check_space(space, compose(space.base))


@pytest.mark.slow
@pytest.mark.parametrize("group", ["student", "teacher", "profile", "prune"])
def test_every_shipped_configuration_is_named_and_loads(group: str) -> None:
    for path in (CONFIG_DIR / group).glob("*.yaml"):
        assert re.search(rf"`{path.stem}`", EVERYTHING), f"{group}={path.stem} is in no README"
        compose([f"{group}={path.stem}"])


def test_every_shipped_space_is_named() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert not [name for name in names if f"`{name}`" not in TEXTS[ROOT / "tune/README.md"]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[document]):
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", target.read_text()), flags=re.M)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, link


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_paths_in_backticks_exist(document: Path) -> None:
    for word in paths_in(TEXTS[document]):
        name, _, member = word.partition("::")
        own = document.parent / name
        file = own if own.exists() else ROOT / name
        if not file.exists() and "/" not in name:  # a module of a package that the line names
            found = [p for package in PACKAGES for p in (ROOT / package).rglob(name)]
            assert found, f"{word} is in no package"
            continue
        assert file.exists(), word
        assert not member or re.search(rf"^(?:def|class) {member}\b", file.read_text(), flags=re.M), word


def test_the_readme_is_short() -> None:
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= MAX_LINES


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_lines_are_not_long(document: Path) -> None:
    assert not [line for line in TEXTS[document].splitlines() if len(line) > MAX_COLUMNS]
