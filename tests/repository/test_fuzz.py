"""A minute of tests/bench/fuzz.py: each damaged input ends in one of the project's own errors, in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.fuzz import faults
from tests.support.paths import ROOT

CHANGES = (
    "(out / 'f').write_text('x')",
    "(place / 'link').write_text('x')",
    "os.open(out / 'f', os.O_WRONLY)",
    "(out / 'f').unlink()",
    "(place / '..' / 'out' / 'f').unlink()",
    "(out / 'f').rename(place / 'f')",
    "(place / 'own').rename(out / 'own')",
    "(out / 'new').mkdir()",
    "(out / 'new').symlink_to('f')",
    "shutil.rmtree(out / 'd')",
)


@pytest.mark.slow
def test_damaged_inputs_are_answered_in_one_line():
    found = list(faults(n_inputs=320, seed=1, seconds=60))
    assert not found, "\n".join(f"{f.kind} (--seed 1 --first {f.number} --inputs 1 --show): {f.detail}" for f in found)


def test_no_input_can_change_a_file_outside_its_folder(tmp_path: Path) -> None:
    place, out = tmp_path / "place", tmp_path / "out"
    place.mkdir()
    (out / "d").mkdir(parents=True)
    for file in (out / "f", out / "d" / "g", place / "own"):
        file.write_text("content")
    (place / "link").symlink_to(out / "f")
    lines = [
        "import os, shutil, sys",
        "from pathlib import Path",
        "from tests.support.fuzz.guard import guard",
        "place, out = map(Path, sys.argv[1:])",
        "refused = guard(place)",
        *(f"try:\n    {change}\n    print({change!r})\nexcept PermissionError:\n    pass" for change in CHANGES),
        "(place / 'new').mkdir()",
        "(place / 'own').rename(place / 'new' / 'own')",
        "shutil.rmtree(place / 'new')",
        "assert sum(refused.values()) == 10, refused",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(place), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stdout + ended.stderr
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == ["d", "d/g", "f"]
    assert (out / "f").read_text() == "content"
