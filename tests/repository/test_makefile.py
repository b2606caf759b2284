"""`make run` hands names and paths to the commands as they are; nothing in them is run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

RECORDER = """#!{python}
import json, os, sys
with open("calls", "a") as stream:
    print(json.dumps([sys.argv[1:], os.environ.get("TAU24_PATH")]), file=stream)
"""


def calls(folder: Path, *words: str, **environment: str) -> list:
    """Return [arguments, TAU24_PATH] of each Python command that `make run` starts in `folder`; none of them runs."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt", "installed"):
        (folder / name).touch()
    (folder / "python").write_text(RECORDER.format(python=sys.executable))
    (folder / "python").chmod(0o755)
    command = ["make", "run", "PY=./python", "INSTALLED=installed", *words]
    kept = {k: v for k, v in os.environ.items() if k not in ("TAU24_PATH", "NAME", "SPACE", "ARGS", "MAKEFLAGS")}
    done = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_without_a_data_set_the_embedded_one_is_searched(tmp_path):
    build, run, evaluate = calls(tmp_path, "SPACE=kd", "ARGS=--num-samples 3")
    assert build[0] == ["-m", "data.synthetic", "tau-synthetic", "--eval", "100"]
    words = ["tune/run.py", "--space=kd", "--name=kd-synthetic", "--resume", "--num-samples", "3"]
    assert run == [words, "tau-synthetic"]
    assert evaluate == [["tune/evaluate.py", "runs/kd-synthetic"], "tau-synthetic"]


@pytest.mark.parametrize(
    "path",
    [
        "/data/TAU",
        "/data/it's",
        "x'; touch injected; '",
        "$(shell touch injected)",
        "`touch injected`",
        '"; touch injected; "',
    ],
)
@pytest.mark.parametrize("typed", [False, True])
def test_a_path_is_never_run(tmp_path, path, typed):
    given = {"words": [f"TAU24_PATH={path}"], "more": {}} if typed else {"words": [], "more": {"TAU24_PATH": path}}
    run, evaluate = calls(tmp_path, *given["words"], **given["more"])
    assert run[1] == path
    assert run[0][2].startswith("--name=kd_prune-")
    assert f"runs/{run[0][2].removeprefix('--name=')}" == evaluate[0][1]
    assert not (tmp_path / "injected").exists()


@pytest.mark.parametrize("name", ["NAME", "SPACE"])
def test_a_name_is_never_run(tmp_path, name):
    *_, run, _ = calls(tmp_path, **{name: "x'; touch injected; '"})
    assert f"--{name.lower()}=x'; touch injected; '" in run[0]
    assert not (tmp_path / "injected").exists()
