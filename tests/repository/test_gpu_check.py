"""The script tests/bench/gpu_check.py: its arguments, and its sections that also run on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "bench" / "gpu_check.py"


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *words], cwd=ROOT, capture_output=True, text=True, timeout=1200)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--only", "throughput,speed"], ["--seconds", "fast"]])
def test_wrong_arguments_are_named(words):
    result = run(*words)
    assert result.returncode == 2
    assert words[1] in result.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_it_says_so(tmp_path):
    result = run("--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert len(result.stdout.splitlines()) == 1
    assert "CUDA" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_figures_of_both_students_are_in_the_table_and_in_the_file(tmp_path):
    result = run("--device", "cpu", "--only", "throughput,profile", "--seconds", "0.01", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "figures.json").read_text())
    assert record["failed"] == {}
    assert {f["student"] for f in record["figures"]} == {"cp_mobile", "rep_mobile"}
    assert len([f for f in record["figures"] if f["section"] == "throughput"]) == 14
    assert all(f["value"] > 0 for f in record["figures"])
    table = [line for line in (tmp_path / "figures.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(record["figures"])
    assert "rep_mobile" in (tmp_path / "profile.txt").read_text()


@pytest.mark.slow
def test_a_section_without_time_is_named_and_fails_the_check(tmp_path):
    result = run("--device", "cpu", "--only", "profile", "--minutes", "0.1", "--out", str(tmp_path))
    assert result.returncode == 1
    assert list(json.loads((tmp_path / "figures.json").read_text())["failed"]) == ["profile"]
    assert "profile" in (tmp_path / "figures.md").read_text()
