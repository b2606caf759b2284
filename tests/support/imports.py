"""The modules of our packages, and what each of them imports, read from their source."""

import ast
from functools import cache
from pathlib import Path

from tests.support.paths import ROOT

# package -> our packages and modules that it may import, besides its own
FLOORS = {
    "search_spaces": set(),
    "data": set(),
    "ascmodels": {"data.files", "data.seals"},
    "trainables": {"ascmodels", "data", "search_spaces"},
    "analysis": {"data.files", "data.signals", "data.untrusted", "search_spaces.yaml_file"},
    "tune": {"analysis", "ascmodels", "data", "search_spaces", "trainables"},
}


@cache
def sources() -> dict[str, Path]:
    """Return module name -> file of all modules of our packages."""
    files = [p for package in FLOORS for p in sorted((ROOT / package).rglob("*.py")) if "__pycache__" not in p.parts]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


@cache
def imports(module: str, functions: bool = True, typing: bool = True) -> frozenset[str]:
    """Return the full names of the modules that `module` imports.

    `functions` includes imports inside functions, `typing` those under TYPE_CHECKING.
    """
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
