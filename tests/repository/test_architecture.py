"""The layers of the packages, and rules for all source files, checked by walking their imports."""

import ast
import sys
from pathlib import Path

import pytest

from tests.support.imports import FLOORS, files_that_import, imports, sources, top
from tests.support.paths import ROOT

# sub-packages, and those of the same package that each may import; modules beside them may import all
SUBPACKAGES = {
    "tune.study": set(),
    "tune.cluster": {"tune.study"},
    "tune.search": {"tune.study"},
    "tune.reporting": {"tune.study", "tune.search"},
    "tune.planning": {"tune.study", "tune.search"},
    "tune.commands": {
        *(f"tune.{name}" for name in ("study", "search", "reporting", "planning", "arguments", "cli", "driver")),
        *(f"tune.{name}" for name in ("options", "prepare", "ray_start", "resume")),
    },
    "trainables.config": set(),
    "trainables.outputs": set(),
    "trainables.inputs": {"trainables.config"},
    "trainables.engine": {"trainables.config", "trainables.inputs"},
    "trainables.teachers": {"trainables.config", "trainables.inputs", "trainables.engine"},
    "trainables.trial": {f"trainables.{name}" for name in ("config", "inputs", "outputs", "engine", "teachers")},
    "trainables.single": {
        f"trainables.{name}" for name in ("config", "inputs", "outputs", "engine", "teachers", "trial")
    },
    "ascmodels.config": set(),
    "ascmodels.students": {"ascmodels.config"},
    "ascmodels.teachers": {"ascmodels.config", "ascmodels.checkpoint"},
    "ascmodels.compress": {f"ascmodels.{name}" for name in ("config", "students", "nessi", "export")},
    "data.config": set(),
    "analysis.compare": {
        f"analysis.{name}" for name in ("figures", "front", "page", "replicates", "results", "summary", "typed_json")
    },
    "analysis.findings": {f"analysis.{name}" for name in ("front", "manifest", "replicates", "results", "summary")},
    "analysis.figures": {f"analysis.{name}" for name in ("findings", "front", "replicates", "results", "summary")},
    "analysis.page": {
        *(f"analysis.{name}" for name in ("figures", "findings", "front", "manifest", "replicates", "results")),
        "analysis.summary",
    },
}
MAX_LINES = 300
MAX_MODULES = 12  # of a folder
# library with a wide interface -> the files that may import it
WRAPPED = {
    "torch_pruning": {"ascmodels/compress/groups.py"},
    "wandb": {"trainables/outputs/tracking.py"},
    "hydra": {"trainables/config/compose.py"},
    "torchinfo": {"ascmodels/nessi.py"},
}


def test_the_walk_sees_what_is_there():
    """Without this test, the checks below would also pass if no import were found."""
    assert len(sources()) > 25
    assert set(map(top, sources())) == set(FLOORS)
    assert "trainables.config.schema" in imports("tune.commands.search")
    assert "data.tau" in imports("data.cache")
    assert "data.tau" in imports("trainables.trial.trial")  # from data import tau
    assert "transformers" in imports("ascmodels.teachers.ast")
    assert "transformers" not in imports("ascmodels.teachers.ast", functions=False, typing=False)


@pytest.mark.parametrize("package", FLOORS)
def test_arrows_only_point_down(package):
    wrong = [
        f"{module} imports {name}"
        for module in sources()
        if top(module) == package
        for name in imports(module)
        if top(name) in FLOORS and top(name) != package and not {name, top(name)} & FLOORS[package]
    ]
    assert not wrong, wrong


def subpackage(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_arrows_between_subpackages_only_point_down(name):
    wrong = [
        f"{module} imports {found}"
        for module in sources()
        if subpackage(module) == name
        for found in imports(module)
        if top(found) == top(name) and subpackage(found) not in {name, *SUBPACKAGES[name]}
    ]
    assert not wrong, wrong


def test_packages_of_setup_cfg_are_those():
    text = (ROOT / "setup.cfg").read_text()
    listed = text.partition("packages =")[2].partition("install_requires")[0].split()
    assert sorted(listed) == sorted([*FLOORS, *SUBPACKAGES])
    for module, path in sources().items():
        assert (path.parent / "__init__.py").is_file(), module
    lost = [
        p for p in ROOT.glob("*/*.py") if p.parent.name not in (*FLOORS, "tests") and not p.parent.name.startswith(".")
    ]
    assert not lost, f"packages that no floor names: {lost}"


@pytest.mark.parametrize("library", WRAPPED)
def test_a_wide_dependency_is_known_to_one_file(library):
    assert files_that_import(library) == WRAPPED[library]


def test_ray_stays_in_tune_and_with_the_trainables():
    wrong = {f for f in files_that_import("ray") if not f.startswith("tune/")} - {"trainables/ray_trainables.py"}
    assert not wrong, wrong
    for module in sources():
        text = sources()[module].read_text()
        assert "from ray import tune" not in text, f"{module}: our own package is called tune; import ray.tune as rt"


def ray_classes(code: str) -> list[int]:
    """Return the line numbers of classes that derive from a class of Ray."""
    names, found = set[str](), []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {n.asname or top(n.name) for n in node.names if top(n.name) == "ray"}
        elif isinstance(node, ast.ImportFrom) and top(node.module or "") == "ray":
            names |= {n.asname or n.name for n in node.names}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ClassDef) and any(top(ast.unparse(base)) in names for base in node.bases):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("import ray.tune as rt\nclass A(rt.Trainable): ...", [2]),
        ("import ray\nclass A(B, ray.tune.Callback): ...", [2]),
        ("from ray.tune.search import Searcher as S\nclass A:\n  class B(S): ...", [3]),
        ("def f():\n  from ray.tune import Stopper\n  class A(Stopper): ...", [3]),
        ("import ray.tune as rt\nclass A(Base): x: rt.Callback", []),
        ("from array import array\nclass A(array): ...", []),
    ],
)
def test_classes_derived_from_rays_are_found(code, lines):
    assert ray_classes(code) == lines


