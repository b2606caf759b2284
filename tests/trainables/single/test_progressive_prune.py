"""Trials that start from a base, and the command: its controls, its rows, a kill, a resume, every refusal."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ascmodels.checkpoint import CheckpointError, load_student, save_student
from ascmodels.compress.groups import PruningError
from ascmodels.compress.plan import PruneConfig
from ascmodels.nessi import get_torch_size
from ascmodels.students import Student, build_student
from data.features import FrontEndConfig
from trainables import progressive_prune, run_training
from trainables.config.compose import compose
from trainables.config.schema import ConfigError, TrialConfig
from trainables.engine.deployment import deploy, describe_use
from trainables.engine.device import set_up_process
from trainables.engine.schedule import schedule
from trainables.outputs.records import point_dict
from trainables.single import command as single_command
from trainables.single import run_folder
from trainables.single.plan_file import SHIPPED, read_schedule
from trainables.trial import stages
from trainables.trial.data import TrialData, load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.start import Start
from trainables.trial.trial import Trial

pytestmark = pytest.mark.slow  # whole trials

TINY = ["--n_mels=32", "--n_fft=1024", "--win_length=1024", "--freq_mask=4", "--base_channels=8", "--batch_size=16"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    set_up_process(1)
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config(tiny_tau: Path, cache: Path) -> TrialConfig:
    """From a base: two prune steps of one epoch, without a teacher."""
    words = [f"data.dataset_dir='{tiny_tau}'", f"data.cache_dir='{cache}'", "train.device=cpu", "train.epochs=3"]
    tiny = ["frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"]
    small = ["student.base_channels=8", "student.n_blocks=[1,1]", "student.strides=[]", "student.branches=[3x3,1x1]"]
    rest = ["train.batch_size=16", "distill.kd_alpha=1", "prune.epochs=1", "prune.ratios=[0.3,0.2]"]
    return compose([*words, *tiny, *small, *rest])


@pytest.fixture(scope="module")
def data(config: TrialConfig) -> TrialData:
    return load_trial_data(config)


@pytest.fixture(scope="module")
def base(config: TrialConfig, data: TrialData, tmp_path_factory: pytest.TempPathFactory) -> Student:
    trial = Trial(replace(config, prune=PruneConfig()), data, tmp_path_factory.mktemp("base"))
    list(run_trial(trial))
    return trial.model


def same(a: Student, b: Student) -> bool:
    states = a.state_dict(), b.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_a_base_is_measured_and_never_trained(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    before = {k: v.clone() for k, v in base.state_dict().items()}
    trial = Trial(config, data, tmp_path, Start(base), validate_pruned=True)
    records = list(run_trial(trial))
    assert [(r.stage, r.epoch, r.epochs) for r in records] == [(0, 0, 0), (1, 1, 1), (2, 1, 2)]
    assert trial.total_epochs == 2
    assert all(torch.equal(before[k], v) for k, v in base.state_dict().items())
    assert same(load_student(tmp_path / "step0")[0], deploy(base, "fp16"))
    first, *pruned = trial.points
    assert (first.val_acc_pruned, first.train_macro_avg_acc, first.sparsity) == (None, None, 0)
    assert all(p.val_acc_pruned is not None and 0 <= p.val_acc_pruned <= 1 for p in pruned)


@pytest.mark.parametrize("stop_after", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_restored_from_a_base_without_the_base(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path, stop_after: int
) -> None:
    """Taylor's clips and the network after global steps, too, are the same after a stop."""
    p = replace(config.prune, criterion="taylor", scope="global", importance_clips=5)
    config = replace(config, prune=p)
    whole = Trial(config, data, tmp_path / "whole", Start(base), validate_pruned=True)
    records = list(run_trial(whole))
    first = Trial(config, data, tmp_path / "parts", Start(base), validate_pruned=True)
    driver = run_trial(first)
    for _ in range(stop_after):
        next(driver)
    first.save(tmp_path)
    second = Trial(config, data, tmp_path / "parts", validate_pruned=True)
    second.load(tmp_path)
    rest = list(run_trial(second))
    assert [replace(r, seconds=0) for r in rest] == [replace(r, seconds=0) for r in records[stop_after:]]
    assert [point_dict(p) for p in second.points] == [point_dict(p) for p in whole.points]
    assert same(second.model, whole.model)


