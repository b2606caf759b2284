"""A trial without Ray: the generator's records, stopping and restoring at any step, divergence."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ascmodels.checkpoint import CheckpointError, load_student
from ascmodels.compress import pruning
from ascmodels.config.prune import PruningError
from ascmodels.nessi import get_torch_size
from ascmodels.students import build_student
from data.config.frontend import FrontEndConfig
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.engine.device import set_up_process
from trainables.engine.loop import TrainingDiverged
from trainables.outputs.records import point_dict
from trainables.teachers.cached_logits import teacher_logits
from trainables.teachers.fine_tuning import fine_tuned_teacher, teacher_summary
from trainables.trial.data import TrialData, data_key, load_trial_data
from trainables.trial.stages import run_trial
from trainables.trial.start import Start
from trainables.trial.trial import Trial

pytestmark = pytest.mark.slow  # whole trials


@pytest.fixture(scope="module")
def config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """Two dense epochs and two prune steps of one epoch on the tiny data set, distilled from a tiny teacher."""
    set_up_process(1)
    cache = tmp_path_factory.mktemp("cache")
    config = compose(
        [
            f"data.dataset_dir='{tiny_tau}'",
            f"data.cache_dir='{cache}'",
            *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
            *("student.base_channels=16", "train.epochs=2", "train.batch_size=16", "prune.epochs=1"),
            *("prune.ratios=[0.3,0.3]", "teacher.train.epochs=1", "teacher.model.hidden_size=32"),
            "teacher.train.min_steps=0",
            *("teacher.model.layers=1", "teacher.model.heads=2", "train.device=cpu", "teacher.train.device=cpu"),
        ]
    )
    teacher = str(fine_tuned_teacher(config))
    return replace(config, distill=replace(config.distill, teacher_ckpts=(teacher,)))


@pytest.fixture(scope="module")
def data(config: TrialConfig) -> TrialData:
    return load_trial_data(config)


@pytest.fixture(scope="module")
def through(config: TrialConfig, data: TrialData, tmp_path_factory: pytest.TempPathFactory):
    """Return the trial and the records of an uninterrupted run."""
    trial = Trial(config, data, tmp_path_factory.mktemp("through"))
    return trial, list(run_trial(trial))


def test_records_tell_the_trial_in_order(through) -> None:
    trial, records = through
    assert [(r.stage, r.epoch, r.epochs) for r in records] == [(0, 1, 1), (0, 2, 2), (1, 1, 3), (2, 1, 4)]
    assert [r.finished for r in records] == [False, False, False, True]
    assert [r.point.step if r.point else None for r in records] == [None, 0, 1, 2]
    assert [p.epochs for p in trial.points] == [2, 3, 4]


def test_each_prune_step_shrinks_the_network(through) -> None:
    points = through[0].points
    for figure in ("macs", "params", "bytes_fp32", "bytes_fp16", "bytes_int8"):
        values = [getattr(p, figure) for p in points]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == len(values)
    assert [p.sparsity for p in points] == [1 - p.params / points[0].params for p in points]
    assert points[0].bytes_fp16 == 2 * points[0].params


def test_points_describe_the_saved_networks(through, data: TrialData) -> None:
    """Measuring and evaluating the deployed checkpoint again gives the recorded figures."""
    trial, _ = through
    for point in trial.points:
        student, extra = load_student(trial.folder / point.checkpoint)
        assert student.fused
        config = FrontEndConfig(**extra["frontend"])
        assert get_torch_size(student, (1, 1, config.n_mels, config.frames)) == (point.macs, point.params)
        rows = data.validation.rows
        with torch.no_grad():
            logits = student(trial.front_end(data.validation.cache.batch(rows))).numpy()
        correct = logits.argmax(1) == data.validation.labels
        classes = np.unique(data.validation.labels)
        macro = np.mean([correct[data.validation.labels == c].mean() for c in classes])
        assert point.val_macro_avg_acc == pytest.approx(macro)


def test_saved_network_gives_bit_equal_logits_in_a_fresh_process(through, tmp_path: Path) -> None:
    trial, _ = through
    folder = trial.folder / trial.points[-1].checkpoint
    x = torch.randn(4, 1, 32, 65, generator=torch.Generator().manual_seed(0))
    student, _ = load_student(folder)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; from pathlib import Path; from ascmodels.checkpoint import load_student\n"
        "torch.set_num_threads(1); here = Path(sys.argv[2]); x = torch.load(here / 'x.pt', weights_only=True)\n"
        "with torch.no_grad(): torch.save(load_student(Path(sys.argv[1]))[0](x), here / 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path)], check=True)
    with torch.no_grad():
        assert torch.equal(student(x), torch.load(tmp_path / "y.pt", weights_only=True))


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 4])
def test_restored_trial_ends_bit_for_bit_alike(
    config: TrialConfig, data: TrialData, through, tmp_path: Path, stop_after: int
) -> None:
    """A trial that is stopped after any step and restored gives the same records, points and weights."""
    whole, records = through
    first = Trial(config, data, tmp_path / "points")
    driver = run_trial(first)
    for _ in range(stop_after):
        next(driver)
    (tmp_path / "checkpoint").mkdir()
    first.save(tmp_path / "checkpoint")
    second = Trial(config, data, tmp_path / "points")
    second.load(tmp_path / "checkpoint")
    rest = list(run_trial(second))
    assert [replace(r, seconds=0) for r in rest] == [replace(r, seconds=0) for r in records[stop_after:]]
    assert [point_dict(p) for p in second.points] == [point_dict(p) for p in whole.points]
    state, expected = second.model.state_dict(), whole.model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[k], expected[k]) for k in state)


def test_same_seed_same_weights_other_seed_others(
    config: TrialConfig, data: TrialData, through, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # the global generator must not matter
    again = Trial(config, data, tmp_path / "a")
    next(run_trial(again))
    other = Trial(replace(config, seed=1), data, tmp_path / "b")
    next(run_trial(other))
    third = Trial(config, data, tmp_path / "c")
    next(run_trial(third))
    weights = [t.model.state_dict()["classifier.0.weight"] for t in (again, other, third)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_a_replicate_draws_its_training_anew_on_the_same_clips(
    config: TrialConfig, data: TrialData, through, tmp_path: Path
) -> None:
    again = replace(config, replicate=1)
    assert (config.training_seed, data_key(again)) == (config.seed, data_key(config))
    assert len({replace(config, seed=s, replicate=r).training_seed for s in (0, 1) for r in range(50)}) == 100
    own = load_trial_data(again)  # the same hold-out and teacher
    for part, expected in ((own.train, data.train), (own.validation, data.validation)):
        assert np.array_equal(part.rows, expected.rows)
    assert own.train.teacher is not None
    assert data.train.teacher is not None
    assert torch.equal(own.train.teacher, data.train.teacher)
    trial = Trial(again, own, tmp_path)
    fresh = Trial(config, data, tmp_path).model.state_dict()["classifier.0.weight"]
    assert not torch.equal(trial.model.state_dict()["classifier.0.weight"], fresh)
    trial.model.load_state_dict(Trial(config, data, tmp_path).model.state_dict())
    assert next(run_trial(trial)).train_loss != through[1][0].train_loss  # same initial weights, another order of clips
    with pytest.raises(ValueError, match="replicate=-1: expected 0"):
        replace(config, replicate=-1)


def test_checkpoint_of_another_trial_is_refused(config: TrialConfig, data: TrialData, tmp_path: Path) -> None:
    trial = Trial(config, data, tmp_path / "points")
    trial.save(tmp_path)
    wider = replace(config, student=replace(config.student, base_channels=24))
    with pytest.raises(CheckpointError, match="base_channels: 16 in the checkpoint, 24 expected"):
        Trial(wider, data, tmp_path / "points").load(tmp_path)
    hotter = replace(config, distill=replace(config.distill, kd_temp=1.5))
    with pytest.raises(CheckpointError, match=r"distill\.kd_temp: 4\.0 in the checkpoint, 1\.5 expected"):
        Trial(hotter, data, tmp_path / "points").load(tmp_path)
    (tmp_path / "trial.pt").write_bytes((tmp_path / "trial.pt").read_bytes()[:200])
    with pytest.raises(CheckpointError, match="damaged"):
        Trial(config, data, tmp_path / "points").load(tmp_path)


def test_a_moved_study_goes_on_and_other_clips_are_refused(
    config: TrialConfig, data: TrialData, tmp_path: Path
) -> None:
    Trial(config, data, tmp_path / "points").save(tmp_path)
    moved = tuple(f"/elsewhere/{Path(teacher).name}" for teacher in config.distill.teacher_ckpts)
    places = replace(config.data, dataset_dir="/elsewhere", cache_dir="/elsewhere/cache", num_workers=3)
    there = replace(config, data=places, distill=replace(config.distill, teacher_ckpts=moved))
    Trial(there, data, tmp_path / "points").load(tmp_path)
    other = replace(config, distill=replace(config.distill, teacher_ckpts=("/elsewhere/teacher-other",)))
    with pytest.raises(CheckpointError, match=r"distill\.teacher_ckpts: .* in the checkpoint, .*teacher-other"):
        Trial(other, data, tmp_path / "points").load(tmp_path)
    fewer = replace(data.train, rows=data.train.rows[1:], labels=data.train.labels[1:], devices=data.train.devices[1:])
    with pytest.raises(CheckpointError, match="on other clips"):
        Trial(config, replace(data, train=fewer), tmp_path / "points").load(tmp_path)


def test_another_trials_state_can_be_taken_over_with_own_rates(
    config: TrialConfig, data: TrialData, tmp_path: Path
) -> None:
    donor = Trial(config, data, tmp_path / "donor")
    next(run_trial(donor))
    donor.save(tmp_path)
    own = replace(config, train=replace(config.train, lr=1e-4, weight_decay=0.5))
    trial = Trial(own, data, tmp_path / "own")
    with pytest.raises(
        CheckpointError, match=r"train\.lr: 0\.005 in the checkpoint, 0\.0001 expected; train\.weight_decay"
    ):
        trial.load(tmp_path)
    trial.load(tmp_path, adopt=("train.lr", "train.weight_decay"))
    key = "classifier.0.weight"
    assert torch.equal(trial.model.state_dict()[key], donor.model.state_dict()[key])
    assert trial.optimizer is not None
    assert trial.optimizer.param_groups[0]["weight_decay"] == 0.5
    next(run_trial(trial))
    assert trial.optimizer is None  # the dense stage has ended
    assert not torch.equal(trial.model.state_dict()[key], donor.model.state_dict()[key])


def test_impossible_pruning_is_refused_before_training(config: TrialConfig, data: TrialData, tmp_path: Path) -> None:
    impossible = replace(config, prune=replace(config.prune, ratios=(0.97,)))
    with pytest.raises(PruningError, match="would empty a layer"):
        Trial(impossible, data, tmp_path)


def test_divergence_stops_the_trial_and_keeps_the_last_point(
    config: TrialConfig, data: TrialData, tmp_path: Path
) -> None:
    trial = Trial(config, data, tmp_path)
    driver = run_trial(trial)
    for _ in range(2):
        next(driver)
    with torch.no_grad():
        trial.model.state_dict()["classifier.0.weight"].fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="nan"):
        next(driver)
    assert len(trial.points) == 1
    load_student(tmp_path / "step0")


def test_teacher_is_trained_once_and_logits_meet_by_filename(config: TrialConfig, data: TrialData) -> None:
    bare = replace(config, distill=replace(config.distill, teacher_ckpts=()))
    folder = Path(config.distill.teacher_ckpts[0])
    stamp = (folder / "teacher.json").stat().st_mtime_ns
    assert fine_tuned_teacher(bare) == folder
    assert (folder / "teacher.json").stat().st_mtime_ns == stamp
    assert 0 <= float(str(teacher_summary(folder)["val_macro_avg_acc"])) <= 1
    names = [data.train.cache.filenames[row] for row in data.train.rows]
    assert data.train.teacher is not None
    assert torch.equal(teacher_logits(config, folder, names[::-1]), data.train.teacher.flip(0))
    with pytest.raises(CheckpointError, match="no logits for 1 of 1"):
        teacher_logits(config, folder, ["audio/absent.wav"])


def test_without_teacher_kd_alpha_must_be_one(config: TrialConfig, data: TrialData, tmp_path: Path) -> None:
    bare = TrialData(replace(data.train, teacher=None), data.validation, ())
    with pytest.raises(ValueError, match="needs a teacher"):
        Trial(config, bare, tmp_path)
    plain = replace(config, distill=replace(config.distill, kd_alpha=1.0), prune=replace(config.prune, ratios=()))
    (record, last) = list(run_trial(Trial(plain, bare, tmp_path)))
    assert not record.finished
    assert last.finished
    assert json.loads((tmp_path / "step0" / "student.json").read_text())["extra"]["classes"][0] == "airport"


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_a_trial_of_a_version_that_rounded_otherwise_goes_on(
    config: TrialConfig, data: TrialData, tmp_path: Path, monkeypatch, stop_after: int
) -> None:
    """Earlier versions rounded like torch-pruning, which removes 18 of 50 channels at a ratio of 0.34, not 17."""
    pruned = replace(config, prune=replace(config.prune, ratios=(0.34, 0.3)))
    widths = replace(build_student(config.student).widths, expand=(50,) * sum(config.student.n_blocks))

    def started(name: str) -> Trial:
        return Trial(pruned, data, tmp_path / name, Start(widths=widths))

    with monkeypatch.context() as patch:
        patch.setattr(pruning, "removed_channels", lambda total, ratio: total - int(total * (1 - ratio)))
        old = started("old")
        driver = run_trial(old)
        for _ in range(stop_after):
            next(driver)
        old.save(tmp_path)
    new = started("new")
    assert new.sizes != old.sizes
    new.load(tmp_path)
    list(run_trial(new))
    widths_kept = [point.widths["expand"][0] for point in new.points]
    assert widths_kept == ([50, 32, 22] if stop_after > 2 else [50, 33, 23])
