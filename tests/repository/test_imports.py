"""Imports: no cycles, and importing a module has no side effect."""

import json
import subprocess
import sys

import pytest

from tests.support.imports import imports, sources, top
from tests.support.paths import ROOT


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return a cycle of the graph, or an empty list."""
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
    """Return module -> our modules that it imports, also inside functions and for type checking."""
    return {m: {name for name in imports(m) if name in sources()} - {m} for m in sources()}


def test_no_circle_of_imports():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert find_cycle(graph()) == []


@pytest.mark.slow
def test_importing_does_nothing(tmp_path):
    """Importing `analysis` loads neither torch nor Ray, and importing any module writes, prints and starts nothing."""
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
    report = json.loads(lines[-1])
    assert report["heavy"] == []
    assert report["slow"] == []
    assert report["ray"] is False
    assert report["cuda"] is False
    assert list(work.iterdir()) == []