@pytest.mark.parametrize(
    ("criterion", "scope"),
    [
        ("hessian", "isomorphic"),
        pytest.param("bn_scale", "global", marks=pytest.mark.slow),
        pytest.param("random", "global", marks=pytest.mark.slow),
        pytest.param("l1", "local", marks=pytest.mark.slow),
    ],
)
def test_what_the_trial_measures_stays_below_its_target(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path, criterion: str, scope: str
) -> None:
    dense = Trial(replace(config, prune=PruneConfig()), data, tmp_path).sizes[0][0]
    aim = PruneConfig(n_steps=2, target_macs=0.45 * dense, criterion=criterion, scope=scope, importance_clips=4)
    trial = Trial(replace(config, prune=replace(aim, epochs=1)), data, tmp_path, Start(base))
    list(run_trial(trial))
    for point, target in zip(trial.points[1:], aim.targets(dense), strict=True):
        assert 0.6 * target < point.macs <= target
        macs = get_torch_size(load_student(tmp_path / point.checkpoint)[0], (1, 1, 32, config.frontend.frames))
        assert macs == (point.macs, point.params)


def test_with_widths_a_dense_network_or_one_step_to_them(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    pruned = Trial(config, data, tmp_path / "pruned", Start(base))
    list(run_trial(pruned))
    bare = replace(config, prune=PruneConfig())
    dense = Trial(bare, data, tmp_path / "dense", Start(widths=pruned.model.widths))
    list(run_trial(dense))
    once = Trial(config, data, tmp_path / "once", Start(base, pruned.model.widths))
    list(run_trial(once))
    assert dense.model.widths == once.model.widths == pruned.model.widths
    assert dense.points[0].macs == once.points[1].macs == pruned.points[2].macs
    assert [len(t.points) for t in (pruned, dense, once)] == [3, 1, 2]


def test_retraining_may_leave_the_teacher_out(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    teacher = torch.randn(len(data.train.rows), 10, generator=torch.Generator().manual_seed(0))
    taught = replace(data, train=replace(data.train, teacher=teacher))
    kd = replace(config, distill=replace(config.distill, kd_alpha=0.3))
    models = []
    for i, (c, d) in enumerate(
        [(config, data), (replace(kd, prune=replace(kd.prune, retrain_kd=False)), taught), (kd, taught)]
    ):
        trial = Trial(c, d, tmp_path / str(i), Start(base))
        list(run_trial(trial))
        models.append(trial.model)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


@pytest.mark.parametrize(("dense", "retrain"), [(5, 2), (2, 3)])
def test_rewound_rates_are_the_end_of_the_dense_schedule(
    config: TrialConfig,
    data: TrialData,
    base: Student,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dense: int,
    retrain: int,
) -> None:
    """Longer retraining than dense training draws out the whole schedule."""
    rates: list[float] = []
    train = stages.train_epoch

    def spy(model: Any, optimizer: Any, clips: Any, epoch: Any) -> Any:
        rates.extend(epoch.lr_of(i) for i in range(n_steps))
        return train(model, optimizer, clips, epoch)

    monkeypatch.setattr(stages, "train_epoch", spy)
    prune = replace(config.prune, ratios=(0.3,), epochs=retrain, lr_mode="rewind", lr=9.0)
    config = replace(config, prune=prune, train=replace(config.train, epochs=dense))
    n_steps = config.train.epoch_steps(len(data.train.rows))
    list(run_trial(Trial(config, data, tmp_path, Start(base))))
    whole = schedule(config.train, max(dense, retrain) * n_steps)
    expected = [whole(i) for i in range(max(dense, retrain) * n_steps)]
    assert rates == expected[-retrain * n_steps :]


def test_a_wound_back_schedule_whose_warm_up_would_not_end_is_refused_before_training(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    slow = replace(config, train=replace(config.train, warmup_steps=400))
    Trial(slow, data, tmp_path, Start(base))  # retraining at its own rate has its own warm-up
    with pytest.raises(ConfigError, match=r"train\.warmup_steps=400: the training has \d+ steps"):
        Trial(replace(slow, prune=replace(config.prune, lr_mode="rewind")), data, tmp_path, Start(base))


def test_a_state_of_an_older_version_is_gone_on_with(config: TrialConfig, data: TrialData, tmp_path: Path) -> None:
    trial = Trial(config, data, tmp_path)
    driver = run_trial(trial)
    next(driver)
    trial.save(tmp_path)
    state = torch.load(tmp_path / "trial.pt", weights_only=True)
    for key in ("from_base", "widths", "sizes", "val_acc_pruned", "averaged"):
        del state[key]
    state["config"] = json.dumps({k: v for k, v in config.flat().items() if k not in ("prune.n_steps", "train.amp")})
    torch.save(state, tmp_path / "trial.pt")
    again = Trial(config, data, tmp_path)
    again.load(tmp_path)
    assert (again.stage, again.epoch, again.sizes) == (0, 1, trial.sizes)
    expected, got = next(driver), next(run_trial(again))
    assert replace(got, seconds=0) == replace(expected, seconds=0)


def test_a_base_of_another_architecture_is_refused(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    wider = replace(config, student=replace(config.student, base_channels=16))
    with pytest.raises(CheckpointError, match="the base holds another architecture"):
        Trial(wider, data, tmp_path, Start(base))
    far = replace(config, prune=PruneConfig(n_steps=1, target_macs=10.0))
    with pytest.raises(PruningError, match=r"prune\.target_macs=10: .* out of reach"):
        Trial(far, data, tmp_path, Start(base))


# --- the command ---


@pytest.fixture(scope="module")
def storage(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one finished training run: two epochs of a tiny Rep-Mobile."""
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
    """An uninterrupted run with every control; its schedule has bare keys and another section."""
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
    assert last[0]["total_epochs"] == 4  # two of the base, one after each step
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
    """Killed after every epoch, before it was saved: bit for bit the rows and weights of the uninterrupted run."""
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
    while not statuses or statuses[-1] == run_folder.INTERRUPTED:
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
    for part in ("results.csv", "one_shot/results.csv"):  # the base's row, before any epoch, too
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
        for key, value in read_schedule(path.stem).items():
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
        (("--base_ckpt=last.ckpt", "--config=cubic", "--seed=3"), "seed=3, but the base was trained with "),
        (("--base_ckpt=last.ckpt", "--config=cubic", "--base_channels=32"), "the base has 8"),
        (("--base_ckpt=last.ckpt", "--config=cubic", "--n_mels=64"), "frontend.n_mels=64: the base has 32"),
        (("--base_ckpt=last.ckpt", "--config=cubic", "--ratioes=0.5"), "unknown flag --ratioes"),
        (("--base_ckpt=last.ckpt", "--ratios=0.3", "--n_steps=2"), "excludes prune.ratios"),
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
    said = capsys.readouterr().out
    assert message in said
    assert "Traceback" not in said
    assert sorted((storage / "experiments").iterdir()) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ratio: [0.3]", "unknown key ratio; expected ratios"),
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
    def told(folder: Path) -> str:
        assert command(storage, "--base_ckpt", str(folder), "--ratios=0.3") == 2
        return " ".join(capsys.readouterr().out.split())

    assert "is a deployed network" in told(whole / "step0")
    student = build_student(config.student)
    save_student(tmp_path / "a", student, {})
    assert "'frontend'" in told(tmp_path / "a")
    save_student(tmp_path / "b", student, describe_use(config) | {"classes": ["street", "park"]})
    assert "classes street, park" in told(tmp_path / "b")
    shutil.copytree(whole / "last.ckpt", tmp_path / "c")
    weights = tmp_path / "c" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "is damaged" in told(tmp_path / "c")


def test_importance_clips_come_from_seed_and_stage(
    config: TrialConfig, data: TrialData, base: Student, tmp_path: Path
) -> None:
    trial = Trial(replace(config, prune=replace(config.prune, importance_clips=4)), data, tmp_path, Start(base))
    seen = {}
    for stage in (1, 2, 1):
        trial.stage = stage
        losses = [loss.item() for loss in stages._clip_losses(trial, base.eval())]
        assert len(losses) == 4
        assert seen.setdefault(stage, losses) == losses
    assert seen[1] != seen[2]
    assert np.isfinite([*seen[1], *seen[2]]).all()
