"""data.validation_share=0: the commands train on all clips of the split, and measure nothing on clips that they saw."""

import json
from pathlib import Path

import pandas as pd
import pytest

from ascmodels.teachers import read_extra
from data.holdout import hold_out
from data.tau import read_split
from trainables import cache_logits, deploy, finetune_teacher, progressive_prune, run_training
from trainables.config.compose import compose
from trainables.engine.device import set_up_process
from trainables.inputs.clips import filenames, load_clips
from trainables.single.run_folder import newest_runs

pytestmark = pytest.mark.slow  # whole trials
SMALL = (
    *("--n_mels=32", "--n_fft=1024", "--win_length=1024", "--freq_mask=4", "--base_channels=8", "--batch_size=16"),
    *("student.n_blocks=[1,1]", "student.strides=[]", "--device=cpu", "--validation_share=0"),
    *("teacher.train.epochs=2", "teacher.model.hidden_size=32", "teacher.model.layers=1", "teacher.model.heads=2"),
    *("teacher.frontend.n_fft=1024", "teacher.frontend.win_length=1024"),
)


@pytest.fixture(scope="module")
def words(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    set_up_process(1)
    return [f"--storage={tmp_path_factory.mktemp('runs')}", f"--dataset_dir={tiny_tau}", *SMALL]


def test_training_pruning_and_deployment_see_all_clips_and_validate_none(words: list[str], tiny_tau: Path, capsys):
    storage = Path(words[0].partition("=")[2])
    assert run_training.main([*words, "--n_epochs=2", "--kd_alpha=0.5"]) == 0
    n_clips = len(read_split(tiny_tau, "split100"))
    assert f"all {n_clips} clips are training clips" in capsys.readouterr().out
    (run,) = newest_runs(storage)
    assert "validation" not in run.info and 0 <= run.info["test"]["macro_avg_acc"] <= 1
    assert run.info["points"][0]["val_macro_avg_acc"] is None
    curve = pd.read_csv(run.folder / "results.csv")
    assert curve.val_loss.isna().all() and curve.train_loss.notna().all()
    (teacher,) = run.info["config"]["distill.teacher_ckpts"]
    extra = read_extra(Path(teacher))
    assert (extra["val_macro_avg_acc"], extra["epoch"], extra["n_train"]) == (None, 2, n_clips)
    assert run_training.main([words[0], "--evaluate", f"--ckpt_id={run.id}"]) == 0

    prune = [words[0], "--base_ckpt=last.ckpt", "--ratios=0.3", "prune.epochs=1", "--controls=dense"]
    assert progressive_prune.main(prune) == 0  # with the validation share of the base
    (pruned,) = newest_runs(storage, "prune")
    rows = json.loads((pruned.folder / "prune_steps.json").read_text())
    assert [row["val_macro_avg_acc"] for row in rows] == [None] * 3 and "validation" not in pruned.info

    assert deploy.main([words[0], f"--ckpt_id={run.id}", "--latency_runs=10", "--calibration_clips=20"]) == 0
    info = json.loads((run.folder / "deploy" / "last.ckpt" / "deploy.json").read_text())
    assert (info["validation_clips"], info["compared_clips"]) == (0, n_clips)
    assert [form["val_macro_avg_acc"] for form in info["forms"]] == [None] * len(info["forms"])
    assert all(0 <= form["agreement"] <= 1 for form in info["forms"])


def test_commands_that_need_validation_clips_say_so(words: list[str], capsys) -> None:
    assert finetune_teacher.main(words) == 0
    text = "".join(capsys.readouterr().out.split())
    teacher = text.partition("--teacher_ckpts=")[2]
    assert "notvalidated" in text and Path(teacher).is_dir()
    for command, more in ((cache_logits, []), (run_training, ["--kd_alpha=0.5", "--ensemble=greedy"])):
        assert command.main([*words, f"--teacher_ckpts={teacher}", *more]) == 2
        assert "data.validation_share=0" in capsys.readouterr().out


def test_the_clips_are_those_of_the_csv_in_its_order(words: list[str], tiny_tau: Path, tmp_path: Path) -> None:
    table = read_split(tiny_tau, "split100")
    parts = hold_out(table, 0.0, seed=1)
    assert list(parts.train.filename) == list(table.filename) and parts.validation.empty and not parts.notes
    config = compose([f"data.dataset_dir='{tiny_tau}'", f"data.cache_dir='{tmp_path}'", "data.validation_share=0"])
    clips = load_clips(config, 32_000)
    assert filenames(clips.train) == list(table.filename) and filenames(clips.validation) == []
