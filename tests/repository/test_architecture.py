"""DESIGN.md's floors, kept by walking the imports of every source file."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# packages and modules of ours that each package may import, beside itself
FLOORS = {
    "search_spaces": set(),
    "data": set(),
    "ascmodels": {"data.files"},
    "trainables": {"ascmodels", "data", "search_spaces"},
    "analysis": {"data.files"},
    "tune": {"analysis", "ascmodels", "data", "search_spaces", "trainables"},
}
# sub-packages, and those of the same floor that each may import; commands beside them may import all
SUBPACKAGES = {
    "tune.study": set(),
    "tune.search": {"tune.study"},
    "tune.reporting": {"tune.study", "tune.search"},
    "tune.planning": {"tune.study", "tune.search"},
    "trainables.config": set(),
    "trainables.outputs": set(),
    "trainables.inputs": {"trainables.config"},
    "trainables.engine": {"trainables.config", "trainables.inputs"},
    "trainables.teachers": {"trainables.config", "trainables.inputs", "trainables.engine"},
    "trainables.trial": {f"trainables.{room}" for room in ("config", "inputs", "outputs", "engine", "teachers")},
    "trainables.single": {
        f"trainables.{room}" for room in ("config", "inputs", "outputs", "engine", "teachers", "trial")
    },
    "ascmodels.students": set(),
    "ascmodels.teachers": {"ascmodels.checkpoint"},
    "ascmodels.compress": {"ascmodels.students", "ascmodels.nessi", "ascmodels.export"},
    "analysis.page": {f"analysis.{module}" for module in ("front", "manifest", "replicates", "results", "summary")},
}
MAX_LINES = 300
MAX_MODULES = 12  # of a folder
# a wide dependency: the files that may know it
WRAPPED = {
    "torch_pruning": {"ascmodels/compress/groups.py"},
    "wandb": {"trainables/outputs/tracking.py"},
    "hydra": {"trainables/config/compose.py"},
    "torchinfo": {"ascmodels/nessi.py"},
}


@cache
def sources() -> dict[str, Path]:
    """Module name -> file, of our packages."""
    files = [p for package in FLOORS for p in sorted((ROOT / package).rglob("*.py")) if "__pycache__" not in p.parts]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


@cache
def imports(module: str, functions: bool = True, typing: bool = True) -> frozenset[str]:
    """Modules that `module` imports: ours in full, others by their first name; with those inside functions, and those
    under TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if (inside and not functions) or (typing_only and not typing):
            return
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: line {node.lineno}"
            source = node.module or ""
            found.update(f"{source}.{n.name}" if f"{source}.{n.name}" in sources() else source for n in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found.add(ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else "?")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(sources()[module].read_text()))
    return frozenset(found)


def top(name: str) -> str:
    return name.partition(".")[0]


def files_that_import(library: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for module, path in sources().items() if library in map(top, imports(module))}


def test_the_walk_sees_what_is_there():
    """The checks below would pass on an empty walk."""
    assert len(sources()) > 25
    assert set(map(top, sources())) == set(FLOORS)
    assert "trainables.config.schema" in imports("tune.run")
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
    """Return the lines of classes that are derived from one of Ray's."""
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
    """Beside the Trainables' file. Another one would know Ray's quirks, too, and an upgrade would touch both."""
    found = {str(path.relative_to(ROOT)) for path in sources().values() if ray_classes(path.read_text())}
    assert found == {"tune/search/ray_adapter.py", "trainables/ray_trainables.py"}


def test_rays_own_optuna_search_is_not_used():
    """It tells Optuna of each trial as Ray saw it; our sampler is a fold over the events of the study."""
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


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph, or nothing: depth first."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for neighbour in sorted(graph.get(node, set())):
            cycle = walk(neighbour, [*path, node])
            if cycle:
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := walk(node, []))), [])


def graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, inside functions and for type checking, too."""
    return {m: {name for name in imports(m) if name in sources()} - {m} for m in sources()}


def test_no_circle_of_imports():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert find_cycle(graph()) == []


def test_no_file_is_long_and_no_folder_crowded():
    folders: dict[Path, int] = {}
    for module, path in sources().items():
        assert len(path.read_text().splitlines()) <= MAX_LINES, module
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert not {folder: n for folder, n in folders.items() if n > MAX_MODULES}


def test_every_file_says_what_it_is():
    for module, path in sources().items():
        text = path.read_text()
        assert not text or ast.get_docstring(ast.parse(text)), f"{module} has no docstring"


@pytest.mark.slow
def test_importing_does_nothing(tmp_path):
    """Analysis needs neither torch nor Ray; no module writes, prints or starts anything when imported."""
    code = f"""
import importlib, json, sys
for name in {[m for m in sources() if top(m) == "analysis"]}:
    importlib.import_module(name)
heavy = sorted({{"torch", "ray", "optuna", "wandb"}} & set(sys.modules))
importlib.import_module("search_spaces")
heavy += sorted({{"torch", "ray"}} & set(sys.modules))
for name in {list(sources())}:
    importlib.import_module(name)
import ray, torch
print(json.dumps({{
    "heavy": heavy,
    "slow": sorted({{"transformers.models.audio_spectrogram_transformer"}} & set(sys.modules)),
    "ray": ray.is_initialized(),
    "cuda": torch.cuda.is_initialized(),
}}), file=sys.stderr)
"""
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    said = json.loads(lines[-1])
    assert said["heavy"] == []
    assert said["slow"] == []
    assert said["ray"] is False
    assert said["cuda"] is False
    assert list(work.iterdir()) == []
