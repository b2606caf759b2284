"""The benchmark tests/bench/throughput.py: its arguments, its loops, and the network of the baseline's loop."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ascmodels.students import build_student
from tests.bench import throughput
from tests.bench.speed import baseline_loop
from trainables.config.compose import compose

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "bench" / "throughput.py"


@pytest.mark.parametrize("student", ["cp_mobile", "rep_mobile"])
def test_the_network_of_the_baseline_is_that_of_the_product(student):
    ours = build_student(compose([f"student={student}", "profile=full"]).student)
    theirs = baseline_loop.network(student)
    assert sorted(p.shape for p in ours.parameters()) == sorted(p.shape for p in theirs.parameters())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("batch", "1"), ("batch", "many"), ("student", "vgg"), ("kd", "maybe"), ("rounds", "0"), ("clips", "0")),
        *(("workers", "-1"), ("against", "/nowhere")),
    ],
)
def test_wrong_arguments_are_named(option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        throughput.parse([f"--{option}={value}"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"--{option}" in message
    assert value in message


@pytest.mark.slow
def test_loops_and_stages_are_in_the_tables_and_in_the_file(tmp_path):
    out = tmp_path / "new" / "figures.json"
    words = [
        "--student",
        "cp_mobile",
        "--batch",
        "8",
        "--kd",
        "on",
        "--workers",
        "0,1",
        "--rounds",
        "1",
        "--clips",
        "8",
    ]
    words += ["--against", str(ROOT), "--out", str(out)]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *words], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (case,) = json.loads(out.read_text())["cases"]
    loops = {"asc-tune", "asc-tune (other)", "baseline, 0 workers", "baseline, 1 workers"}
    assert set(case["ms_per_clip"]) == set(case["peak_bytes"]) == loops
    for times in case["ms_per_clip"].values():
        assert {"train", "validate"} <= set(times)
        assert all(value > 0 for values in times.values() for value in values)
    stages = case["stages_ms_per_clip"]["asc-tune"]
    for stage in ("gather", "roll", "front-end", "augmentation", "forward", "loss", "backward", "optimiser", "other"):
        assert stages[f"train: {stage}"][0] > 0
    assert {"validate: front-end", "validate: forward"} <= set(stages)
    rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(loops) + 2 + len(stages)
