"""The command `trainables/progressive_prune.py`: its controls, its rows, a kill, a resume, every refusal."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascmodels.checkpoint import load_student, save_student
from ascmodels.config.prune import PruneConfig
from ascmodels.nessi import get_torch_size
from ascmodels.students import build_student
from data.config.frontend import FrontEndConfig
from data.signals import INTERRUPTED
from tests.support.trainables.comparison import same
from trainables import progressive_prune, run_training
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.engine.deployment import describe_use
from trainables.engine.device import set_up_process
from trainables.single import command as single_command
from trainables.single.plan_file import SHIPPED, read_plan
from trainables.trial.trial import Trial

pytestmark = pytest.mark.slow  # whole trials
TINY = ["--n_mels=32", "--n_fft=1024", "--win_length=1024", "--freq_mask=4", "--base_channels=8", "--batch_size=16"]


@pytest.fixture(scope="module")
def storage(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a storage folder with one finished training run: two epochs of a tiny Rep-Mobile."""
    set_up_process(1)
    storage = tmp_path_factory.mktemp("runs")
    words = [f"--storage={storage}", f"--dataset_dir={tiny_tau}", "--repconv=True", "--n_epochs=2", "--device=cpu"]
    small = ["student.n_blocks=[1,1]", "student.strides=[]", "prune.epochs=1"]
    assert run_training.main([*words, *TINY, *small, "--kd_alpha=1", "--no_test"]) == 0
    return storage


def command(storage: Path, *words: str) -> int:
    return progressive_prune.main([f"--storage={storage}", *words])


def prune_runs(storage: Path) -> list[Path]:
    return sorted((p.parent for p in storage.glob("experiments/*/prune_steps.csv")), key=os.path.getmtime)


