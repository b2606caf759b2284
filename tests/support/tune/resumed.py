"""Studies that are finished or continued without Ray."""

from pathlib import Path

from rich.console import Console

from analysis.manifest import StudyManifest
from search_spaces import load_space, space_from_dict
from tests.support.driven_study import Driver
from tune.arguments import parser
from tune.driver import Search
from tune.study.access import StudyAccess
from tune.study.retry import Retry


def finish(folder: Path) -> None:
    """Complete the running trials of the study in `folder`, and with them the study."""
    driver = Driver(folder, load_space("kd"))
    for trial in driver.state.open:
        driver.epoch(trial.name, 1)
        driver.end(trial.name)
    driver.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begun(folder: Path, manifest: StudyManifest, *words: str) -> Search:
    """Start a driver that writes its first events and stops; return its search."""
    options = parser("").parse_args(list(words))
    space = space_from_dict(manifest.resolved.space)
    console = Console(quiet=True)
    search = Search(StudyAccess(folder), manifest, space, Retry(lambda message: None), console)
    search.begin(options.confirm)
    search.journal.close()
    return search
