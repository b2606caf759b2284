"""A command started as a file runs the packages of its own checkout, whichever other checkout is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from trainables.checkout import PACKAGES

COMMANDS = (
    "run_training",
    "progressive_prune",
    "finetune_teacher",
    "import_logits",
    "cache_logits",
    "compare_teachers",
    "deploy",
)
ASK_A_WORKER = """
import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("checkout.py")))
import ray


@ray.remote
def where():
    import data.tau

    return data.tau.__file__


ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(ray.get(where.remote()))
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a second checkout, in which `--storage` has another help text."""
    root = tmp_path_factory.mktemp("clone")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = root / "trainables" / "single" / "arguments.py"
    text = path.read_text()
    assert "folder of runs and caches" in text
    path.write_text(text.replace("folder of runs and caches", "the clone's folder"))
    return root


def start(script: Path, *words: str, first: Path = ROOT, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess:
    """Run a script with the checkout `first` on the Python path, like an installed one."""
    environment = os.environ | {"PYTHONPATH": str(first)} | more
    command = [sys.executable, str(script), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_packages_are_all_of_ours():
    assert {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests"} == set(PACKAGES)


def test_every_command_of_trainables_chooses_its_checkout():
    found = [p.stem for p in (ROOT / "trainables").glob("*.py") if "sys.exit(main())" in p.read_text()]
    assert sorted(found) == sorted(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_uses_the_packages_beside_it(clone, command):
    done = start(clone / "trainables" / f"{command}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "the clone's folder" in done.stdout


@pytest.mark.slow
def test_started_as_a_module_it_is_the_same(clone):
    environment = os.environ | {"PYTHONPATH": str(clone)}
    command = [sys.executable, "-m", "trainables.run_training", "--help"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the clone's folder" in done.stdout


@pytest.mark.parametrize("safe_path", ["", "1"])
def test_a_package_that_was_imported_from_elsewhere_stops_the_command(clone, tmp_path, safe_path):
    """The interpreter imports the installed checkout at its start, before it runs the script."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport trainables\n")
    script = clone / "trainables" / "run_training.py"
    done = start(script, "--help", first=tmp_path, PYTHONSAFEPATH=safe_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert str(ROOT / "trainables") in line
    assert str(clone / "trainables") in line
    assert done.stdout == ""


@pytest.mark.parametrize("emptied", [False, True])
def test_a_package_that_is_missing_is_named_with_its_place(tmp_path, emptied):
    """An existing folder without `__init__.py` would be a package without a place."""
    (tmp_path / "trainables").mkdir()
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").touch()
    if emptied:
        (tmp_path / "ascmodels").mkdir()
    script = tmp_path / "trainables" / "deploy.py"
    script.write_text(ASK_A_WORKER)
    shutil.copy(ROOT / "trainables" / "checkout.py", script.parent)
    done = start(script, first=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "ascmodels") in line and "None" not in line


@pytest.mark.slow
@pytest.mark.ray
def test_rays_workers_use_the_packages_of_the_command(clone, tmp_path):
    script = clone / "trainables" / "ask_a_worker.py"
    script.write_text(ASK_A_WORKER)
    done = start(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[-1]) == clone / "data" / "tau.py"
