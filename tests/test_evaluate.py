"""The test split's door for a study with replicates: every seed's network once, means in the report."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from example_study import rows, write_study

from analysis.results import load_study
from ascmodels.checkpoint import save_student
from ascmodels.nessi import get_torch_size
from ascmodels.students import build_student
from trainables.config import TrialConfig, compose
from trainables.trial import describe_use
from tune.evaluate import main

pytestmark = pytest.mark.slow  # decodes the tiny data set

NETWORKS = {"t0000": ("t0000", 0), "t0000r1": ("t0000", 1), "t0001": ("t0001", 0), "t0002": ("t0002", 0)}


@pytest.fixture(scope="module")
def config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    cache = tmp_path_factory.mktemp("cache")
    front_end = ("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4")
    return compose([f"data.dataset_dir='{tiny_tau}'", f"data.cache_dir='{cache}'", *front_end])


def write_networks(folder: Path, config: TrialConfig, names: dict[str, tuple[str, int]]) -> Path:
    """A complete study of untrained networks, one for each name; they differ by their seed."""
    table = []
    for seed, (name, (config_id, replicate)) in enumerate(names.items()):
        torch.manual_seed(seed)
        student = build_student(config.student, fused=True).eval()
        save_student(folder / "experiments" / name / "step0", student, describe_use(config))
        macs, params = get_torch_size(student, (1, 1, config.frontend.n_mels, config.frontend.frames))
        row = rows()[0] | {"trial_id": name, "config_id": config_id, "replicate": replicate, "status": "complete"}
        row |= {"step": 0, "macs": macs, "params": params, "feasible": True, "bytes_fp16": 2 * params}
        table.append(row | {"checkpoint": f"experiments/{name}/step0", "val_macro_avg_acc": 0.4 + 0.01 * seed})
    return write_study(folder, table, config=config.flat(), limits=None)


def measured(folder: Path) -> dict[str, float]:
    with (folder / "test.csv").open() as handle:
        return {row["trial_id"]: float(row["test_macro_avg_acc"]) for row in csv.DictReader(handle)}


def test_every_seed_of_the_front_is_measured_once(config, tmp_path, monkeypatch, capsys):
    """First with one seed a configuration, as an object store; then with the replicates that were trained later."""
    monkeypatch.chdir(tmp_path)
    first = {name: NETWORKS[name] for name in ("t0000", "t0001")}
    folder = write_networks(tmp_path / "study", config, first)
    assert main([f"file://{folder}"]) == 0
    assert list(measured(folder)) == ["t0001"]  # the better of two equally large networks
    before = measured(folder)["t0001"]

    write_networks(folder, config, NETWORKS)
    assert load_study(folder).replicated
    assert main([str(folder)]) == 0
    assert "opened for 2 network(s) of 1 point(s)" in capsys.readouterr().out
    found = measured(folder)
    assert list(found) == ["t0001", "t0000", "t0000r1"] and found["t0001"] == before
    seeds = [found["t0000"], found["t0000r1"]]
    assert seeds[0] != seeds[1]  # other weights
    front = list(csv.DictReader((folder / "front.csv").open()))
    assert [(row["trial_id"], row["n_seeds"], row["test_n_seeds"]) for row in front] == [("t0000", "2", "2")]
    assert float(front[0]["test_macro_avg_acc"]) == pytest.approx(np.mean(seeds))
    assert float(front[0]["test_macro_avg_acc_std"]) == pytest.approx(np.std(seeds, ddof=1))

    opened = json.loads((folder / "study.json").read_text())["test_opened"]
    assert main([str(folder)]) == 0
    assert "measured on the test split before" in capsys.readouterr().out
    assert json.loads((folder / "study.json").read_text())["test_opened"] == opened