def test_one_file_adapts_ray():
    """Only the files that adapt the search, the Trainables and the access to a cluster derive from Ray's classes."""
    found = {str(path.relative_to(ROOT)) for path in sources().values() if ray_classes(path.read_text())}
    assert found == {"tune/search/ray_adapter.py", "trainables/ray_trainables.py", "tune/cluster/access.py"}


def test_rays_own_optuna_search_is_not_used():
    """Ray's OptunaSearch keeps its own state; our sampler's state must follow from the events of the study alone."""
    for module, path in sources().items():
        assert not {n for n in imports(module) if n.startswith("ray.tune.search.optuna")}, module
        assert "OptunaSearch" not in path.read_text(), module


def test_files_needs_nothing_but_the_standard_library():
    assert set(map(top, imports("data.files"))) <= sys.stdlib_module_names
    assert not sources()["data"].read_text()


def renames(code: str) -> list[int]:
    """Return the lines that rename a file: `os.replace(a, b)`, `path.replace(b)`, `shutil.move(a, b)`.

    `text.replace(old, new)`, `table.rename(columns=...)` and `replace(config, seed=1)` rename none.
    """
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            found += [node.lineno for name in node.names if name.name in ("move", "rename", "renames", "replace")]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, called = ast.unparse(node.func.value), node.func.attr
        keywords = {keyword.arg for keyword in node.keywords}
        of_path = "target" in keywords or (called == "rename" and node.args)
        of_path = of_path or (called == "replace" and len(node.args) == 1 and not keywords)
        if (called in ("rename", "replace") and of_path) or (
            (owner, called) in (("os", "rename"), ("os", "renames"), ("os", "replace"), ("shutil", "move"))
        ):
            found.append(node.lineno)
    return sorted(found)


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("path.rename(other)", [1]),
        ("x = 1\nPath(a).with_name(b).replace(other)", [2]),
        ("path.replace(target=other)", [1]),
        ("import os\nos.replace(a, b)\nos.rename(src=a, dst=b)", [2, 3]),
        ("from os import path, replace", [1]),
        ("from shutil import move", [1]),
        ("shutil.move(a, b)", [1]),
        ("text.replace(a, b)\ntext.replace(a, b, 1)", []),
        ("table.rename(columns=names)", []),
        ("time.replace(tzinfo=None)\nreplace(config, seed=1)\ndataclasses.replace(config, seed=1)", []),
        ("from dataclasses import replace", []),
    ],
)
def test_renames_are_told_from_other_calls(code, lines):
    assert renames(code) == lines


def test_only_one_file_renames():
    files = {str(path.relative_to(ROOT)): renames(path.read_text()) for path in sources().values()}
    wrong = {name: lines for name, lines in files.items() if lines and name != "data/files.py"}
    assert not wrong, f"{wrong}: write by data.files"
    assert len(files["data/files.py"]) > 3


def test_analysis_reads_files_only():
    for module in sources():
        if top(module) == "analysis":
            heavy = {"torch", "torchaudio", "ray", "optuna", "hydra"} & set(map(top, imports(module)))
            assert not heavy, f"{module} imports {heavy}"


def test_no_file_is_long_and_no_folder_crowded():
    tests = [path for path in (ROOT / "tests").rglob("*.py") if "__pycache__" not in path.parts]
    assert len(tests) > 80
    folders: dict[Path, int] = {}
    for path in [*sources().values(), *tests]:
        assert len(path.read_text().splitlines()) <= MAX_LINES, path
        if path.name not in ("__init__.py", "conftest.py"):
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert not {folder: n for folder, n in folders.items() if n > MAX_MODULES}


def test_every_file_says_what_it_is():
    for module, path in sources().items():
        text = path.read_text()
        assert not text or ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