@pytest.fixture(scope="module")
def whole(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run with every control; its file sets keys of `prune` and of `train`."""
    path = tmp_path_factory.mktemp("config") / "schedule.yaml"
    path.write_text("ratios: [0.3, 0.2]\nepochs: 1\ntrain: {weight_decay: 0.001}\n")
    assert command(storage, "--config", str(path), "--base_ckpt=last.ckpt", "--controls=one_shot,dense,random") == 0
    return prune_runs(storage)[-1]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "prune_steps.json").read_text())


def test_the_controls_have_the_size_and_the_epochs_of_what_they_control(whole: Path) -> None:
    rows = rows_of(whole)
    arms = [(r["arm"], r["step"]) for r in rows]
    assert arms == [
        *(("progressive", 0), ("progressive", 1), ("progressive", 2), ("one_shot", 1), ("dense", 0)),
        *(("random", 1), ("random", 2)),
    ]
    last = [rows[i] for i in (2, 3, 4, 6)]
    for key in ("macs", "params", "bytes", "sparsity", "total_epochs"):
        assert len({r[key] for r in last}) == 1, key
    assert last[0]["total_epochs"] == 4  # two epochs of the base, one after each step
    assert [r["epochs"] for r in rows] == [0, 1, 1, 2, 4, 1, 1]
    assert json.loads((whole / "info.json").read_text())["config"]["train.weight_decay"] == 0.001
    for row, ratio in zip(rows[1:3], (0.3, 0.2), strict=True):
        assert row["ratio"] == pytest.approx(ratio, abs=0.1)
    for row in rows:
        student, extra = load_student(whole / row["checkpoint"])
        assert student.fused
        assert get_torch_size(student, (1, 1, 32, FrontEndConfig(**extra["frontend"]).frames)) == (
            row["macs"],
            row["params"],
        )
        assert extra["point"]["val_macro_avg_acc"] == row["val_macro_avg_acc"]
    with (whole / "prune_steps.csv").open() as handle:
        table = list(csv.DictReader(handle))
    assert [(r["arm"], int(r["macs"]), float(r["val_macro_avg_acc"])) for r in table] == [
        (r["arm"], r["macs"], r["val_macro_avg_acc"]) for r in rows
    ]
    assert not load_student(whole / "last.ckpt")[0].fused


def test_the_same_command_again_is_the_same_run(
    storage: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = tmp_path / "other_name.yaml"
    schedule.write_text("prune: {ratios: [0.3, 0.2], epochs: 1}\ntrain.weight_decay: 0.001\n")
    stamp = (whole / "state" / "trial.pt").stat().st_mtime_ns
    count = len(prune_runs(storage))
    words = ("--config", str(schedule), "--base_ckpt=last.ckpt", "--controls=one_shot,dense,random")
    assert command(storage, *words) == 0
    assert f"run {whole.name} is complete already" in capsys.readouterr().out
    assert (whole / "state" / "trial.pt").stat().st_mtime_ns == stamp
    assert len(prune_runs(storage)) == count


def test_its_last_network_is_evaluated(storage: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((whole / "info.json").read_text())
    assert "test" not in before
    assert run_training.main([f"--storage={storage}", "--evaluate", f"--ckpt_id={whole.name}"]) == 0
    assert "to the last digit" in capsys.readouterr().out
    info, last = json.loads((whole / "info.json").read_text()), rows_of(whole)[2]
    assert (last["arm"], last["step"]) == ("progressive", 2)
    assert (info["MACs"], info["Params"]) == (last["macs"], last["params"])
    assert info["validation"]["macro_avg_acc"] == last["val_macro_avg_acc"]
    assert 0 <= info["test"]["macro_avg_acc"] <= 1
    assert {k: v for k, v in info.items() if k != "test"} == before


@pytest.mark.slow
@pytest.mark.parametrize("controls", ["one_shot", "random,one_shot"])
def test_a_killed_command_given_again_ends_like_one_that_ran_through(
    storage: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, controls: str
) -> None:
    """A command that is killed after every epoch, before saving, ends with the uninterrupted run's rows and weights."""
    words = ("--ratios=0.3,0.2", "--prune.epochs=1", "train.weight_decay=0.001", "--base_ckpt=last.ckpt")
    words = (*words, f"--controls={controls}")
    steps = single_command.run_trial

    def dying(trial: Trial) -> Iterator[Any]:
        for i, record in enumerate(steps(trial)):
            if i == 1:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(single_command, "run_trial", dying)
    statuses = []
    while not statuses or statuses[-1] == INTERRUPTED:
        statuses.append(command(storage, *words))
        assert len(statuses) < 15
    assert statuses[-1] == 0
    assert len(statuses) > 4
    folder = prune_runs(storage)[-1]
    assert folder != whole
    of_whole = [r for arm in ("progressive", *controls.split(",")) for r in rows_of(whole) if r["arm"] == arm]
    assert rows_of(folder) == of_whole
    for part in ("last.ckpt", *(f"{arm}/last.ckpt" for arm in controls.split(",")), "step2", "one_shot/step1"):
        assert same(load_student(folder / part)[0], load_student(whole / part)[0]), part
    for part in ("results.csv", "one_shot/results.csv"):  # including the base's row
        killed, through = (list(csv.DictReader((f / part).read_text().splitlines())) for f in (folder, whole))
        assert [r | {"seconds": ""} for r in killed] == [r | {"seconds": ""} for r in through], part


@pytest.mark.slow
def test_global_target_from_a_shipped_schedule_and_one_shot_below_its_macs(storage: Path, whole: Path) -> None:
    base = rows_of(whole)[0]
    aim = f"--target_macs={0.6 * base['macs']}"
    words = ("--base_ckpt", str(storage / "experiments" / whole.name / "base.ckpt"), "--controls=one_shot")
    more = (aim, "--scope=global", "--importance_clips=4", "--n_steps=2", "--prune.epochs=1", "--new")
    assert command(storage, "--config=quarter_macs", *words, *more) == 0
    rows = rows_of(prune_runs(storage)[-1])
    assert [r["arm"] for r in rows] == ["progressive"] * 3 + ["one_shot"]
    for row in rows[1:3]:
        assert 0.7 * row["target"] < row["macs"] <= row["target"]
    assert 0.7 * rows[2]["macs"] < rows[3]["macs"] <= rows[2]["macs"] == rows[3]["target"]
    assert rows[3]["total_epochs"] == rows[2]["total_epochs"]


def test_every_shipped_schedule_loads_both_ways() -> None:
    for path in SHIPPED.glob("*.yaml"):
        config = compose([f"prune={path.stem}"]).prune
        assert config.rounds > 0
        for key, value in read_plan(path.stem).items():
            assert getattr(config, key.removeprefix("prune.")) == value
        assert yaml.safe_load(path.read_text()).keys() <= set(PruneConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--base_ckpt is missing"),
        (("--base_ckpt=nowhere", "--config=cubic"), "no run 'nowhere'"),
        (("--base_ckpt=last.ckpt",), "0 prune steps"),
        (("--base_ckpt=last.ckpt", "--config=steep"), "--config steep: "),
        (("--base_ckpt=last.ckpt", "--config=cubic", "--controls=two"), "expected any of one_shot,dense,random"),
        (("--base_ckpt=last.ckpt", "--config=cubic", "--controls=dense,dense"), "--controls dense,dense: "),
        (("--base_ckpt=last.ckpt", "--config=cubic", "--seed=3"), "error: seed=3; "),
        (("--base_ckpt=last.ckpt", "--config=cubic", "--base_channels=32"), "student.base_channels=32; expected 8,"),
        (("--base_ckpt=last.ckpt", "--config=cubic", "--n_mels=64"), "frontend.n_mels=64; expected 32,"),
        (("--base_ckpt=last.ckpt", "--config=cubic", "--ratioes=0.5"), "unknown flag --ratioes"),
        (("--base_ckpt=last.ckpt", "--ratios=0.3", "--n_steps=2"), "prune.ratios=(0.3,) is set"),
        (("--base_ckpt=last.ckpt", "--target_macs=1000", "--n_steps=2"), "prune.target_macs=1,000"),
        (("--base_ckpt=last.ckpt", "--target_macs=1000", "--n_steps=2", "--lr=1"), "prune.lr"),
        (("--base_ckpt=last.ckpt", "--target_macs=1e9", "--n_steps=2"), "prune.target_macs=1,000,000,000: "),
        (("--resume=none",), "no run 'none'"),
        (("--resume=none", "--seed=1"), "--resume none"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    storage: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    before = sorted((storage / "experiments").iterdir())
    assert command(storage, *words) == 2
    output = capsys.readouterr().out
    assert message in output
    assert "Traceback" not in output
    assert sorted((storage / "experiments").iterdir()) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ratio: [0.3]", "unknown key ratio;"),
        ("prune: {ratios: [0.3]}\nn_step: 2", "unknown key n_step"),
        ("- 0.3", "s.yaml holds a list"),
        ("ratios: [0.3", "YAML"),
        ("ratios: [1.3]", "prune.ratios[0]=1.3"),
    ],
)
def test_schedule_files_that_cannot_be(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "s.yaml").write_text(content)
    assert command(storage, "--base_ckpt=last.ckpt", "--config", str(tmp_path / "s.yaml")) == 2
    assert message in " ".join(capsys.readouterr().out.split())


def test_bases_that_cannot_be(
    storage: Path, whole: Path, config: TrialConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(folder: Path) -> str:
        assert command(storage, "--base_ckpt", str(folder), "--ratios=0.3") == 2
        return " ".join(capsys.readouterr().out.split())

    assert "is a deployed network" in refusal(whole / "step0")
    student = build_student(config.student)
    save_student(tmp_path / "a", student, {})
    assert "'frontend'" in refusal(tmp_path / "a")
    save_student(tmp_path / "b", student, describe_use(config) | {"classes": ["street", "park"]})
    assert "classes street, park" in refusal(tmp_path / "b")
    shutil.copytree(whole / "last.ckpt", tmp_path / "c")
    weights = tmp_path / "c" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "is damaged" in refusal(tmp_path / "c")


@pytest.mark.parametrize(
    ("words", "arm", "remedy"),
    [
        (["--prune.lr=1e30"], "progressive", "prune.lr"),
        (["--lr_mode=rewind", "--lr=1e30"], "progressive", "train.lr"),
        (["--controls=dense", "--lr=1e30"], "dense", "train.lr"),
    ],
)
def test_a_divergence_names_its_arm_and_the_key_to_change(
    storage: Path, capsys: pytest.CaptureFixture[str], words: list[str], arm: str, remedy: str
) -> None:
    assert command(storage, "--ratios=0.3", "--prune.epochs=2", "--base_ckpt=last.ckpt", "--new", *words) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {arm}: stage ") and f": use a lower {remedy}. " in line
