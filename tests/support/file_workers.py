"""Functions that tests/data/test_files.py runs in new processes (`conftest.fresh_processes`)."""

import json
import os
import signal
import time
from pathlib import Path

from data import files


def replace_often(path: Path, letter: str) -> None:
    """Replace the file at `path` by 100 kB of one letter, 100 times."""
    for _ in range(100):
        files.replace_text(path, letter * 100_000)


def read_often(path: Path, result: Path) -> None:
    """Read the file at `path` 300 times; write each distinct content as "length letters" to `result` (JSON list)."""
    seen = set()
    for _ in range(300):
        text = path.read_text()
        seen.add(f"{len(text)} {''.join(sorted(set(text)))}")
        time.sleep(0.001)
    result.write_text(json.dumps(sorted(seen)))


def count_up(folder: Path, by_file: bool) -> None:
    """Add 1 to the number in the file `folder`/number 200 times, holding a lock each time.

    The lock is the file `folder`/lock if `by_file`, else the folder.
    """
    for _ in range(200):
        with files.locked(folder / "lock" if by_file else folder):
            (folder / "number").write_text(str(int((folder / "number").read_text()) + 1))


def die_holding(path: Path) -> None:
    """Kill this process (SIGKILL) while it holds a lock."""
    with files.locked(path):
        os.kill(os.getpid(), signal.SIGKILL)


def die_replacing(path: Path) -> None:
    """Kill this process (SIGKILL) while it writes the temporary file that would replace `path`."""
    with files.replacing(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def die_between_renames(folder: Path) -> None:
    """Kill this process (SIGKILL) in `replace_folder`, between the renames of the old and of the new folder."""
    rename = Path.rename

    def rename_once(self: Path, target: Path) -> None:
        rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.rename = rename_once  # type: ignore[method-assign]
    files.replace_folder(folder, lambda temporary: (temporary / "a").touch())


def die_pulling(uri: str, name: str, local: Path, n_files: int) -> None:
    """Kill this process (SIGKILL) while it copies a folder from an object store, after `n_files` complete files.

    `name` is the folder in the store `uri`, `local` the target. The next file is left empty.
    """
    from trainables.outputs import storage

    copy, count = storage.fs.copy_files, iter(range(10**6))

    def copy_or_die(source: str, target: str, **options) -> None:
        if next(count) == n_files:
            Path(target).write_bytes(b"")
            os.kill(os.getpid(), signal.SIGKILL)
        copy(source, target, **options)

    storage.fs.copy_files = copy_or_die
    storage.Store(uri).pull(name, local)


def call(function, arguments: tuple) -> None:
    """Call one of the functions above; a target for processes that run different functions at the same time."""
    function(*arguments)
